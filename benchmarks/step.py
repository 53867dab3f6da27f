"""Time of a step of mm1 and of `transformers`, decoder and whole model, with the same weights, one process each.

    python benchmarks/step.py [--rounds 3] [--captions 8] [--decoder 9m] [--threads 1] [--no-compile]

Theirs is LLaVA as `transformers` builds it: CLIP's ViT, two linear layers, Llama, SDPA attention. It is measured twice:
as it is, and with glibc set to keep freed memory, as `mm1 train` sets it. mm1 has copies of its weights and runs as in
`mm1 train`. The decoder trains on all tokens of sequences of 512. The whole model reads captions of the sample, padded
to the longest of the batch or packed. Results are medians over rounds; tokens per second count images and text, no
padding. MFU is the arithmetic that these need over that of a matrix product of 1024 x 1024 (on a GPU: the datasheet's).
One thread is timed in processor time.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from mm1 import dist
from mm1.config.model import ConnectorConfig, ModelConfig
from mm1.config.run import RunConfig
from mm1.data.encode import encode_many
from mm1.data.image import load
from mm1.data.pack import pack
from mm1.data.store import open_store
from mm1.data.tokenizer import load_tokenizer
from mm1.document import IGNORED, Batch, Encoded
from mm1.hf.decoder_config import decoder_config_to_hf
from mm1.hf.decoder_state import decoder_from_hf
from mm1.hf.layouts import vision_from_hf
from mm1.hf.vision import vision_config_from_hf
from mm1.model import sizes
from mm1.model.decoder import masks_of
from mm1.model.mllm import MLLM
from mm1.model.vision import normalise
from mm1.objectives.next_token import LOGITS, NextToken, cross_entropy
from mm1.tiling import TileSpec
from mm1.train.compilation import compile_blocks, missing_compiler
from mm1.train.meter import costs, peak_flops

WAYS = ("transformers", "transformers, malloc", "mm1")
"""Each is a process of its own: settings of malloc are those of a whole process."""

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
"""The settings that `dist.prepare_process` makes in glibc, for a process of theirs."""

LENGTH = 512
"""Tokens in a sequence of text."""

PATCH = 12
"""Side of a patch in pixels: an image of the default size has 64 patches, and so 64 image tokens."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models with the same weights."""

    theirs: Any  # `transformers` LlavaForConditionalGeneration
    config: ModelConfig

    def ours(self) -> MLLM:
        """A new model of ours with their weights."""
        model, state = MLLM(self.config), self.theirs.state_dict()
        model.vision.load_state_dict(vision_from_hf(state))
        model.decoder.load_state_dict(decoder_from_hf(state, tie_embeddings=self.config.decoder.tie_embeddings))
        for ours, their in (("up", "linear_1"), ("out", "linear_2")):
            for leaf in ("weight", "bias"):
                source = state[f"model.multi_modal_projector.{their}.{leaf}"]
                model.connector.get_parameter(f"{ours}.{leaf}").data.copy_(source)
        return model


def pair(decoder: str, image_size: int) -> Pair:
    """LLaVA with a decoder of `sizes` without QK-norm, which Llama lacks, and our config of it."""
    import transformers

    tokenizer = load_tokenizer("sample")
    shape = getattr(sizes, f"decoder_{decoder}")().model_copy(update={"qk_norm": False})
    config: Any = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            image_size=image_size,
            patch_size=PATCH,
            hidden_size=192,
            num_hidden_layers=6,
            num_attention_heads=3,
            intermediate_size=768,
        ),
        text_config=transformers.LlamaConfig(**decoder_config_to_hf(shape, max_positions=2048)),
        image_token_index=tokenizer.image,
        image_seq_length=(image_size // PATCH) ** 2,
        tie_word_embeddings=shape.tie_embeddings,
    )
    torch.manual_seed(0)
    theirs = transformers.LlavaForConditionalGeneration(config)
    vision = vision_config_from_hf(config.vision_config.to_dict())
    vision.feature_layer = config.vision_feature_layer
    connector = ConnectorConfig(kind="mlp", tokens=vision.grid.cells)
    model = ModelConfig(image_token_id=tokenizer.image, vision=vision, connector=connector, decoder=shape)
    return Pair(theirs, model)


def captions(count: int, image_tokens: int, *, first: int = 0) -> list[Encoded]:
    """`count` captions of the sample in a random order from the `first` on, so that all sources occur."""
    store, tokenizer = open_store("sample:captions-train"), load_tokenizer("sample")
    numbers = np.random.default_rng(0).permutation(len(store))[first : first + count]
    return encode_many(store.take(numbers.tolist()), tokenizer, tile=TileSpec(1, image_tokens))


def packed(documents: list[Encoded], image_size: int, *, sequences: int) -> Batch:
    """The documents packed into so many sequences, as short as the loader's packing can make them."""
    sizes_ = np.array([len(document.tokens) for document in documents])
    images = np.array([len(document.images) for document in documents])
    length = -(-int(sizes_.sum()) // sequences)
    while len(packs := pack(sizes_, images, sequence_length=length, max_images=len(documents))) > sequences:
        length += 1
    return batch([[documents[number] for number in numbers] for numbers in packs], length, image_size=image_size)


def padded(documents: list[Encoded], image_size: int) -> Batch:
    """One document in a sequence, padded to the longest."""
    longest = max(len(document.tokens) for document in documents)
    return batch([[document] for document in documents], longest, image_size=image_size)


def batch(sequences: list[list[Encoded]], length: int, *, image_size: int) -> Batch:
    tokens_BT = torch.zeros(len(sequences), length, dtype=torch.int64)
    targets_BT = torch.full_like(tokens_BT, IGNORED)
    document_BT, position_BT = torch.zeros_like(tokens_BT), torch.zeros_like(tokens_BT)
    pictures = []
    for row, documents in enumerate(sequences):
        start = 0
        for number, document in enumerate(documents, start=1):
            stop, ids = start + len(document.tokens), torch.from_numpy(document.tokens.astype(np.int64))
            tokens_BT[row, start:stop] = ids
            targets_BT[row, start : stop - 1] = torch.where(torch.from_numpy(document.train[1:]), ids[1:], IGNORED)
            document_BT[row, start:stop] = number
            position_BT[row, start:stop] = torch.arange(len(ids))
            pictures += [torch.from_numpy(load(tile.image.data, image_size).copy()) for tile in document.images]
            start = stop
    images_NCYX = torch.stack(pictures) if pictures else torch.zeros(0, 3, image_size, image_size, dtype=torch.uint8)
    source_B, sequence_B = torch.zeros(len(sequences), dtype=torch.int64), torch.arange(len(sequences))
    return Batch(tokens_BT, targets_BT, document_BT, position_BT, images_NCYX, len(pictures), source_B, sequence_B)


def text(sequences: int, vocabulary: int) -> Batch:
    """Sequences of one document each, all trained: nothing is packed."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(16, vocabulary, (sequences, LENGTH), generator=generator, dtype=torch.int64).numpy()
    documents = [Encoded(row.astype(np.int32), np.ones(LENGTH, bool), (), ()) for row in ids]
    return padded(documents, PATCH)


def inputs_of(batch: Batch, config: ModelConfig) -> dict[str, torch.Tensor]:
    """A padded batch as their processor and collator make it; pixels are normalised before the clock starts."""
    labels = torch.nn.functional.pad(batch.targets_BT, (1, 0), value=IGNORED)[:, :-1]
    inputs = {"input_ids": batch.tokens_BT, "attention_mask": (batch.document_BT > 0).long(), "labels": labels}
    return inputs | ({"pixel_values": normalise(batch.images_NCYX, config.vision)} if batch.images else {})


Step = Callable[[], torch.Tensor]  # the loss, a mean over the trained tokens


@dataclass(frozen=True, slots=True)
class Way:
    """The steps of one process by name, and their models."""

    steps: dict[str, Step]
    models: list[torch.nn.Module]


def theirs(model: Pair, batches: dict[str, Batch], *, compiled: bool) -> Way:
    import transformers

    device = dist.device()
    alone: Any = transformers.LlamaForCausalLM(model.theirs.config.text_config)
    alone.model, alone.lm_head = model.theirs.model.language_model, model.theirs.lm_head
    steps: dict[str, Step] = {}
    for name in ("decoder", "padded"):
        inputs = {key: value.to(device) for key, value in inputs_of(batches[name], model.config).items()}
        module: Any = (alone if name == "decoder" else model.theirs).to(device).train()
        steps[name] = partial(their_loss, module, inputs)
        if compiled:
            steps[f"{name}, compiled"] = partial(their_loss, torch.compile(module), inputs)
    return Way(steps, [model.theirs])


def their_loss(module: Callable, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return module(**inputs, use_cache=False).loss


def ours(model: Pair, batches: dict[str, Batch], *, compiled: bool) -> Way:
    device = dist.device()
    dist.prepare_process()
    way = Way({}, [])
    mode: Literal["never", "always"]
    for ending, mode in (("", "never"), (", compiled", "always")):
        if mode == "never" or compiled:
            mllm = model.ours().to(device, dist.resolve_precision("auto", device)).train()
            compile_blocks(mllm, mode, device=device)
            way.models.append(mllm)
            for name, batch in batches.items():
                whole = partial(our_loss, mllm, batch.to(device))
                way.steps[name + ending] = partial(decoder_loss, mllm, batch.to(device)) if name == "decoder" else whole
    return way


def our_loss(model: MLLM, batch: Batch) -> torch.Tensor:
    loss = NextToken(model, ["captions"]).loss(batch)
    return loss.total / loss.weight


def decoder_loss(model: MLLM, batch: Batch) -> torch.Tensor:
    """The loss without the encoder, which `NextToken` would run on a black image."""
    masks, targets = masks_of(model.decoder.config, batch.document_BT), batch.targets_BT.flatten()
    hidden_BTD = model.decoder(model.decoder.embed(batch.tokens_BT), batch.position_BT, masks=masks)
    positions = torch.arange(len(targets) - 1, device=targets.device)[targets[:-1] != IGNORED]
    at_once = LOGITS[targets.device.type]
    entropy = cross_entropy(model, hidden_BTD.flatten(0, 1), targets=targets, positions=positions, at_once=at_once)
    return entropy.total / len(positions)


def timed(way: Way, name: str, *, backward: bool) -> tuple[float, float]:
    """Seconds of one step, and its loss."""
    for model in way.models:
        model.zero_grad(set_to_none=True)
    clock, on_gpu = clock_of(dist.device()), dist.device().type == "cuda"
    theirs = on_gpu and not isinstance(way.models[0], MLLM)  # ours has weights in bf16, as FSDP2 gives them
    start = clock()
    with torch.set_grad_enabled(backward), torch.autocast(dist.device().type, torch.bfloat16, enabled=theirs):
        loss = way.steps[name]()
    if backward:
        loss.backward()
    value = float(loss.detach())  # on a GPU this waits for the forward pass, and the line below for the rest
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start, value


def clock_of(device: torch.device) -> Callable[[], float]:
    """Processor time if one thread does everything, so that other processes of the machine don't count."""
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def ceiling() -> float:
    """The FLOP/s of a square matrix product by the same clock; on a GPU the datasheet's."""
    device, side = dist.device(), 1024
    if device.type == "cuda":
        return peak_flops(device, torch.bfloat16)
    left, clock, best = torch.randn(side, side), clock_of(device), float("inf")
    for _ in range(10):
        start = clock()
        torch.mm(left, left)
        best = min(best, clock() - start)
    return 2 * side**3 / best


def batches_of(options: argparse.Namespace) -> dict[str, Batch]:
    documents = captions(options.captions, (options.image_size // PATCH) ** 2)
    return {
        "decoder": text(options.sequences, load_tokenizer("sample").vocabulary),
        "padded": padded(documents, options.image_size),
        "packed": packed(documents, options.image_size, sequences=max(1, options.captions // 8)),
    }


def serve(options: argparse.Namespace) -> None:
    """Answer each line of standard input, `forward NAME`, `both NAME` or `peak`, with a line of JSON."""
    torch.set_num_threads(options.threads)
    torch._dynamo.config.automatic_dynamic_shapes = False  # there are few shapes: compile code for each
    model, batches = pair(options.decoder, options.image_size), batches_of(options)
    way = (ours if options.way == "mm1" else theirs)(model, batches, compiled=options.compile)
    for name in way.steps:
        for backward in (False, True):
            timed(way, name, backward=backward)
    print(json.dumps(list(way.steps)), flush=True)
    for line in sys.stdin:
        what, _, name = line.strip().partition(" ")
        answer = ceiling() if what == "peak" else timed(way, name, backward=what == "both")
        print(json.dumps(answer), flush=True)


class Process:
    """One of `WAYS` in a process of its own, which does a step on demand."""

    def __init__(self, script: str, arguments: list[str], *, way: str):
        environment = os.environ | (KEEP_MEMORY if way == "transformers, malloc" else {})
        environment = {"GOMP_SPINCOUNT": "1000"} | environment  # as the command line of mm1 sets it, for all ways
        command = [sys.executable, script, *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.steps: Any = self.answer()

    def ask(self, what: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a process ended without an answer: {self._process.args!r}")
        return json.loads(line)

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@dataclass(slots=True)
class Measurements:
    """Seconds by (way, pass, step), losses by (way, step), and FLOP/s of matrix products by round."""

    seconds: dict[tuple[str, str, str], list[float]]
    losses: dict[tuple[str, str], float]
    peaks: list[float]


def measure(processes: dict[str, Process], rounds: int) -> Measurements:
    measured = Measurements({}, {}, [])
    for _ in range(rounds):
        measured.peaks.append(processes["mm1"].ask("peak"))
        for name in processes["mm1"].steps:
            for both in ("forward", "both"):
                for way, process in processes.items():
                    if name in process.steps:
                        seconds, loss = process.ask(f"{both} {name}")
                        measured.seconds.setdefault((way, both, name), []).append(seconds)
                        measured.losses[way, name] = loss
    return measured


def table(measured: Measurements, model: Pair, batches: dict[str, Batch]) -> Table:
    """A row for each way and step: its time, tokens per second, MFU, and how many times as fast mm1 is."""
    run = RunConfig(model=model.config)
    rows = Table()
    for column in ("pass", "step", "way", "ms", "tokens/s", "MFU", "over theirs", "over theirs, malloc"):
        rows.add_column(column, justify="left" if column in ("pass", "step", "way") else "right")
    for (way, both, name), seconds in measured.seconds.items():
        batch = batches[name.partition(",")[0]]
        flops = (costs(run).vision(batch.images) + costs(run).text([batch])) / (1 if both == "both" else 3)
        real, middle = int((batch.document_BT > 0).sum()), median(seconds)
        ratios = []
        for their in WAYS[:2]:
            beside = measured.seconds.get((their, both, name.replace("packed", "padded")))
            ratios.append(f"{median(beside) / middle:.2f}" if beside and way == "mm1" else "")
        mfu = median(flops / s / peak for s, peak in zip(seconds, measured.peaks, strict=True))
        title = "forward + backward" if both == "both" else both
        rows.add_row(title, name, way, f"{middle * 1000:,.0f}", f"{real / middle:,.0f}", f"{mfu:.0%}", *ratios)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--captions", type=int, default=8)
    parser.add_argument("--sequences", type=int, default=1, help="sequences of text")
    parser.add_argument("--decoder", default="9m", help="a decoder of mm1/model/sizes.py: 9m, 85m, 302m, 1_2b")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        serve(options)
        return
    if options.compile and (missing := missing_compiler(dist.device())):
        raise SystemExit(f"compiling needs {missing}; install it, or give --no-compile")
    processes = {way: Process(__file__, ["--way", way, *sys.argv[1:]], way=way) for way in WAYS}
    measured = measure(processes, options.rounds)
    for process in processes.values():
        process.end()
    batches, console = batches_of(options), Console(width=130)
    console.print(table(measured, pair(options.decoder, options.image_size), batches))
    for name, batch in batches.items():
        losses = ", ".join(f"{way} {loss:.5f}" for (way, step), loss in measured.losses.items() if step == name)
        console.print(
            f"{name}: {(batch.document_BT > 0).float().mean():.1%} of the positions are no padding; loss {losses}"
        )
    console.print(f"matrix products: {median(measured.peaks) / 1e9:,.0f} GFLOP/s, {options.threads} thread(s)")


if __name__ == "__main__":
    main()
