"""What the parts of `gpu.py` share: the record of figures, clocks, synthetic sequences, models with random weights."""

import gc
import itertools
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np
import torch

from mm1 import dist
from mm1.config.model import ModelConfig, SparseConfig
from mm1.config.run import DataConfig, OptimConfig, RunConfig, SourceConfig
from mm1.document import IGNORED, Batch, trained_positions
from mm1.model import sizes
from mm1.model.mllm import MLLM

IMAGE = 3
"""The id of the image token in synthetic sequences."""


@dataclass(slots=True)
class Figures:
    """The figures so far; each is a line of JSON on standard output and in the file `to` as soon as it is known."""

    tiny: bool
    to: Path | None = None
    device: torch.device = field(default_factory=dist.device)
    values: dict[str, tuple[float, str]] = field(default_factory=dict)  # value and unit by name
    predicted: dict[str, float] = field(default_factory=dict)  # what `mm1 budget` says, by name
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="mm1-gpu-")))

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def card(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.on_gpu else "cpu"

    def add(self, name: str, value: float, unit: str = "", *, detail: str = "") -> None:
        """Record a figure."""
        self.values[name] = (value, unit)
        self._write({"name": name, "value": value, "unit": unit}, detail=detail)

    def fail(self, part: str, error: str) -> None:
        """Record that a part ended with this error."""
        self._write({"name": f"{part}: FAILED", "value": None, "unit": ""}, detail=error)

    def _write(self, figure: dict, *, detail: str) -> None:
        figure |= {"card": self.card, "torch": torch.__version__, "date": date.today().isoformat()}
        figure["command"] = shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]])
        if detail:
            figure["detail"] = detail
        line = json.dumps(figure)
        print(line, flush=True)
        if self.to:
            with self.to.open("a") as file:
                file.write(line + "\n")

    def wait(self) -> None:
        """Return when the device has done all that it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], *, rounds: int = 5, warm: int = 2) -> float:
        """The median time of a call, after `warm` calls that don't count."""
        times = []
        for _ in range(warm + rounds):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            times.append(time.perf_counter() - start)
        return median(times[warm:])

    def forget(self) -> None:
        """Free what nobody holds any more, and count the peak of memory from here on."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def add_peak(self, name: str) -> None:
        """Record the most memory of the GPU that tensors took since `forget`; nothing on a CPU."""
        if self.on_gpu:
            self.add(name, torch.cuda.max_memory_allocated() / 2**30, "GiB")


def base_model(tiny: bool) -> ModelConfig:
    """The base of the ablations (1.2B, ViT-L/14 at 336 pixels), or the demo's model."""
    model = sizes.tiny() if tiny else sizes.ablation_base()
    model.image_token_id = IMAGE
    return model


def synthetic_run(model: ModelConfig, *, micro_batches: int = 4, micro_batch_size: int = 1) -> RunConfig:
    """A run of this model whose sequences are made here."""
    small = model.decoder.width < 512
    return RunConfig(
        model=model,
        data=DataConfig(
            sources={"all": SourceConfig(store="none")},
            sequence_length=256 if small else 4096,
            max_images=8 if small else 16,
        ),
        optim=OptimConfig(learning_rate=1e-4),
        steps=1000,
        batch_size=micro_batches * micro_batch_size,
        micro_batch_size=micro_batch_size,
        health_every=0,
    )


def sparse_model(tiny: bool) -> ModelConfig:
    """A decoder of 302 M with 8 experts in every second layer behind the base's encoder, or the demo's model so."""
    model = base_model(tiny)
    if not tiny:
        model.decoder = sizes.decoder_302m()
    model.decoder.sparse = SparseConfig(experts=8, every=2, load_balance_weight=0.01, router_z_weight=0.001)
    return model


def sequences(run: RunConfig, images: list[int], *, seed: int, documents: int = 4) -> Batch:
    """Full sequences of random tokens, each with so many images at the beginnings of its documents."""
    random, data, size = np.random.default_rng(seed), run.data, run.model.vision.image_size
    tokens_BT = random.integers(16, run.model.decoder.vocabulary, (len(images), data.sequence_length))
    document_BT, position_BT = np.zeros_like(tokens_BT), np.zeros_like(tokens_BT)
    edges = np.linspace(0, data.sequence_length, documents + 1).astype(int)
    for sequence, count in enumerate(images):
        for number, (first, last) in enumerate(itertools.pairwise(edges), start=1):
            of_document = count // documents + (number <= count % documents)
            tokens_BT[sequence, first : first + of_document * run.model.connector.tokens] = IMAGE
            document_BT[sequence, first:last] = number
            position_BT[sequence, first:last] = np.arange(last - first)
    targets_BT = np.full_like(tokens_BT, IGNORED)
    trained = (document_BT[:, 1:] == document_BT[:, :-1]) & (tokens_BT[:, 1:] != IMAGE)
    targets_BT[:, :-1] = np.where(trained, tokens_BT[:, 1:], IGNORED)
    pixels = random.integers(0, 256, (max(1, sum(images)), 3, size, size), dtype=np.uint8)
    targets = torch.from_numpy(targets_BT)
    return Batch(
        tokens_BT=torch.from_numpy(tokens_BT),
        targets_BT=targets,
        document_BT=torch.from_numpy(document_BT),
        position_BT=torch.from_numpy(position_BT),
        images_NCYX=torch.from_numpy(pixels),
        images=sum(images),
        source_B=torch.zeros(len(images), dtype=torch.int64),
        sequence_B=torch.arange(len(images)),
        trained_R=trained_positions(targets),
    )


@torch.no_grad()
def random_weights(model: MLLM) -> MLLM:
    """The model with random weights, drawn where it is."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            parameter.fill_(1.0)
        else:
            parameter.normal_(0, 0.02)
    return model.eval()
