"""How fast a run goes: tokens, images, waiting, and the share of the machine's arithmetic it uses."""

import resource
import sys
import time
from dataclasses import dataclass
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from mm1.config.model import DecoderConfig, ModelConfig
from mm1.config.run import RunConfig
from mm1.document import IGNORED, Batch
from mm1.model.mllm import MLLM

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}
"""Dense bf16 FLOP/s by a part of the device's name (NVIDIA's datasheets, without sparsity)."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Floating point operations of the forward pass, per unit of real content; and passes that training costs.

    One pass forward; one back through the layers if this part or one before it learns; one more for what learns.
    """

    token: float  # one place through the decoder's matrices
    pair: float  # one place looking at one earlier place of its document
    prediction: float  # the logits of one trained place
    encoder: float  # one picture through the encoder
    connector: float  # one picture through the connector
    passes: dict[str, int]  # by part: 1 to 3

    def vision(self, images: int) -> float:
        """Training on pictures, encoder and connector."""
        return images * (self.encoder * self.passes["vision"] + self.connector * self.passes["connector"])

    def text(self, batches: list[Batch], *, with_padding: bool = False) -> float:
        """Training the decoder, its padding through the matrices too if asked for."""
        total = 0.0
        for batch in batches:
            real = batch.document_BT > 0
            total += self.token * (real.numel() if with_padding else int(real.sum()))
            total += self.pair * int(((batch.position_BT + 1) * real).sum())
            total += self.prediction * int((batch.targets_BT != IGNORED).sum())
        return total * self.passes["decoder"]


def costs(run: RunConfig) -> Costs:
    """The costs of a run's model; the picture's are counted by torch on a model without memory."""
    decoder, is_text = run.model.decoder, run.objective == "next_token"
    encoder = _image_cost(run.model, with_connector=False)
    return Costs(
        token=2.0 * sum(layer_parameters(decoder, layer) for layer in range(decoder.layers)),
        pair=4.0 * decoder.layers * decoder.heads * decoder.head_width,
        prediction=2.0 * decoder.width * decoder.vocabulary if is_text else 0.0,
        encoder=encoder,
        connector=_image_cost(run.model, with_connector=True) - encoder if is_text else 0.0,
        passes=_passes(run.frozen),
    )


def _passes(frozen: list[str]) -> dict[str, int]:
    """Of a part that is frozen in part only, as if it were not."""
    learns = {part: part not in frozen for part in ("vision", "connector", "decoder")}
    behind = learns["vision"] or learns["connector"]
    return {
        "vision": 3 if learns["vision"] else 1,
        "connector": 1 + learns["connector"] + behind,
        "decoder": 1 + learns["decoder"] + (behind or learns["decoder"]),
    }


def layer_parameters(decoder: DecoderConfig, layer: int) -> int:
    """The matrix parameters of one decoder layer that a place goes through: of experts only the chosen."""
    attention = decoder.width * decoder.head_width * (2 * decoder.heads + 2 * decoder.kv_heads)
    feed_forward, sparse = 3 * decoder.width * decoder.mlp_width, decoder.sparse
    if sparse.at(layer):
        return attention + sparse.top_k * feed_forward + decoder.width * sparse.experts
    return attention + feed_forward


def _image_cost(model: ModelConfig, *, with_connector: bool) -> float:
    size = model.vision.image_size
    with torch.device("meta"):
        mllm = MLLM(model)
        images_NCYX = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        if with_connector:
            mllm.encode_images(images_NCYX)
        else:
            mllm.vision(images_NCYX)
    return float(counter.get_total_flops())


@cache
def peak_flops(device: torch.device, precision: torch.dtype) -> float:
    """FLOP/s the device can do: from its datasheet, or measured with a matrix product here."""
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
    """Figures of each step, from the moment the one before ended."""

    def __init__(self, run: RunConfig, *, peak: float):
        """`peak` is what the device can do, in FLOP/s."""
        self._costs, self._peak, self._names = costs(run), peak, list(run.data.sources)
        self._image_tokens = run.model.connector.tokens
        self._image = run.model.image_token
        self._last = time.perf_counter()

    def step(self, batches: list[Batch], *, waited: float) -> dict[str, float]:
        """Throughput of real content, waiting, padding, MFU, memory, and what the step was made of.

        `mfu` is the arithmetic that training on real content needs, over what the device can do in that time;
        `mfu/vision` is the pictures' part of it, `hfu` counts padded places and pictures as content.
        """
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        places = sum(batch.tokens_BT.numel() for batch in batches)
        real = sum(int((batch.document_BT > 0).sum()) for batch in batches)
        images = sum(batch.images for batch in batches)
        vision, able = self._costs.vision(images), seconds * self._peak
        padded = self._costs.vision(sum(len(batch.images_NCYX) for batch in batches))
        figures = {
            "step_seconds": seconds,
            "data_wait": waited / seconds,
            "tokens_per_second": real / seconds,
            "images_per_second": images / seconds,
            "padding": 1 - real / places,
            "mfu": (self._costs.text(batches) + vision) / able,
            "mfu/vision": vision / able,
            "hfu": (self._costs.text(batches, with_padding=True) + padded) / able,
            "memory_gib": peak_memory() / 2**30,
        }
        for number, name in enumerate(self._names):
            rows = [batch.tokens_BT[batch.source_B == number] for batch in batches]
            figures[f"sequences/{name}"] = sum(len(part) for part in rows)
            figures[f"images/{name}"] = sum(int((part == self._image).sum()) for part in rows) // self._image_tokens
        return figures

    def restart(self) -> None:
        """Leave what happened since the last step (a checkpoint, a validation) out of the next one."""
        self._last = time.perf_counter()


def peak_memory() -> int:
    """The most bytes this process has held so far: of the GPU if there is one, else of main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def over_ranks(figures: list[dict[str, float]]) -> dict[str, float]:
    """The figures of ranks with rows of their own as the run's: counts and speeds added, shares averaged, the most
    of seconds, waiting and memory."""
    found = {}
    for name in figures[0]:
        values = [each[name] for each in figures]
        if name in ("step_seconds", "data_wait", "memory_gib"):
            found[name] = max(values)
        elif name.endswith("_per_second") or name.startswith(("sequences/", "images/")):
            found[name] = sum(values)
        else:
            found[name] = sum(values) / len(values)
    return found
