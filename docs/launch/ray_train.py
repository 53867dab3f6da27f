"""A run on a Ray cluster: ray_train.py --workers 64 mm1_3b parallel.dp_shard=32 --to /shared/runs/3b

Ray Train sets what torchrun would; a worker that is lost brings all back from the last checkpoint, three times at most.
"""

import argparse
from pathlib import Path

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def work(given: dict) -> None:
    from mm1.config import run as config
    from mm1.recipes.index import recipe
    from mm1.train.run import train_run

    train_run(config.override(recipe(given["recipe"]), given["assignments"]), Path(given["to"]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--cpu", action="store_true", help="without GPUs")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("recipe")
    parser.add_argument("assignments", nargs="*")
    given = parser.parse_intermixed_args()
    TorchTrainer(
        work,
        train_loop_config={"recipe": given.recipe, "assignments": given.assignments, "to": str(given.to.resolve())},
        scaling_config=ScalingConfig(num_workers=given.workers, use_gpu=not given.cpu),
        run_config=RunConfig(
            name=given.to.name,
            storage_path=str(given.to.resolve().parent / "ray"),
            failure_config=FailureConfig(max_failures=3),
        ),
    ).fit()


if __name__ == "__main__":
    main()
