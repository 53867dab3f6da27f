"""Whole training steps of mm1 and of `transformers` on the same captions with the same weights, one process each.

    python benchmarks/train.py [--steps 6] [--captions 8] [--decoder 9m] [--threads 1]

Theirs is LLaVA of `transformers` in the loop of its Trainer: batches padded to the longest caption, loss, backward,
clipping, fused AdamW. It is measured twice: as it is, and with glibc set to keep freed memory, as `mm1 train` sets it.
mm1 reads the same captions of a step as packed sequences. All start from the same weights. The ways take turns, step by
step; results are medians over the steps after the first. Tokens per second count images and text but no padding. MFU is
the arithmetic that these tokens need over that of a matrix product of 1024 x 1024 in the same turn (on a GPU: over the
datasheet's). With one thread the clock is processor time. The losses of every step are printed side by side; the
benchmark fails if they differ by more than 1e-3. At the end it compares the peak memory of mm1's loss with that of a
loss from whole logits, each in a process of its own.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from step import PATCH, WAYS, Pair, Process, captions, ceiling, clock_of, inputs_of, packed, padded, pair, their_loss

from mm1 import dist
from mm1.config.run import OptimConfig, RunConfig
from mm1.document import Batch
from mm1.objectives.next_token import LOGITS, NextToken, cross_entropy
from mm1.train import optim
from mm1.train.meter import costs
from mm1.train.parallel import clip, parallel_dims, parallelize

TOLERANCE = 1e-3
"""Of the loss of a step: another order of sums makes a difference of 1e-6 at first, which grows in training."""

RATE, OPTIM = 1e-3, OptimConfig(weight_decay=0.0)
"""Trainer has no weight decay by default. Both get the betas of mm1."""

LOSSES = ("whole logits", "mm1")
"""Ways to compute the loss of 4096 tokens, whose memory is measured."""


def turns(options: argparse.Namespace) -> Iterator[list[float]]:
    """Seconds and loss of each step of `options.way`. The batch is ready before the clock starts, as from a worker."""
    model, device = pair(options.decoder, options.image_size), dist.device()
    if options.way == "mm1":
        dist.prepare_process()
        ours = model.ours().to(device).train()
        run = RunConfig(model=ours.config, compile="never")
        parallelize(ours, run, dims=parallel_dims(run), precision=dist.resolve_precision("auto", device))
        objective, trained = NextToken(ours, ["captions"]), ours
        optimizer = optim.build(trained, OPTIM, peak=RATE)
    else:
        trained = model.theirs.to(device).train()
        optimizer = torch.optim.AdamW(trained.parameters(), lr=RATE, betas=OPTIM.betas, weight_decay=0.0, fused=True)
    # theirs is in bf16 by autocast, as in their trainer; ours by FSDP2
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    clock = clock_of(device)
    for step in range(options.steps):
        batch = batch_of(options, step)
        inputs = {name: value.to(device) for name, value in inputs_of(batch, model.config).items()}
        batch = batch.to(device)
        start = clock()
        if options.way == "mm1":
            weight, sequences = objective.weight(batch), len(batch.tokens_BT)
            loss = objective.loss(batch).scaled(weight=weight, sequences=sequences)
            loss.backward()
            clip(trained.parameters(), largest=OPTIM.clip_norm)
        else:
            with autocast:
                loss = their_loss(trained, inputs)
            loss.backward()
            float(torch.nn.utils.clip_grad_norm_(trained.parameters(), OPTIM.clip_norm))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = float(loss.detach())
        if device.type == "cuda":
            torch.cuda.synchronize()
        yield [clock() - start, value]


def batch_of(options: argparse.Namespace, step: int) -> Batch:
    documents = captions(options.captions, (options.image_size // PATCH) ** 2, first=step * options.captions)
    if options.way == "mm1":
        return packed(documents, options.image_size, sequences=max(1, options.captions // 8))
    return padded(documents, options.image_size)


def serve(options: argparse.Namespace) -> None:
    """Answer each line of standard input, `peak` or `step`, with a line of JSON."""
    torch.set_num_threads(options.threads)
    steps = turns(options)
    print(json.dumps([]), flush=True)
    with dist.connected(alone=dist.device().type == "cuda"):
        for line in sys.stdin:
            print(json.dumps(ceiling() if line.strip() == "peak" else next(steps)), flush=True)


def peak_of_loss(options: argparse.Namespace) -> None:
    """Print the megabytes that the loss of 4096 tokens and its gradients add to the peak of this process."""
    dist.prepare_process()
    model = pair(options.decoder, options.image_size).ours()
    hidden = torch.randn(4096, model.config.decoder.width, requires_grad=True)
    targets, positions = torch.arange(4096), torch.arange(4096)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present memory (proc(5))
    before = memory("VmRSS")
    if options.loss == "mm1":
        loss = cross_entropy(model, hidden, targets=targets, positions=positions, at_once=LOGITS["cpu"]).total
    else:
        loss = F.cross_entropy(model.decoder.logits(hidden), targets, reduction="sum")
    loss.backward()
    print(json.dumps(memory("VmHWM") - before), flush=True)


def memory(field: str) -> float:
    """A line of this process's status, in MB."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


def table(answers: dict[str, list[list[float]]], peaks: list[float], model: Pair, batches: list[Batch]) -> Table:
    cost, real = costs(RunConfig(model=model.config)), [int((batch.document_BT > 0).sum()) for batch in batches]
    flops = [cost.vision(batch.images) + cost.text([batch]) for batch in batches]
    rows = Table()
    for column in ("way", "ms a step", "tokens/s", "MFU", "mm1 over it", "least", "most"):
        rows.add_column(column, justify="left" if column == "way" else "right")
    ours = [seconds for seconds, _ in answers["mm1"]]
    for way, each in answers.items():
        seconds = [seconds for seconds, _ in each]
        mfu = median(f / s / p for f, s, p in zip(flops[1:], seconds[1:], peaks[1:], strict=True))
        ratios = [their / our for their, our in zip(seconds[1:], ours[1:], strict=True)]
        speed = median(count / s for count, s in zip(real[1:], seconds[1:], strict=True))
        columns = [f"{ratio:.2f}" for ratio in (median(ratios), min(ratios), max(ratios))]
        rows.add_row(way, f"{median(seconds[1:]) * 1000:,.0f}", f"{speed:,.0f}", f"{mfu:.0%}", *columns)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--captions", type=int, default=8, help="captions of a step")
    parser.add_argument("--decoder", default="9m", help="a decoder of mm1/model/sizes.py: 9m, 85m, 302m, 1_2b")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--loss", choices=LOSSES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loss:
        peak_of_loss(options)
        return
    if options.way:
        serve(options)
        return
    processes = {way: Process(__file__, ["--way", way, *sys.argv[1:]], way=way) for way in WAYS}
    answers: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    peaks = []
    for _ in range(options.steps):
        peaks.append(processes["mm1"].ask("peak"))
        for way, process in processes.items():
            answers[way].append(process.ask("step"))
    for process in processes.values():
        process.end()
    options.way = "mm1"
    console = Console(width=110)
    batches = [batch_of(options, step) for step in range(options.steps)]
    console.print(table(answers, peaks, pair(options.decoder, options.image_size), batches))
    worst = 0.0
    for step, losses in enumerate(zip(*answers.values(), strict=True)):
        values = [loss for _, loss in losses]
        worst = max(worst, max(values) - min(values))
        console.print(
            f"step {step + 1}: loss " + ", ".join(f"{way} {v:.5f}" for way, v in zip(WAYS, values, strict=True))
        )
    console.print(f"matrix products: {median(peaks) / 1e9:,.0f} GFLOP/s, {options.threads} thread(s)")
    for way in LOSSES:
        peak = Process(__file__, ["--loss", way, *sys.argv[1:]], way="mm1")
        console.print(f"4096 tokens, loss and gradients from {way}: {peak.steps:,.0f} MB more")
        peak.end()
    if worst > TOLERANCE:
        raise SystemExit(f"losses differ by {worst:.2g}, which is more than {TOLERANCE}")


if __name__ == "__main__":
    main()
