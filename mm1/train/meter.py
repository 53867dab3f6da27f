"""The speed of a run: tokens, images, waiting for data, and model FLOPs utilisation (MFU)."""

import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from mm1.config.model import DecoderConfig, ModelConfig
from mm1.config.run import RunConfig
from mm1.document import IGNORED, Batch
from mm1.model.mllm import MLLM
from mm1.objectives.autoregressive_pixels import PixelHead
from mm1.objectives.index import objective_of

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}
"""Dense bf16 FLOP/s of GPUs by a part of their names (NVIDIA's datasheets, without sparsity)."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Floating point operations of a forward pass per unit of real content, and how many passes training takes.

    Training takes one forward pass, one backward pass through the layers if this part or one before it is trained,
    and one for the gradients of its own weights if it is trained.
    """

    token: float  # one token through the decoder's matrices
    pairs: dict[int | None, float]  # by window: one token attending to one earlier token of its document
    prediction: float  # the logits of one trained token
    encoder: float  # one image through the encoder
    connector: float  # one image through the connector
    passes: dict[str, int]  # by part: 1 to 3

    def vision(self, images: int) -> float:
        """FLOPs of training encoder and connector on so many images."""
        return images * (self.encoder * self.passes["vision"] + self.connector * self.passes["connector"])

    def text(self, batches: list[Batch], *, with_padding: bool = False) -> float:
        """FLOPs of training the decoder; `with_padding` counts padding in its matrices as content."""
        total = 0.0
        for batch in batches:
            real = batch.document_BT > 0
            total += self.token * (real.numel() if with_padding else int(real.sum()))
            seen_BT = (batch.position_BT + 1) * real
            for window, cost in self.pairs.items():
                total += cost * int((seen_BT if window is None else seen_BT.clamp(max=window)).sum())
            total += self.prediction * int((batch.targets_BT != IGNORED).sum())
        return total * self.passes["decoder"]


def costs(run: RunConfig) -> Costs:
    """The costs of a run's model; torch counts those of an image, on the meta device."""
    decoder, parts = run.model.decoder, objective_of(run).parts
    encoder = _image_cost(run.model, with_connector=False)
    reads = "decoder" in parts
    return Costs(
        token=2.0 * sum(layer_parameters(decoder, layer) for layer in range(decoder.layers)) if reads else 0.0,
        pairs=_pairs(decoder) if reads else {},
        prediction=2.0 * decoder.width * decoder.vocabulary if "logits" in parts else 0.0,
        encoder=encoder + _pixel_head_cost(run),
        connector=_image_cost(run.model, with_connector=True) - encoder if "connector" in parts else 0.0,
        passes=_passes(run),
    )


def _pairs(decoder: DecoderConfig) -> dict[int | None, float]:
    """By window, the operations of all its layers for one token that attends to one other: two products."""
    layers = Counter(decoder.window_of(layer) for layer in range(decoder.layers))
    return {window: 4.0 * count * decoder.heads * decoder.head_width for window, count in layers.items()}


def _passes(run: RunConfig) -> dict[str, int]:
    """The passes by part. A part with some frozen parameters counts as if it had none; adapters are too thin to count,
    but their gradients go through the layers."""
    full = ("vision", "connector", "decoder") if run.lora is None else run.lora.full
    trained = {part: part in full and part not in run.frozen for part in ("vision", "connector", "decoder")}
    before = trained["vision"] or trained["connector"]
    return {
        "vision": 3 if trained["vision"] else 1,
        "connector": 1 + trained["connector"] + before,
        "decoder": 1 + trained["decoder"] + (before or trained["decoder"] or run.lora is not None),
    }


def layer_parameters(decoder: DecoderConfig, layer: int) -> int:
    """The matrix parameters of a decoder layer that a token goes through: of the experts, its top k."""
    attention = decoder.width * decoder.head_width * (2 * decoder.heads + 2 * decoder.kv_heads)
    feed_forward, sparse = 3 * decoder.width * decoder.mlp_width, decoder.sparse
    if sparse.at(layer):
        return attention + sparse.top_k * feed_forward + decoder.width * sparse.experts
    return attention + feed_forward


def _image_cost(model: ModelConfig, *, with_connector: bool) -> float:
    size = model.vision.image_size
    with torch.device("meta"):
        mllm = MLLM(model).requires_grad_(False)  # torch's counter hooks gradients, which attention pooling has none of
        images_NCYX = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        if with_connector:
            mllm.encode_images(images_NCYX)
        else:
            mllm.vision(images_NCYX)
    return float(counter.get_total_flops())


def _pixel_head_cost(run: RunConfig) -> float:
    """Operations of the head that predicts the pixels of an image, if the run has one."""
    if run.pixels is None:
        return 0.0
    vision = run.model.vision
    with torch.device("meta"):
        head = PixelHead(vision, run.pixels)
    return 2.0 * vision.grid.cells * sum(weight.numel() for weight in head.parameters() if weight.ndim == 2)


@cache
def peak_flops(device: torch.device, precision: torch.dtype) -> float:
    """The device's peak FLOP/s: from its datasheet, or measured now with a matrix product."""
    if device.type == "cuda" and precision == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for part, peak in PEAK.items():
            if part in name:
                return peak
    side = 1024 if device.type == "cpu" else 8192
    left = torch.randn(side, side, device=device, dtype=precision)
    best, ends = float("inf"), time.perf_counter() + 0.5
    while (start := time.perf_counter()) < ends:
        torch.mm(left, left)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


class Meter:
    """Measures steps, each from the end of the one before."""

    def __init__(self, run: RunConfig, *, peak: float):
        """`peak` is that of the device, in FLOP/s."""
        self._costs, self._peak, self._names = costs(run), peak, list(run.data.sources)
        self._image_tokens = run.model.connector.tokens
        self._image = run.model.image_token
        self._last, self._waited = time.perf_counter(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited = time.perf_counter() - start

    def step(self, batches: list[Batch]) -> dict[str, float]:
        """The metrics of a step: throughput of real content, waiting, padding, MFU, memory, sequences and images.

        `flops` is the arithmetic that training on real content needs, `mfu` the same over what the device can do in
        that time; `mfu/vision` is the images' share in it, and `hfu` counts padded positions and images as content.
        """
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        positions = sum(batch.tokens_BT.numel() for batch in batches)
        real = sum(int((batch.document_BT > 0).sum()) for batch in batches)
        images = sum(batch.images for batch in batches)
        vision, possible = self._costs.vision(images), seconds * self._peak
        flops = self._costs.text(batches) + vision
        padded = self._costs.vision(sum(len(batch.images_NCYX) for batch in batches))
        metrics = {
            "step_seconds": seconds,
            "data_wait": self._waited / seconds,
            "tokens_per_second": real / seconds,
            "images_per_second": images / seconds,
            "padding": 1 - real / positions,
            "flops": flops,
            "mfu": flops / possible,
            "mfu/vision": vision / possible,
            "hfu": (self._costs.text(batches, with_padding=True) + padded) / possible,
            "memory_gib": peak_memory() / 2**30,
        }
        for number, name in enumerate(self._names):
            metrics[f"sequences/{name}"] = sum(int((batch.source_B == number).sum()) for batch in batches)
            metrics[f"images/{name}"] = sum(self._images(batch, source=number) for batch in batches)
        return metrics

    def _images(self, batch: Batch, *, source: int) -> int:
        """The tiles in the sequences of a source."""
        mine_B = batch.source_B == source
        is_image_BT = batch.tokens_BT[mine_B] == self._image
        if batch.feature_BT is None:
            return int(is_image_BT.sum()) // self._image_tokens
        return len((batch.feature_BT[mine_B][is_image_BT] // batch.features).unique())

    def restart(self) -> None:
        """Exclude the time since the last step (a checkpoint, a validation) from the next one."""
        self._last = time.perf_counter()


def peak_memory() -> int:
    """The most bytes that this process has held so far: of GPU memory if there is a GPU, else of main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def over_ranks(metrics: list[dict[str, float]]) -> dict[str, float]:
    """The metrics of a run from those of its data ranks: counts and speeds are added, shares averaged; of seconds,
    waiting and memory the largest."""
    merged = {}
    for name in metrics[0]:
        values = [each[name] for each in metrics]
        if name in ("step_seconds", "data_wait", "memory_gib"):
            merged[name] = max(values)
        elif name == "flops" or name.endswith("_per_second") or name.startswith(("sequences/", "images/")):
            merged[name] = sum(values)
        else:
            merged[name] = sum(values) / len(values)
    return merged
