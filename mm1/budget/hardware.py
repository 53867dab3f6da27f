"""How fast devices are: GPUs from a table, this machine's processor by measurement.

1 GB is 10^9 bytes. Peaks are as datasheets print them; the share that is reached was measured by the source beside it
or, where a comment says so, is assumed.
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
from mm1.dist import machine_memory
from mm1.train.meter import PEAK

USABLE_MEMORY = 0.92
"""Assumed share of a GPU's memory for tensors: the driver, NCCL and the allocator's fragmentation take the rest."""

ELEMENTWISE_BANDWIDTH = 0.8
"""Assumed share of a GPU's memory bandwidth that elementwise kernels reach."""

COMPILED_TRAFFIC = 0.5
"""Assumed share of elementwise traffic that remains when blocks are compiled."""

COMPILED_ACTIVATIONS = 0.82
"""Share of the activations that compiled blocks keep without activation checkpointing: the compiler recomputes what is
cheap. Measured on an H200 with the 1.2B base of the ablations: 0.80 with one sequence of 4096, 0.82 with four."""

BLOCK_LAUNCH = 6e-3
"""Seconds in which the host launches a block's forward and backward pass. Measured beside an H200 with the same model:
1.21 s for a step of 4 micro-batches of 48 blocks, with so little work in each that the GPU waited for the host."""

LINK_BANDWIDTH = 0.75
"""Assumed share of a link's bandwidth that collectives reach."""

EXPOSED_COMMUNICATION = 0.2
"""Assumed share of FSDP's communication on GPUs that no arithmetic hides."""

TIMED_GATHERS = 10
"""Collectives that are timed to measure the link between processes."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What one device does in a second and how it is connected: what is reached, not what is printed."""

    memory: float  # bytes that tensors may take
    peak_flops: float  # FLOP/s that MFU is a share of: the datasheet's
    matmul_flops: float  # FLOP/s
    attention_flops: float  # FLOP/s
    memory_bandwidth: float  # bytes/s that all other operations read and write
    node_bandwidth: float  # bytes/s to the other devices of a node, one way
    network_bandwidth: float  # bytes/s to other nodes, one way
    node_size: int  # devices of a node
    compiled_traffic: float = 1.0  # bytes that other operations move in compiled blocks, over those of single kernels
    compiled_activations: float = 1.0  # bytes that compiled blocks keep for the backward pass, over those of others
    exposed_communication: float = EXPOSED_COMMUNICATION  # share of FSDP's communication that no arithmetic hides
    block_launch: float = 0.0  # seconds in which the host launches a block's forward and backward pass
    launch_seconds: float = 0.0  # time of the smallest operation

    def ring_bandwidth(self, ranks: int, *, stride: int) -> float:
        """Bytes/s of a ring over `ranks` ranks, every `stride`-th rank of all. It uses all adapters of a node."""
        if ranks * stride <= self.node_size:
            return self.node_bandwidth
        return min(self.node_bandwidth, self.network_bandwidth * max(1, self.node_size // stride))


@dataclass(frozen=True, slots=True)
class Datasheet:
    """What a GPU's maker prints: bytes and bytes/s. Links are one way: to the node's other GPUs, and to the network."""

    memory: float
    memory_bandwidth: float
    node_bandwidth: float
    network_bandwidth: float


def _gpu(name: str, printed: Datasheet, *, matmul_flops: float, attention_share: float) -> Hardware:
    """The hardware of a GPU; `attention_share` is the share of its peak that attention reaches."""
    return Hardware(
        memory=printed.memory * USABLE_MEMORY,
        peak_flops=PEAK[name],
        matmul_flops=matmul_flops,
        attention_flops=attention_share * PEAK[name],
        memory_bandwidth=printed.memory_bandwidth * ELEMENTWISE_BANDWIDTH,
        node_bandwidth=printed.node_bandwidth * LINK_BANDWIDTH,
        network_bandwidth=printed.network_bandwidth * LINK_BANDWIDTH,
        node_size=8,
        compiled_traffic=COMPILED_TRAFFIC,
        compiled_activations=COMPILED_ACTIVATIONS,
        block_launch=BLOCK_LAUNCH,
    )


# Memory and bandwidths: NVIDIA's datasheets of A100 80GB SXM, H100 SXM, H200 SXM, L40S. They print NVLink's bandwidth
# both ways together; here it is one way. Network: one adapter per GPU, as in NVIDIA's DGX A100 (200 Gb/s), DGX H100
# and H200 (400 Gb/s).
# Matrix products: A100 at its best shape 267.9 TFLOP/s (github.com/stas00/ml-engineering, "Maximum Achievable Matmul
# FLOPS"); H100 at the shapes of language models 720 (SemiAnalysis, "MI300X vs H100 vs H200 Benchmark Part 1: Training",
# 2024); H200 778, measured here: 386 TFLOP of a step in kernels of 496 ms (docs/gpu.md). L40S is assumed to reach 0.7
# of its peak.
# Attention: FlashAttention-2 reaches 50 to 73 % of an A100 (arXiv 2307.08691); FlexAttention is a little slower, 0.9 of
# it are assumed. H200: 163 TFLOP/s, measured here: 25.2 TFLOP of FlashAttention-2 in the encoder and FlexAttention in
# the decoder in 154 ms, forward and deterministic backward passes. H100, the same chip with slower memory, is assumed
# to be as the H200, and L40S as the A100.
GPUS: dict[str, Hardware] = {
    "a100": _gpu("A100", Datasheet(80e9, 2.039e12, 300e9, 25e9), matmul_flops=267.9e12, attention_share=0.55),
    "h100": _gpu("H100", Datasheet(80e9, 3.35e12, 450e9, 50e9), matmul_flops=720e12, attention_share=0.165),
    "h200": _gpu("H200", Datasheet(141e9, 4.8e12, 450e9, 50e9), matmul_flops=778e12, attention_share=0.165),
    "l40s": _gpu("L40S", Datasheet(48e9, 864e9, 32e9, 25e9), matmul_flops=0.7 * PEAK["L40S"], attention_share=0.55),
}


def operation_seconds(ops: Counter[Op], hardware: Hardware) -> float:
    """The time of operations one after the other: each as long as its arithmetic or its bytes, whichever is longer."""
    flops = {"matmul": hardware.matmul_flops, "attention": hardware.attention_flops, "other": float("inf")}
    total = 0.0
    for op, times in ops.items():
        moved = op.moved * (hardware.compiled_traffic if op.kind == "other" else 1)
        seconds = max(op.flops / flops[op.kind], moved / hardware.memory_bandwidth)
        total += times * (seconds + hardware.launch_seconds)
    return total


@dataclass(frozen=True, slots=True)
class Shapes:
    """The shapes of a transformer that a processor is measured with."""

    tokens: int  # of a forward pass
    width: int
    mlp_width: int
    head_width: int
    sequence_length: int


def measure_cpu(shapes: Shapes, *, ranks: int) -> Hardware:
    """This machine's processor as each of `ranks` processes has it when all work at once; takes seconds."""
    if ranks == 1:
        return measure_process(shapes)
    with TemporaryDirectory() as name:
        spawn(_measure_rank, args=(shapes, ranks, name), nprocs=ranks)
        return Hardware(**json.loads((Path(name) / "hardware.json").read_text()))


def _measure_rank(rank: int, shapes: Shapes, ranks: int, folder: str) -> None:
    """Measure beside the other ranks; the first rank writes its result to `folder`."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    store = torch_dist.FileStore(f"{folder}/store", ranks)
    torch_dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    hardware = measure_process(shapes)
    torch_dist.destroy_process_group()
    if rank == 0:
        (Path(folder) / "hardware.json").write_text(json.dumps(asdict(hardware)))


def measure_process(shapes: Shapes) -> Hardware:
    """This process's part of the processor; all ranks of its process group must measure at the same time."""
    ranks = torch_dist.get_world_size() if torch_dist.is_initialized() else 1
    x, up = torch.randn(shapes.tokens, shapes.width), torch.randn(shapes.mlp_width, shapes.width)
    wide = torch.randn(shapes.tokens, shapes.mlp_width)
    sequences = max(1, shapes.tokens // shapes.sequence_length)
    q = torch.randn(1, sequences, shapes.sequence_length, shapes.head_width)
    left, right, out = torch.randn(3, 2**23)  # larger than any cache; allocated before, as in a step
    one, square = torch.ones(1), torch.randn(1024, 1024)
    link = _measure_link(ranks) if ranks > 1 else float("inf")
    products = mean_seconds(lambda: x @ up.T) + mean_seconds(lambda: wide @ up) + mean_seconds(lambda: wide.T @ x)
    attention = mean_seconds(lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True))
    return Hardware(
        memory=machine_memory() / ranks,
        peak_flops=2.0 * 1024**3 / mean_seconds(lambda: torch.mm(square, square)),
        matmul_flops=6.0 * x.numel() * shapes.mlp_width / products,
        attention_flops=2.0 * shapes.sequence_length * q.numel() / attention,
        memory_bandwidth=3 * out.nbytes / mean_seconds(lambda: torch.mul(left, right, out=out)),
        node_bandwidth=link,
        network_bandwidth=link,
        node_size=ranks,
        exposed_communication=1.0,  # gloo does not overlap with arithmetic
        launch_seconds=mean_seconds(lambda: torch.mul(one, one)),
    )


def _measure_link(ranks: int) -> float:
    """Bytes/s that a rank receives from the others."""
    shard = torch.randn(2**20)  # 4 MB, about a block's weights
    gathered = torch.empty(ranks * len(shard))
    torch_dist.all_gather_into_tensor(gathered, shard)
    start = time.perf_counter()
    for _ in range(TIMED_GATHERS):
        torch_dist.all_gather_into_tensor(gathered, shard)
    return TIMED_GATHERS * (ranks - 1) * shard.nbytes / (time.perf_counter() - start)


def mean_seconds(work: Callable[[], object], *, seconds: float = 0.2) -> float:
    """The mean time of a call of `work` after a first one, called for `seconds`."""
    work()
    calls, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        work()
        calls += 1
    return (time.perf_counter() - start) / max(1, calls)
