"""Train on a Ray cluster: ray_train.py --workers 64 mm1_3b parallel.dp_shard=32 --to /shared/runs/3b

Ray Train sets the environment variables that torchrun would set. If a worker is lost, all workers start again from the
last checkpoint, at most three times.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")  # read on import; version 1 takes a core beside the workers'

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def train_worker(options: dict) -> None:
    from mm1.config import run as config
    from mm1.recipes.index import recipe
    from mm1.train.run import train_run

    train_run(config.override(recipe(options["recipe"]), options["assignments"]), Path(options["to"]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--cpu", action="store_true", help="without GPUs")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("recipe")
    parser.add_argument("assignments", nargs="*")
    options = parser.parse_intermixed_args()
    TorchTrainer(
        train_worker,
        train_loop_config={
            "recipe": options.recipe,
            "assignments": options.assignments,
            "to": str(options.to.resolve()),
        },
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=not options.cpu),
        run_config=RunConfig(
            name=options.to.name,
            storage_path=str(options.to.resolve().parent / "ray"),
            failure_config=FailureConfig(max_failures=3),
        ),
    ).fit()


if __name__ == "__main__":
    main()
