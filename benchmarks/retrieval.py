"""What two recipes of an encoder are worth: held-out retrieval of their runs, seed beside seed.

    python benchmarks/retrieval.py runs/new-0,runs/new-1,runs/new-2 --over runs/old-0,runs/old-1,runs/old-2

Prints the mean of the six recalls (both directions, at 1, 5 and 10) of each run, the time of its training steps,
and the difference with its 95 % interval over seeds and queries (mm1/ablate/intervals.py).
"""

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from mm1.ablate.intervals import interval
from mm1.eval.encoders.encoder import open_encoder
from mm1.eval.encoders.retrieval import retrieve
from mm1.train.log import read_metrics


def seconds(run: str) -> float:
    """The time of all training steps of a run."""
    return sum(row.get("step_seconds", 0.0) for row in read_metrics(Path(run)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", help="folders of the runs of one recipe, by commas")
    parser.add_argument("--over", required=True, help="those of the other recipe, of the same seeds in the same order")
    parser.add_argument("--data", default="sample:captions-test", help="store of held-out pairs")
    options = parser.parse_args()
    recipes = options.runs.split(","), options.over.split(",")
    if len(recipes[0]) != len(recipes[1]):
        parser.error(f"{len(recipes[0])} runs over {len(recipes[1])}; give as many of each")
    table = Table("run", "seconds of steps", "mean of six recalls", title=options.data)
    hits: list[list[dict[str, np.ndarray]]] = []
    for runs in recipes:
        hits.append([retrieve(open_encoder(run), options.data, limit=10**6, seed=0) for run in runs])
        for run, of_run in zip(runs, hits[-1], strict=True):
            mean = 100 * np.mean([measure.mean() for measure in of_run.values()])
            table.add_row(run, f"{seconds(run):.0f}", f"{mean:.1f}")
    parts = [
        np.stack([100 * (ours[name] - theirs[name]) for ours, theirs in zip(*hits, strict=True)]) for name in hits[0][0]
    ]
    difference = interval(parts)
    console = Console()
    console.print(table)
    console.print(f"difference: {difference.mean:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]")


if __name__ == "__main__":
    main()
