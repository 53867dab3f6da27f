"""`mm1 budget --gpu cpu` against real steps: predicted and measured memory and time of a run of 9 M parameters.

    python benchmarks/budget.py [--ranks 1 2] [--rounds 5]

Each line trains the same run in another way: in one process, with recomputation, on two processes (gloo). What else
runs on a machine changes, so there are several rounds: in each, the ranks measure their processor as the command does
and then do two steps. The round with the median ratio is shown. Memory is that of the first rank: the most bytes that
torch's allocator had given out since before the model was built, as the profiler reports every allocation. Predicted
and measured figures are for the same sequences.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from mm1 import dist
from mm1.budget.hardware import Hardware, measure_process
from mm1.budget.planner import Planner
from mm1.budget.report import requested_layout, shapes_of
from mm1.config.run import RunConfig, load, override, save
from mm1.data.loader import batches, sequences_of
from mm1.document import Batch
from mm1.model.mllm import MLLM
from mm1.objectives.next_token import NextToken
from mm1.recipes.index import recipe
from mm1.train import optim, parallel

SIZE = (
    *("model.decoder.width=256", "model.decoder.layers=6", "model.decoder.heads=4", "model.decoder.kv_heads=4"),
    *("model.decoder.mlp_width=768", "model.vision.layers=6", "model.vision.width=192", "model.vision.heads=3"),
    *("model.vision.mlp_width=768", "data.workers=0", "start_from={}"),
)
WAYS = {
    "one process": (1, ("batch_size=4", "micro_batch_size=4")),
    "one process, two micro-batches": (1, ("batch_size=4", "micro_batch_size=2")),
    "one process, all recomputed": (
        1,
        ("batch_size=4", "micro_batch_size=4", "parallel.activation_checkpointing=full"),
    ),
    "two ranks, sharded": (2, ("batch_size=4", "micro_batch_size=2", "parallel.dp_shard=2")),
    "two ranks, replicas": (
        2,
        ("batch_size=4", "micro_batch_size=2", "parallel.dp_shard=1", "parallel.dp_replicate=2"),
    ),
}


def steps_of(run: RunConfig, folder: Path, *, rank: int, ranks: int, steps: int) -> list[list[Batch]]:
    """The micro-batches of a rank's first steps."""
    sequences = sequences_of(run, folder)
    stream = batches(
        sequences,
        start_sequence=0,
        batch_size=run.batch_size,
        micro_batch_size=run.micro_batch_size,
        rank=rank,
        world=ranks,
    )
    return [next(stream) for _ in range(steps)]


def measure(folder: Path, steps: int) -> None:
    """Do steps on a rank that torchrun started; write their seconds and the bytes of the first rank to `folder`."""
    run = load(folder / "config.json")
    dist.prepare_process()
    with dist.connected():
        dims = parallel.parallel_dims(run)
        data = steps_of(run, folder, rank=dims.data_rank, ranks=dims.data_ranks, steps=2)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            step = prepare_step(run, dims)
            for micro_batches in (*data, *data):  # twice: AdamW's moments exist after the first step
                step(micro_batches)
        rounds = []
        for _ in range(steps):
            hardware = measure_process(shapes_of(run))  # in each round: what else runs here changes
            start = time.perf_counter()
            for micro_batches in data:
                step(micro_batches)
            rounds.append([asdict(hardware), (time.perf_counter() - start) / len(data)])
    if dist.rank() == 0:
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        alive = most = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            alive += event.nbytes()
            most = max(most, alive)
        (folder / "measured.json").write_text(json.dumps([most, rounds]))


def prepare_step(run: RunConfig, dims: parallel.ParallelDims):
    """A function that does one step on its micro-batches as `train/loop.py` does, without the log."""
    with torch.device("meta"):
        model = MLLM(run.model)
    parallel.parallelize(model, run, dims=dims, precision=torch.float32)
    parallel.init_weights(model, run.seed)
    optimizer = optim.build(model, run.optim, peak=1e-4)
    objective = NextToken(model, list(run.data.sources))

    def step(micro_batches: list[Batch]) -> None:
        for batch in micro_batches:
            objective.loss(batch).scaled(weight=1000, sequences=run.batch_size).backward()
        parallel.clip(model.parameters(), largest=run.optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def compare(words: tuple[str, ...], folder: Path, *, ranks: int, steps: int) -> tuple[list[float], list[float]]:
    """Predicted and measured bytes and seconds of a step; the seconds are those of the round with the median ratio."""
    run = override(recipe("tiny"), [*SIZE, *words])
    save(run, folder / "config.json")
    data = [batch for step in steps_of(run, folder, rank=0, ranks=ranks, steps=2) for batch in step]
    layout = requested_layout(run, ranks, node=ranks)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // ranks)), "GOMP_SPINCOUNT": "1000"}
    subprocess.run(
        [*command, __file__, "--measure", str(folder), "--rounds", str(steps)],
        env=os.environ | threads,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    most, rounds = json.loads((folder / "measured.json").read_text())
    pairs = []
    planners = [Planner(run, Hardware(**rounds[0][0]), precision=torch.float32, batch=batch) for batch in data]
    for hardware, seconds in rounds:
        for planner in planners:
            planner.hardware = Hardware(**hardware)
        budgets = [planner.budget(layout) for planner in planners]
        pairs.append((statistics.mean(budget.step_seconds for budget in budgets), seconds))
    predicted, measured = sorted(pairs, key=lambda pair: pair[0] / pair[1])[len(pairs) // 2]
    return [max(budget.bytes for budget in budgets), predicted], [most, measured]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.rounds)
        return
    dist.prepare_process()
    table = Table(title="a run of 9.2 M parameters on this processor: predicted / measured")
    for column in ("way", "MB", "measured", "ratio", "s a step", "measured", "ratio"):
        table.add_column(column, justify="left" if column == "way" else "right")
    folder = Path(tempfile.mkdtemp())  # one for all ways, so that the index is built once
    for way, (ranks, words) in WAYS.items():
        if ranks in options.ranks:
            predicted, measured = compare(words, folder, ranks=ranks, steps=options.rounds)
            table.add_row(
                way,
                *(f"{predicted[0] / 1e6:.1f}", f"{measured[0] / 1e6:.1f}", f"{predicted[0] / measured[0]:.2f}"),
                *(f"{predicted[1]:.2f}", f"{measured[1]:.2f}", f"{predicted[1] / measured[1]:.2f}"),
            )
    shutil.rmtree(folder)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
