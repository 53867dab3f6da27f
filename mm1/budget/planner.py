"""What a run will take before anything is paid for: memory of a rank, arithmetic, time; and a layout that fits.

Activations and operations come from `simulate`, of one row (or of a real batch) in the shapes one rank has; what is
spread over ranks, gathered and sent is counted here. `docs/budget.md` says what is assumed.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal, NamedTuple

import torch

from mm1.budget.hardware import Rates, seconds
from mm1.budget.simulate import PARTS, Op, Segment, simulate
from mm1.config.base import ConfigError
from mm1.config.model import DecoderConfig
from mm1.config.run import RunConfig
from mm1.document import IGNORED, Batch
from mm1.model.mllm import MLLM
from mm1.train.meter import costs
from mm1.train.parallel import Layout, spread
from mm1.train.parameters import freeze, named_by

GRADIENT, MOMENTS, WEIGHT = 4, 8, 4
"""Bytes a trained number takes in fp32 beside its weight: its gradient, AdamW's two moments."""

SPLIT = re.compile(r"decoder\.blocks\.\d+\.(attention\.(query|key|value|out)|feed_forward\.(gate|up|down))\.weight")
"""Matrices that tensor parallelism cuts."""


class Setup(NamedTuple):
    """How the ranks share the work, as in `ParallelConfig`, and the rows of one forward pass."""

    dp_replicate: int = 1
    dp_shard: int = 1
    tp: int = 1
    ep: int = 1
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    micro_batch_size: int = 1

    @property
    def ranks(self) -> int:
        return self.dp_replicate * self.dp_shard * self.tp

    @property
    def readers(self) -> int:
        """Ranks, or groups that share their rows, with rows of their own."""
        return self.dp_replicate * self.dp_shard

    def overrides(self) -> str:
        """The words to give `mm1 train`."""
        names = ("dp_replicate", "dp_shard", "tp", "ep", "activation_checkpointing")
        return " ".join(
            [*(f"parallel.{name}={getattr(self, name)}" for name in names), f"micro_batch_size={self.micro_batch_size}"]
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """What one layout takes. Bytes and seconds are those of one rank; FLOPs those of the whole step, forward."""

    setup: Setup
    memory: dict[str, float]  # bytes when most are alive, by what they hold
    limit: float  # bytes tensors may take
    flops: dict[str, float]  # by part
    seconds: dict[str, float]  # of a step, by what takes them
    mfu: float
    steps: int

    @property
    def bytes(self) -> float:
        return sum(self.memory.values())

    @property
    def step(self) -> float:
        return sum(self.seconds.values())

    @property
    def fits(self) -> bool:
        return self.bytes <= self.limit

    @property
    def days(self) -> float:
        return self.step * self.steps / 86_400

    @property
    def hours(self) -> float:
        """Of all ranks together."""
        return self.days * 24 * self.setup.ranks


class Weight(NamedTuple):
    """One tensor of the model."""

    name: str
    shape: tuple[int, ...]
    trained: bool

    @property
    def unit(self) -> str:
        """What is gathered together: a block, the rest of the encoder, the connector, or all that is in none."""
        found = re.match(r"(vision|decoder)\.blocks\.\d+|vision|connector", self.name)
        return found[0] if found else ""

    def held(self, setup: Setup) -> int:
        """Numbers of it that a rank works with, all shards gathered."""
        return self._cut(setup) * prod(self.shape[1:])

    def kept(self, setup: Setup) -> int:
        """Numbers of it that a rank keeps: the first rank's, which has the longest part."""
        return -(-self._cut(setup) // self.spread(setup)) * prod(self.shape[1:])

    def spread(self, setup: Setup) -> int:
        """Ranks it is gathered from."""
        return setup.dp_shard // setup.ep if ".experts." in self.name else setup.dp_shard

    def _cut(self, setup: Setup) -> int:
        """Its first axis without what other ranks of the tensor and expert groups have."""
        first = self.shape[0] if self.shape else 1
        if ".experts." in self.name:
            return first // setup.ep
        return first // setup.tp if SPLIT.fullmatch(self.name) else first


class Sizes(NamedTuple):
    """Numbers of a unit on one rank: gathered, of these from other ranks; kept; and the same of what is trained."""

    held: int
    sent: float
    kept: int
    trained_held: int
    trained_kept: int


class Planner:
    """Budgets of one run, in any layout, on one kind of device."""

    def __init__(self, run: RunConfig, rates: Rates, *, precision: torch.dtype, batch: Batch | None = None):
        """`batch` is a real micro-batch in place of a full one, which has `max_images` images in each row."""
        if run.objective != "next_token":
            raise ConfigError(f"objective {run.objective} has no budget; only next_token has one")
        self.run, self.rates, self.precision, self.batch = run, rates, precision, batch
        with torch.device("meta"):
            mllm = MLLM(run.model)
        freeze(mllm, run.frozen)
        self.units: dict[str, list[Weight]] = {"": []}
        for name, parameter in mllm.named_parameters():
            weight = Weight(name, tuple(parameter.shape), parameter.requires_grad)
            self.units.setdefault(weight.unit, []).append(weight)
        self._loss_passes = costs(run).passes["decoder"]  # all done forward: the loss makes its gradients at once
        self._simulated: dict[Any, list[Segment]] = {}
        self._sizes: dict[Setup, dict[str, Sizes]] = {}

    def budget(self, setup: Setup) -> Budget:
        """What the layout takes; it may not fit."""
        segments = self._segments(setup)
        flops: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        for segment in segments:
            if not segment.backward:
                split = setup.tp if segment.part == "decoder" and segment.block is not None else 1
                flops[segment.part] += segment.flops() * self._share(segment) * split
        micro_batches = self.run.batch_size / setup.micro_batch_size
        flops = {part: value * micro_batches for part, value in flops.items()}
        flops["logits"] /= self._loss_passes
        seconds = self._seconds(setup, segments)
        done = 3 * sum(flops.values()) / (sum(seconds.values()) * setup.ranks * self.rates.peak)
        memory = self._memory(setup, segments)
        return Budget(setup, memory, self.rates.memory, flops, seconds, done, self.run.steps)

    def least(self, setup: Setup) -> float:
        """Bytes of weights, gradients and moments alone."""
        return sum(self._fixed(setup).values())

    def _segments(self, setup: Setup) -> list[Segment]:
        """One micro-batch on one rank. Rows are alike, so those of a full batch are simulated once and multiplied."""
        key = (setup.tp, setup.activation_checkpointing, setup.ranks == 1)
        if key not in self._simulated:
            local = _local(self.run, setup)
            self._simulated[key] = simulate(
                local,
                self.batch or full_rows(self.run, 1),
                weights=torch.float32 if setup.ranks == 1 else self.precision,
                precision=self.precision,
                prepare=lambda mllm: _prepare(mllm, local, self.precision),
            )
        return [_times(segment, 1 if self.batch else setup.micro_batch_size) for segment in self._simulated[key]]

    def _share(self, segment: Segment) -> float:
        """Of the encoder's and the connector's work what a mean row has: half of its places, if it has room for that.

        MM1 has about as many image tokens as text tokens (section 4); memory is that of a row with all its images.
        """
        data = self.run.data
        if self.batch or segment.part not in ("encoder", "connector") or not data.max_images:
            return 1.0
        return min(1.0, data.sequence_length / 2 / self.run.model.connector.tokens / data.max_images)

    def _unit_sizes(self, setup: Setup) -> dict[str, Sizes]:
        """Of every unit; "" is what is in no block."""
        key = setup._replace(dp_replicate=1, activation_checkpointing="none", micro_batch_size=1)
        if key not in self._sizes:
            self._sizes[key] = {name: _sizes(unit, setup) for name, unit in self.units.items()}
        return self._sizes[key]

    def _fixed(self, setup: Setup) -> dict[str, float]:
        """Bytes that no activation is needed for."""
        sizes = self._unit_sizes(setup).values()
        trained = sum(unit.trained_kept for unit in sizes)
        kept = sum(unit.kept for unit in sizes)
        return {"weights": kept * WEIGHT, "gradients": trained * GRADIENT, "moments": trained * MOMENTS}

    def _memory(self, setup: Setup, segments: list[Segment]) -> dict[str, float]:
        """Bytes alive at the worst moment of a micro-batch, with the gradients of the ones before it, if any."""
        sizes, fixed = self._unit_sizes(setup), self._fixed(setup)
        again = self.run.batch_size > setup.micro_batch_size * setup.readers
        gradients = fixed["gradients"] if again else 0
        alive: defaultdict[str, float] = defaultdict(float)
        through: set[str] = set()
        worst = {"gradients": fixed["gradients"]}  # at the optimizer's step
        for segment in segments:
            name = _unit(segment)
            unit = sizes[name]
            now = alive.copy()
            now["logits" if segment.part == "logits" else "at work"] += segment.rise
            now["gathered"] += self._gathered(setup, sizes[""], unit=unit, backward=segment.backward)
            now["gradients"] += gradients
            if sum(now.values()) > sum(worst.values()):
                worst = dict(now)
            alive[f"kept of {segment.part}"] += segment.change
            if segment.backward and not again and name and name not in through:
                gradients += unit.trained_kept * GRADIENT
                through.add(name)
        return fixed | {"images": float(self._images(setup)), "gradients": 0.0} | worst

    def _images(self, setup: Setup) -> int:
        batch = self.batch or full_rows(self.run, 1)
        return batch.images_NCYX.numel() * (1 if self.batch else setup.micro_batch_size)

    def _gathered(self, setup: Setup, rest: Sizes, *, unit: Sizes, backward: bool) -> float:
        """Bytes of whole weights and gradients of FSDP: of the block at work and the next, and of what is in none."""
        if setup.ranks == 1:
            return 0.0
        size = self.precision.itemsize
        whole = rest.held * size
        if unit is not rest:
            whole += unit.held * size * 2 + (unit.trained_held * (size + GRADIENT) if backward else 0)
        return whole

    def _seconds(self, setup: Setup, segments: list[Segment]) -> dict[str, float]:
        """Of a step: arithmetic by part, what of the exchange does not hide behind it, and the optimizer."""
        sizes = self._unit_sizes(setup)
        through = set()
        found: dict[str, float] = dict.fromkeys((*PARTS, "exchange", "optimizer"), 0.0)
        for segment in segments:
            work = seconds(segment.ops, self.rates) * self._share(segment)
            found[segment.part] += work
            if (name := _unit(segment), segment.backward) not in through:
                through.add((name, segment.backward))
                sharding = self._sharding(setup, sizes[name], backward=segment.backward)
                found["exchange"] += max(sharding - work, self.rates.shown * sharding)
            if segment.part == "decoder" and segment.block is not None:
                found["exchange"] += self._inside(setup, segment.block)
        micro_batches = self.run.batch_size // (setup.micro_batch_size * setup.readers)
        found = {name: value * micro_batches for name, value in found.items()}
        trained = sum(unit.trained_kept for unit in sizes.values())
        # AdamW reads weight, gradient and moments and writes all but the gradient; the norm reads the gradient
        found["optimizer"] = trained * 8 * 4 / self.rates.moving
        return found

    def _sharding(self, setup: Setup, unit: Sizes, *, backward: bool) -> float:
        """Seconds to gather a block's weights, and on the way back to add up and share out its gradients."""
        sent = unit.sent * (self.precision.itemsize + (GRADIENT if backward else 0))
        found = sent / self.rates.link(setup.dp_shard, stride=setup.tp)
        if backward:
            summed = 2 * unit.trained_kept * GRADIENT * (1 - 1 / setup.dp_replicate)
            found += summed / self.rates.link(setup.dp_replicate, stride=setup.dp_shard * setup.tp)
        return found

    def _inside(self, setup: Setup, block: int) -> float:
        """Seconds of what a block's ranks send each other in one direction, with nothing to hide it behind.

        Tensor: the outputs of attention and feed-forward are added up, on the way back the gradients of their inputs.
        Experts: each assignment goes to its expert's rank and back.
        """
        places = (
            setup.micro_batch_size
            * self.run.data.sequence_length
            * self.run.model.decoder.width
            * self.precision.itemsize
        )
        found = 4 * places * (1 - 1 / setup.tp) / self.rates.link(setup.tp, stride=1)
        if self.run.model.decoder.sparse.at(block) and setup.ep > 1:
            near = setup.ep * setup.tp <= self.rates.node
            sent = 2 * self.run.model.decoder.sparse.top_k * places * (1 - 1 / setup.ep)
            found += sent / (self.rates.inside if near else self.rates.across)
        return found


def full_rows(run: RunConfig, rows: int) -> Batch:
    """Full rows of one document each, with as many images as a row may have; all that is no image is trained."""
    data, size = run.data, run.model.vision.image_size
    images = rows * data.max_images
    document_BT = torch.ones(rows, data.sequence_length, dtype=torch.int64)
    targets_BT = torch.ones_like(document_BT)
    targets_BT[:, : min(data.sequence_length, data.max_images * run.model.connector.tokens)] = IGNORED
    return Batch(
        tokens_BT=torch.zeros_like(document_BT),
        targets_BT=targets_BT,
        document_BT=document_BT,
        position_BT=torch.arange(data.sequence_length).repeat(rows, 1),
        images_NCYX=torch.zeros(max(1, images), 3, size, size, dtype=torch.uint8),
        images=images,
        source_B=torch.zeros(rows, dtype=torch.int64),
    )


def _local(run: RunConfig, setup: Setup) -> RunConfig:
    """The run in the shapes of one rank."""
    local = run.model_copy(deep=True)
    local.compile = "never"  # what compiled code would keep is not known before it is compiled
    local.parallel.activation_checkpointing = setup.activation_checkpointing
    decoder = local.model.decoder
    decoder.heads //= setup.tp
    decoder.kv_heads //= setup.tp
    if not decoder.sparse.experts:  # whose matrices are not cut
        decoder.mlp_width //= setup.tp
    return local


def _prepare(mllm: MLLM, run: RunConfig, precision: torch.dtype) -> None:
    """What a run does to the model of a rank that is alone."""
    freeze(mllm, [pattern for pattern in run.frozen if named_by(pattern, dict(mllm.named_parameters()))])
    spread(mllm, run, over=Layout(1, 1, 1, 1, None, None), precision=precision)


def _times(segment: Segment, rows: int) -> Segment:
    """The segment of so many rows."""
    ops = Counter({Op(op.kind, op.flops * rows, op.moved * rows): times for op, times in segment.ops.items()})
    return replace(segment, ops=ops, change=segment.change * rows, rise=segment.rise * rows)


def _sizes(unit: list[Weight], setup: Setup) -> Sizes:
    trained = [weight for weight in unit if weight.trained]
    return Sizes(
        held=sum(weight.held(setup) for weight in unit),
        sent=sum(weight.held(setup) * (1 - 1 / weight.spread(setup)) for weight in unit),
        kept=sum(weight.kept(setup) for weight in unit),
        trained_held=sum(weight.held(setup) for weight in trained),
        trained_kept=sum(weight.kept(setup) for weight in trained),
    )


def _unit(segment: Segment) -> str:
    """What a segment needs the weights of, as `Weight.unit`."""
    room = {"encoder": "vision", "connector": "connector", "decoder": "decoder", "logits": ""}[segment.part]
    if segment.block is not None:
        return f"{room}.blocks.{segment.block}"
    return "" if room == "decoder" else room


def setups(run: RunConfig, ranks: int, *, node: int) -> Iterator[Setup]:
    """Every layout of so many ranks that `parallel.layout` takes."""
    decoder = run.model.decoder
    for tp in (1, 2, 4, 8):
        cut = (decoder.heads, decoder.kv_heads, decoder.mlp_width)
        if tp > node or ranks % tp or any(size % tp for size in cut):
            continue
        readers = ranks // tp
        for dp_shard in divisors(readers):
            for ep in divisors(dp_shard) if decoder.sparse.experts else [1]:
                for rows in divisors(run.batch_size // readers) if run.batch_size % readers == 0 else []:
                    if ep == 1 or _deals_evenly(decoder, ep, rest=dp_shard // ep):
                        for kind in ("none", "selective", "full"):
                            yield Setup(readers // dp_shard, dp_shard, tp, ep, kind, rows)


def _deals_evenly(decoder: DecoderConfig, ep: int, *, rest: int) -> bool:
    """Whether `ep` ranks get as many experts each, and `rest` ranks as many rows of each one's matrices."""
    return not (decoder.sparse.experts % ep or decoder.mlp_width % rest or decoder.width % rest)


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def fastest(planner: Planner, ranks: int) -> Budget | None:
    """The budget of the fastest layout that fits; none if none does."""
    found = None
    for setup in setups(planner.run, ranks, node=planner.rates.node):
        if planner.least(setup) > planner.rates.memory:
            continue
        budget = planner.budget(setup)
        if budget.fits and (found is None or budget.step < found.step):
            found = budget
    return found
