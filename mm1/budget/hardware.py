"""How fast devices are: of GPUs by table, of this machine's processor by measurement.

Bytes are of 1 GB = 10^9. A datasheet's figure stands as it is printed; what is reached of it was measured by the
source beside it or, where a line says so, assumed.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as torch_dist
import torch.nn.functional as F
from torch.multiprocessing import spawn

from mm1.budget.simulate import Op
from mm1.train.meter import PEAK

SHOWN = 0.2
"""Assumed of GPUs."""

GOES = 10
"""Exchanges that are timed."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What one device does in a second, and how it is tied to others: what is reached, not what is printed."""

    memory: float  # bytes that tensors may take
    peak: float  # FLOP/s of which MFU is a share: the datasheet's
    matmul: float  # FLOP/s
    attention: float  # FLOP/s
    moving: float  # bytes/s that all other operations read and write
    inside: float  # bytes/s to the other devices of a node, one way
    across: float  # bytes/s to other nodes, one way
    node: int  # devices of a node
    fused: float = 1.0  # bytes other operations move once blocks are compiled, over those of one kernel each
    shown: float = SHOWN  # share of gathering and sharing out that no arithmetic hides, however much of it there is
    launch: float = 0.0  # seconds an operation takes however small it is

    def link(self, ranks: int, *, stride: int) -> float:
        """Bytes/s of a ring over `ranks`, of which every `stride`-th rank is one. All adapters of a node carry it."""
        if ranks * stride <= self.node:
            return self.inside
        return min(self.inside, self.across * max(1, self.node // stride))


USABLE = 0.92
"""Assumed share of a GPU's memory for tensors: the rest is the driver's, NCCL's, and what the allocator can't fill."""

MOVING = 0.8
"""Assumed share of a GPU's memory bandwidth that elementwise kernels reach."""

FUSED = 0.5
"""Assumed share of elementwise traffic that is left when blocks are compiled."""

LINKS = 0.75
"""Assumed share of a link's bandwidth that collectives reach."""


def _gpu(
    name: str, memory: float, *, matmul: float, attention: float, moving: float, links: tuple[float, float]
) -> Rates:
    """Of a card with `memory` bytes: matmul in FLOP/s, attention as a share of the peak, the rest as printed."""
    inside, across = links
    return Rates(
        memory=memory * USABLE,
        peak=PEAK[name],
        matmul=matmul,
        attention=attention * PEAK[name],
        moving=moving * MOVING,
        inside=inside * LINKS,
        across=across * LINKS,
        node=8,
        fused=FUSED,
    )


# Memory and bandwidths: NVIDIA's datasheets of A100 80GB SXM, H100 SXM, H200 SXM, L40S. NVLink's are printed both ways
# together, here one way. Network: one adapter a GPU, as in NVIDIA's DGX A100 (200 Gb/s), DGX H100 and H200 (400 Gb/s).
# Matrix products: A100 at its best shape 267.9 TFLOP/s (github.com/stas00/ml-engineering, "Maximum Achievable Matmul
# FLOPS"); H100 and H200 at the shapes of language models 720 (SemiAnalysis, "MI300X vs H100 vs H200 Benchmark Part 1:
# Training", 2024); L40S assumed, 0.7 of its peak.
# Attention: FlashAttention-2 reaches 50 to 73 % of an A100 (arXiv 2307.08691), 35 % of an H100 (arXiv 2407.08608). Of
# these 0.9 are assumed, as FlexAttention is a little slower; L40S assumed as A100.
GPUS: dict[str, Rates] = {
    "a100": _gpu("A100", 80e9, matmul=267.9e12, attention=0.55, moving=2.039e12, links=(300e9, 25e9)),
    "h100": _gpu("H100", 80e9, matmul=720e12, attention=0.31, moving=3.35e12, links=(450e9, 50e9)),
    "h200": _gpu("H200", 141e9, matmul=720e12, attention=0.31, moving=4.8e12, links=(450e9, 50e9)),
    "l40s": _gpu("L40S", 48e9, matmul=0.7 * PEAK["L40S"], attention=0.55, moving=864e9, links=(32e9, 25e9)),
}


def seconds(ops: Counter[Op], rates: Rates) -> float:
    """The time of operations one after the other: each as long as its arithmetic or its bytes, whatever is longer."""
    flops = {"matmul": rates.matmul, "attention": rates.attention, "other": float("inf")}
    total = 0.0
    for op, times in ops.items():
        moved = op.moved * (rates.fused if op.kind == "other" else 1)
        total += times * (max(op.flops / flops[op.kind], moved / rates.moving) + rates.launch)
    return total


@dataclass(frozen=True, slots=True)
class Shapes:
    """Of a decoder: places that go through it at a time, its widths, places of a row."""

    places: int
    width: int
    mlp_width: int
    head_width: int
    row: int


def measured(shapes: Shapes, *, ranks: int) -> Rates:
    """This machine's processor as each of `ranks` processes has it when all work at once; in seconds."""
    if ranks == 1:
        return measured_here(shapes)
    with TemporaryDirectory() as name:
        spawn(_beside, args=(shapes, ranks, name), nprocs=ranks)
        return Rates(**json.loads((Path(name) / "rates.json").read_text()))


def _beside(rank: int, shapes: Shapes, ranks: int, folder: str) -> None:
    """The part of one rank; the first writes down what it found."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    store = torch_dist.FileStore(f"{folder}/store", ranks)
    torch_dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    found = measured_here(shapes)
    torch_dist.destroy_process_group()
    if rank == 0:
        (Path(folder) / "rates.json").write_text(json.dumps(asdict(found)))


def measured_here(shapes: Shapes) -> Rates:
    """What this process has of the processor; every rank of its process group must measure at the same time."""
    ranks = torch_dist.get_world_size() if torch_dist.is_initialized() else 1
    x, up = torch.randn(shapes.places, shapes.width), torch.randn(shapes.mlp_width, shapes.width)
    wide = torch.randn(shapes.places, shapes.mlp_width)
    q = torch.randn(1, max(1, shapes.places // shapes.row), shapes.row, shapes.head_width)
    left, right, out = torch.randn(3, 2**23)  # of what no cache holds; memory that is there, as in a step
    one, square = torch.ones(1), torch.randn(1024, 1024)
    link = _link(ranks) if ranks > 1 else float("inf")
    return Rates(
        memory=_memory() / ranks,
        peak=2.0 * 1024**3 / pace(lambda: torch.mm(square, square)),
        matmul=6.0
        * x.numel()
        * shapes.mlp_width
        / (pace(lambda: x @ up.T) + pace(lambda: wide @ up) + pace(lambda: wide.T @ x)),
        attention=2.0 * shapes.row * q.numel() / pace(lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True)),
        moving=3 * out.nbytes / pace(lambda: torch.mul(left, right, out=out)),
        inside=link,
        across=link,
        node=ranks,
        shown=1.0,  # gloo lets nothing go on beside it
        launch=pace(lambda: torch.mul(one, one)),
    )


def _link(ranks: int) -> float:
    """Bytes/s that a rank gets from the others."""
    sent = torch.randn(2**20)  # 4 MB, as a block's weights
    got = torch.empty(ranks * len(sent))
    torch_dist.all_gather_into_tensor(got, sent)
    begun = time.perf_counter()
    for _ in range(GOES):
        torch_dist.all_gather_into_tensor(got, sent)
    return GOES * (ranks - 1) * sent.nbytes / (time.perf_counter() - begun)


def pace(work: Callable[[], object], *, seconds: float = 0.2) -> float:
    """The mean time that `work` takes once warm, with whatever else runs here."""
    work()
    goes, begun = 0, time.perf_counter()
    while time.perf_counter() < begun + seconds:
        work()
        goes += 1
    return (time.perf_counter() - begun) / max(1, goes)


def _memory() -> float:
    """Bytes of this machine."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
