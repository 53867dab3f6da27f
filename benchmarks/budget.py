"""What `mm1 budget` says of this machine's processor, against real steps: memory and time of a run of 9 M parameters.

    python benchmarks/budget.py [--ranks 1 2] [--rounds 5]

Each line is one way to train the same run: in one process, with recomputation, on two processes that share the weights
(gloo). In rounds, as what else runs on a machine changes: the ranks measure their rates, as the command does for
`--gpu cpu`, and then do two steps; the round whose ratio is the middle one is shown. Memory is that of the first rank:
the most bytes that torch's allocator had given out since before the model was made, as the profiler reports every
allocation. Predicted and measured are for the same rows.
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
from mm1.budget import report as offer
from mm1.budget.hardware import Rates, measured_here
from mm1.budget.planner import Planner
from mm1.config.run import RunConfig, load, override, save
from mm1.data.loader import batches, rows_of
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
    rows = rows_of(run, folder)
    stream = batches(
        rows, start_row=0, batch_size=run.batch_size, micro_batch_size=run.micro_batch_size, rank=rank, world=ranks
    )
    return [next(stream) for _ in range(steps)]


def measure(folder: Path, steps: int) -> None:
    """On a rank that torchrun started: do steps, write their seconds and the bytes of the first rank."""
    run = load(folder / "config.json")
    dist.prepare_process()
    with dist.connected():
        over = parallel.layout(run)
        data = steps_of(run, folder, rank=over.data_rank, ranks=over.data_ranks, steps=2)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            step = prepared(run, over)
            for micro_batches in (*data, *data):  # again, as only then there are moments
                step(micro_batches)
        rounds = []
        for _ in range(steps):
            rates = measured_here(offer.shapes(run))  # now: what else runs here changes from minute to minute
            begun = time.perf_counter()
            for micro_batches in data:
                step(micro_batches)
            rounds.append([asdict(rates), (time.perf_counter() - begun) / len(data)])
    if dist.rank() == 0:
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        alive = most = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            alive += event.nbytes()
            most = max(most, alive)
        (folder / "measured.json").write_text(json.dumps([most, rounds]))


def prepared(run: RunConfig, over: parallel.Layout):
    """A function that does one step, as `train/loop.py` does it, without its log."""
    with torch.device("meta"):
        model = MLLM(run.model)
    parallel.spread(model, run, over=over, precision=torch.float32)
    parallel.materialise(model, run.seed)
    optimizer = optim.build(model, run.optim, peak=1e-4)
    objective = NextToken(model, list(run.data.sources))

    def step(micro_batches: list[Batch]) -> None:
        for batch in micro_batches:
            objective.loss(batch).objective(weight=1000, rows=run.batch_size).backward()
        parallel.clip(model.parameters(), largest=run.optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def compare(words: tuple[str, ...], folder: Path, *, ranks: int, steps: int) -> tuple[list[float], list[float]]:
    """Bytes and seconds of a step, predicted and measured; seconds of the round whose ratio is the middle one."""
    run = override(recipe("tiny"), [*SIZE, *words])
    save(run, folder / "config.json")
    data = [batch for step in steps_of(run, folder, rank=0, ranks=ranks, steps=2) for batch in step]
    setup = offer.asked(run, ranks, node=ranks)
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
    planners = [Planner(run, Rates(**rounds[0][0]), precision=torch.float32, batch=batch) for batch in data]
    for rates, seconds in rounds:
        for planner in planners:
            planner.rates = Rates(**rates)
        budgets = [planner.budget(setup) for planner in planners]
        pairs.append((statistics.mean(budget.step for budget in budgets), seconds))
    said, seen = sorted(pairs, key=lambda pair: pair[0] / pair[1])[len(pairs) // 2]
    return [max(budget.bytes for budget in budgets), said], [most, seen]


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
    folder = Path(tempfile.mkdtemp())  # one for all, so that documents are measured once
    for way, (ranks, words) in WAYS.items():
        if ranks in options.ranks:
            said, seen = compare(words, folder, ranks=ranks, steps=options.rounds)
            table.add_row(
                way,
                *(f"{said[0] / 1e6:.1f}", f"{seen[0] / 1e6:.1f}", f"{said[0] / seen[0]:.2f}"),
                *(f"{said[1]:.2f}", f"{seen[1]:.2f}", f"{said[1] / seen[1]:.2f}"),
            )
    shutil.rmtree(folder)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
