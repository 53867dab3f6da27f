"""What mm1 does on one GPU: whether it is right, time and memory, beside `mm1 budget` and `transformers`.

    python benchmarks/gpu.py [--tiny] [--to FILE.jsonl] [--predictions] [PART ...]

    parity     loss and gradient in fp32, bf16 and compiled against the CPU in fp32, dense and sparse
    loss       time and memory of the loss, by each way to normalise and from whole logits
    dense      steps of the base of the ablations (1.2B, ViT-L/14 at 336 pixels, 8 sequences of 4096 a step, 4 or 2 of
               them a micro-batch)
    selective  the same with selective activation checkpointing and two sequences a micro-batch
    sparse     steps of a sparse model of 302 M with 8 experts, two sequences a micro-batch
    resume     whether a resumed run has the weights of an uninterrupted one, bit for bit
    decode     tokens a second at 1, 8 and 64 rows
    shots      queries after eight fixed shots
    encoder    images a second
    train      a real `mm1 train` of the sample with its loader, stopped and resumed
    fp8        dense with matrix products in float8; it runs if it is named, or with --tiny

Without names all parts but the last run. Each has a time limit, most of which is for compiling: on a cold cache it took
72 s of the part `dense` on an H200. One that fails prints its error, and the others go on. A figure is a line of JSON
as soon as it is known; at the end comes a table for docs/gpu.md with the predicted value beside each. `--tiny` runs
everything scaled down, on a CPU too: it shows that the parts work, and its times mean nothing. Sequences, pictures and
weights are random, but for `train`.
"""

import argparse
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import gpu_inference
import gpu_training
import torch
from gpu_figures import Figures

from mm1 import dist
from mm1.train.log import console

PARTS: dict[str, tuple[Callable[[Figures], None], int]] = {
    "parity": (gpu_training.parity, 150),
    "loss": (gpu_training.loss, 30),
    "dense": (gpu_training.dense, 200),
    "selective": (gpu_training.selective, 150),
    "sparse": (gpu_training.sparse, 150),
    "resume": (gpu_training.resume, 180),
    "decode": (gpu_inference.decode, 60),
    "shots": (gpu_inference.shots, 60),
    "encoder": (gpu_inference.encoder, 30),
    "train": (gpu_training.train, 240),
    "fp8": (gpu_training.fp8, 150),
}
"""Each part and the seconds of a GPU after which it is stopped."""

STOP = 900
"""Seconds after which no part begins."""

EXPECTED = {
    "repeated gradients that differ": "0",
    "resumed weights that differ": "0",
    "mm1 train: resumed losses that differ": "0",
}
"""What must come out of figures that have no prediction."""


def stop(number: int, frame: FrameType | None) -> None:
    raise TimeoutError("stopped at the time limit of this part")


def run_parts(figures: Figures, names: list[str]) -> bool:
    """Run the parts in order; whether all succeeded."""
    start, succeeded = time.perf_counter(), True
    signal.signal(signal.SIGALRM, stop)
    for name in names:
        part, limit = PARTS[name]
        begun = time.perf_counter()
        if begun - start > STOP and not figures.tiny:
            figures.fail(name, f"not begun: {STOP} s are over")
            succeeded = False
            continue
        signal.alarm(limit * (4 if figures.tiny else 1))  # a busy CPU may take long
        try:
            part(figures)
        except Exception as error:
            trace = traceback.format_exc(limit=-4)[-1500:]
            figures.fail(name, f"{type(error).__name__}: {error}\n{trace}")
            succeeded = False
        signal.alarm(0)
        figures.forget()
        print(f"{name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    return succeeded


def table(figures: Figures) -> str:
    """The figures as a table in Markdown, without the kernels."""
    rows = ["| figure | `mm1 budget`, or what must come out | measured | measured / budget |", "|---|---|---|---|"]
    for name in {**figures.values, **figures.predicted, **EXPECTED}:
        if name.startswith("kernel "):
            continue
        value, unit = figures.values.get(name, (None, ""))
        planned = figures.predicted.get(name)
        measured = "not measured" if value is None else f"{number(value)} {unit}".strip()
        ratio = f"{value / planned:.2f}" if value is not None and planned else ""
        cells = (name, EXPECTED.get(name, "") if planned is None else number(planned), measured, ratio)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[[], *PARTS])
    parser.add_argument("--tiny", action="store_true", help="everything scaled down")
    parser.add_argument("--to", type=Path, help="file that the lines of JSON are added to")
    parser.add_argument("--predictions", action="store_true", help="print the table of an H200 without running a part")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny and not options.predictions:
        print("no GPU here: everything is scaled down, as with --tiny", file=sys.stderr)
        options.tiny = True
    with dist.repeatable():  # it sets what cuBLAS reads when CUDA starts
        figures = Figures(tiny=options.tiny, to=options.to)
    if options.predictions:
        gpu_training.predict(figures)
        print(table(figures))
        return
    dist.prepare_process()
    console.quiet = True  # the log of the runs
    succeeded = run_parts(figures, options.parts or [name for name in PARTS if options.tiny or name != "fp8"])
    shutil.rmtree(figures.folder)
    print(f"\n{figures.card}, torch {torch.__version__}\n\n{table(figures)}")
    if not succeeded:
        raise SystemExit("a part failed; its line says FAILED and why")


if __name__ == "__main__":
    main()
