"""Fine-tuning steps of mm1, of a padded loop of `transformers`, and of TRL's SFTTrainer, one process each.

    python benchmarks/finetune.py [--steps 6] [--chats 16] [--decoder 9m] [--threads 1]

All start from the same weights of LLaVA and read the same chats of a step: of every three one has all the questions
about a picture of the sample, one has one question, and one is a rendered page with its transcription. Theirs are
padded to the longest chat, as TRL packs no chats with pictures; mm1 packs them. All have a fused AdamW at a constant
rate, and none recomputes activations (TRL's default would). Batches are ready before the clock starts. The ways take
turns, step by step; the speed is the median over the steps after the first, in trained tokens per second. With one
thread the clock is processor time. The benchmark fails if losses of a step differ by more than 1e-5.

TRL is no dependency of mm1: `pip install trl` into the environment, or a copy of it. Without it its row is left out.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from step import PATCH, Process, clock_of, inputs_of, packed, padded, pair, their_loss

from mm1 import dist
from mm1.config.run import OptimConfig, RunConfig
from mm1.data.encode import encode_many
from mm1.data.store import open_store
from mm1.data.tokenizer import load_tokenizer
from mm1.document import IGNORED, Batch, Document
from mm1.objectives.next_token import NextToken
from mm1.prepare.rendering.fonts import find_fonts
from mm1.prepare.rendering.pages import Rendering
from mm1.tiling import TileSpec
from mm1.train import optim
from mm1.train.parallel import clip, parallel_dims, parallelize

TRL = "TRL's SFTTrainer"
WAYS = ("transformers", TRL, "mm1")
TOLERANCE = 1e-5
RATE, OPTIM = 1e-5, OptimConfig(weight_decay=0.0)


@cache
def chats(count: int) -> list[Document]:
    """`count` chats of three kinds in turn, the same each time."""
    store = open_store("sample:vqa-train")
    each = -(-count // 3)
    shown = store.take(np.random.default_rng(0).permutation(len(store))[: 2 * each].tolist())
    whole, short = shown[:each], [replace(chat, pieces=chat.pieces[:3]) for chat in shown[each:]]
    rendered = Rendering("sample:text-train", find_fonts(), side=256).pages(0, each)
    pages = [page for page in rendered if isinstance(page, Document)]
    return [chat for three in zip(whole, short, pages, strict=True) for chat in three][:count]


def batch_of(options: argparse.Namespace, step: int, *, pack: bool) -> Batch:
    """The chats of a step, packed for mm1 or padded for the others."""
    mine = chats(options.steps * options.chats)[step * options.chats : (step + 1) * options.chats]
    tile = TileSpec(1, (options.image_size // PATCH) ** 2)
    documents = encode_many(mine, load_tokenizer("sample"), tile=tile)
    if pack:
        return packed(documents, options.image_size, sequences=max(1, options.chats // 8))
    return padded(documents, options.image_size)


def turns(options: argparse.Namespace) -> Iterator[list[float]]:
    """Seconds and loss of each step of mm1, or of the loop with `transformers`."""
    model, ours, clock = pair(options.decoder, options.image_size), options.way == "mm1", clock_of(dist.device())
    trained: Any
    objective: Any = None
    if ours:
        dist.prepare_process()
        trained = model.ours().train()
        run = RunConfig(model=trained.config, compile="never")
        parallelize(trained, run, dims=parallel_dims(run), precision=torch.float32)
        objective = NextToken(trained, ["chats"])
        optimizer: torch.optim.Optimizer = optim.build(trained, OPTIM, peak=RATE)
    else:
        trained = model.theirs.train()
        optimizer = torch.optim.AdamW(trained.parameters(), lr=RATE, betas=OPTIM.betas, weight_decay=0.0, fused=True)
    for step in range(options.steps):
        batch = batch_of(options, step, pack=ours)
        inputs = inputs_of(batch, model.config)
        start = clock()
        if ours:
            weight, sequences = objective.weight(batch), len(batch.tokens_BT)
            loss = objective.loss(batch).scaled(weight=weight, sequences=sequences)
            loss.backward()
            clip(trained.parameters(), largest=OPTIM.clip_norm)
        else:
            loss = their_loss(trained, inputs)
            loss.backward()
            float(torch.nn.utils.clip_grad_norm_(trained.parameters(), OPTIM.clip_norm))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = float(loss.detach())
        yield [clock() - start, value]


def trl_settings(options: argparse.Namespace, folder: str) -> Any:
    """What makes SFTTrainer do the same steps as the others."""
    import trl

    return trl.SFTConfig(
        output_dir=folder,
        max_steps=options.steps,
        per_device_train_batch_size=1,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta1=OPTIM.betas[0],
        adam_beta2=OPTIM.betas[1],
        weight_decay=0.0,
        max_grad_norm=OPTIM.clip_norm,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        disable_tqdm=True,
    )


def train_with_trl(options: argparse.Namespace, next_step: Callable[[], None], done: Callable[[list[float]], None]):
    """Train with SFTTrainer: `next_step` is called before the clock of a step starts, `done` with what it gave.

    A row of its data set is the number of a step; the collator gives the whole padded batch of it.
    """
    import trl
    from transformers import PreTrainedTokenizerFast, TrainerCallback

    model, clock = pair(options.decoder, options.image_size), clock_of(dist.device())
    losses, starts = [0.0], [0.0]

    class Recorded(trl.SFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
            loss = super().compute_loss(model, inputs, return_outputs, **more)
            losses[0] = float(loss.detach())
            return loss

        def _get_train_sampler(self, *arguments: Any) -> torch.utils.data.Sampler:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    class Timed(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **more: Any) -> None:
            next_step()
            starts[0] = clock()

        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            done([clock() - starts[0], losses[0]])

    import datasets

    with tempfile.TemporaryDirectory() as folder:
        settings = trl_settings(options, folder)
        words = PreTrainedTokenizerFast(tokenizer_file=str(load_tokenizer("sample").path), pad_token="<|end|>")
        trainer = Recorded(
            model=model.theirs,
            args=settings,
            train_dataset=datasets.Dataset.from_dict({"input_ids": [[step] for step in range(options.steps)]}),
            data_collator=lambda rows: inputs_of(batch_of(options, rows[0]["input_ids"][0], pack=False), model.config),
            processing_class=words,
            callbacks=[Timed()],
        )
        trainer.train()


def serve(options: argparse.Namespace) -> None:
    """Answer each line of standard input with seconds and loss of the next step."""
    torch.set_num_threads(options.threads)
    answers, sys.stdout = sys.stdout, sys.stderr  # trainers print
    print(json.dumps([]), file=answers, flush=True)
    if options.way == TRL:

        def wait() -> None:
            sys.stdin.readline()

        train_with_trl(options, wait, lambda answer: print(json.dumps(answer), file=answers, flush=True))
        return
    with dist.connected():
        steps = turns(options)
        for _ in sys.stdin:
            print(json.dumps(next(steps)), file=answers, flush=True)


def table(answers: dict[str, list[list[float]]], trained: list[int]) -> Table:
    rows = Table()
    for column in ("way", "ms a step", "trained tokens/s", "mm1 over it", "least", "most"):
        rows.add_column(column, justify="left" if column == "way" else "right")
    ours = [seconds for seconds, _ in answers["mm1"]][1:]
    for way, each in answers.items():
        seconds = [seconds for seconds, _ in each][1:]
        ratios = [their / our for their, our in zip(seconds, ours, strict=True)]
        speed = median(count / s for count, s in zip(trained[1:], seconds, strict=True))
        columns = [f"{ratio:.2f}" for ratio in (median(ratios), min(ratios), max(ratios))]
        rows.add_row(way, f"{median(seconds) * 1000:,.0f}", f"{speed:,.0f}", *columns)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--chats", type=int, default=16, help="chats of a step")
    parser.add_argument("--decoder", default="9m", help="a decoder of mm1/model/sizes.py: 9m, 85m, 302m, 1_2b")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        serve(options)
        return
    console = Console(width=110)
    ways = [way for way in WAYS if way != TRL or find_spec("trl")]
    if TRL not in ways:
        console.print(f"{TRL} is left out: pip install trl")
    processes = {way: Process(__file__, ["--way", way, *sys.argv[1:]], way=way) for way in ways}
    answers: dict[str, list[list[float]]] = {way: [] for way in ways}
    for _ in range(options.steps):
        for way, process in processes.items():
            answers[way].append(process.ask("step"))
    for process in processes.values():
        process.end()
    batches = [batch_of(options, step, pack=False) for step in range(options.steps)]
    console.print(table(answers, [int((batch.targets_BT != IGNORED).sum()) for batch in batches]))
    filled = median(float((batch.document_BT > 0).float().mean()) for batch in batches)
    console.print(f"{filled:.0%} of the positions of a padded batch are no padding")
    worst = 0.0
    for step, losses in enumerate(zip(*answers.values(), strict=True), start=1):
        values = [loss for _, loss in losses]
        worst = max(worst, max(values) - min(values))
        console.print(f"step {step}: loss " + ", ".join(f"{way} {v:.6f}" for way, v in zip(ways, values, strict=True)))
    if worst > TOLERANCE:
        raise SystemExit(f"losses differ by {worst:.2g}, which is more than {TOLERANCE}")


if __name__ == "__main__":
    main()
