"""The memory of a rank, the arithmetic and the time that a run will take; and the fastest layout that fits.

Activations and operations come from `simulate`, for one sequence (or a real batch) in the shapes that one rank has.
What is sharded, gathered and sent is counted here. `docs/budget.md` lists the assumptions.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from mm1.budget.contrast import Contrast
from mm1.budget.hardware import Hardware, operation_seconds
from mm1.budget.objectives import model_of
from mm1.budget.parallel_layout import ParallelLayout, layouts
from mm1.budget.sharding import UnitSizes, Weight, unit_sizes
from mm1.budget.simulate import MODEL_PARTS, Op, StepSegment, simulate
from mm1.config.run import RunConfig
from mm1.document import IGNORED, Batch
from mm1.train.adapters import add_adapters, check_adapters
from mm1.train.meter import costs
from mm1.train.parallel import ParallelDims, parallelize
from mm1.train.parameters import freeze, matching

GRADIENT, MOMENTS, WEIGHT = 4, 8, 4
"""Bytes of a trained number in fp32: its gradient, AdamW's two moments, its weight."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run takes in one layout: bytes and seconds of one rank, forward FLOPs of the whole step."""

    layout: ParallelLayout
    memory: dict[str, float]  # bytes when most are alive, by what they hold
    limit: float  # bytes that tensors may take
    flops: dict[str, float]  # by part of the model
    seconds: dict[str, float]  # of a step, by what takes the time
    mfu: float
    steps: int

    @property
    def bytes(self) -> float:
        return sum(self.memory.values())

    @property
    def step_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def fits(self) -> bool:
        return self.bytes <= self.limit

    @property
    def days(self) -> float:
        return self.step_seconds * self.steps / 86_400

    @property
    def gpu_hours(self) -> float:
        """Hours of all ranks together."""
        return self.days * 24 * self.layout.ranks


class Planner:
    """Budgets of one run on one kind of hardware, in any layout."""

    def __init__(self, run: RunConfig, hardware: Hardware, *, precision: torch.dtype, batch: Batch | None = None):
        """`batch` is a real micro-batch; without it sequences are full, with `max_images` images each."""
        self.run, self.hardware, self.precision, self.batch = run, hardware, precision, batch
        check_adapters(run)
        with torch.device("meta"):
            model = model_of(run, run.model)
        if run.lora is not None:
            add_adapters(model, run.lora)
        freeze(model, run.frozen)
        self.units: dict[str, list[Weight]] = {"": []}
        for name, parameter in model.named_parameters():
            weight = Weight(name, tuple(parameter.shape), parameter.requires_grad)
            self.units.setdefault(weight.unit, []).append(weight)
        # all passes of the logits are in the forward pass: the loss computes its gradients there
        self._loss_passes = costs(run).passes["decoder"]
        self.contrast = Contrast.of(run)
        self._parts = MODEL_PARTS if "head" not in self.units else (*MODEL_PARTS, "head")
        self._simulated: dict[Any, list[StepSegment]] = {}
        self._sizes: dict[ParallelLayout, dict[str, UnitSizes]] = {}

    def budget(self, layout: ParallelLayout) -> Budget:
        """What the run takes in this layout, which may not fit."""
        segments = self._segments(layout)
        flops: dict[str, float] = dict.fromkeys(self._parts, 0.0)
        for segment in self._segments(layout._replace(tp=1)):  # of all ranks together, what each computes counts once
            if not segment.backward:
                flops[segment.part] += segment.flops() * self._image_share(segment)
        micro_batches = self.run.batch_size / layout.micro_batch_size
        flops = {part: value * micro_batches for part, value in flops.items()}
        flops["logits"] /= self._loss_passes
        if self.contrast is not None:
            flops["logits"] = self.contrast.flops
        seconds = self._seconds(layout, segments)
        able = sum(seconds.values()) * layout.ranks * self.hardware.peak_flops
        return Budget(
            layout=layout,
            memory=self._memory(layout, segments),
            limit=self.hardware.memory,
            flops=flops,
            seconds=seconds,
            mfu=3 * sum(flops.values()) / able,
            steps=self.run.steps,
        )

    def state_bytes(self, layout: ParallelLayout) -> float:
        """Bytes of weights, gradients and moments alone."""
        return sum(self._state_memory(layout).values())

    def _segments(self, layout: ParallelLayout) -> list[StepSegment]:
        """One micro-batch on one rank. Full sequences are alike: one is simulated and its numbers are multiplied."""
        key = (layout.tp, layout.activation_checkpointing)
        if key not in self._simulated:
            local = _run_of_rank(self.run, layout)
            self._simulated[key] = simulate(
                local,
                self.batch or full_sequences(self.run, 1),
                precision=self.precision,
                prepare=lambda model: _prepare(model, local, self.precision),
            )
        return [_multiply(segment, 1 if self.batch else layout.micro_batch_size) for segment in self._simulated[key]]

    def _image_share(self, segment: StepSegment) -> float:
        """The images of a mean sequence over `max_images`, for work on images; 1 for other work.

        MM1 has about as many image tokens as text tokens (section 4), so images fill half of a mean sequence, or less
        if `max_images` are fewer. Tiles are those of chats, whose texts are short beside them: they fill a sequence.
        Memory is that of a sequence with `max_images` images.
        """
        data, model = self.run.data, self.run.model
        if self.batch or segment.part not in ("encoder", "connector", "head") or not data.max_images:
            return 1.0
        filled = data.sequence_length / (2 if model.tiling.kind == "none" else 1)
        return min(1.0, filled / model.connector.tokens / data.max_images)

    def _unit_sizes(self, layout: ParallelLayout) -> dict[str, UnitSizes]:
        """The sizes of all FSDP units by name; "" is the root."""
        key = layout._replace(dp_replicate=1, activation_checkpointing="none", micro_batch_size=1)
        if key not in self._sizes:
            self._sizes[key] = {name: unit_sizes(unit, layout) for name, unit in self.units.items()}
        return self._sizes[key]

    def _state_memory(self, layout: ParallelLayout) -> dict[str, float]:
        """Bytes of what exists between steps, and of gradients."""
        sizes = self._unit_sizes(layout).values()
        trained = sum(unit.trained_local for unit in sizes)
        weights = sum(unit.local for unit in sizes)
        return {"weights": weights * WEIGHT, "gradients": trained * GRADIENT, "moments": trained * MOMENTS}

    def _memory(self, layout: ParallelLayout, segments: list[StepSegment]) -> dict[str, float]:
        """Bytes alive at the worst moment of a micro-batch, with the gradients of earlier micro-batches, if any."""
        sizes, state = self._unit_sizes(layout), self._state_memory(layout)
        accumulates = self.run.batch_size > layout.micro_batch_size * layout.data_ranks
        gradients = state["gradients"] if accumulates else 0
        alive: defaultdict[str, float] = defaultdict(float)
        finished: set[str] = set()
        worst = {"gradients": state["gradients"]}  # at the optimizer's step
        for segment in segments:
            name = _unit_of(segment)
            unit = sizes[name]
            now = alive.copy()
            now["logits" if segment.part == "logits" else "temporaries"] += segment.peak_bytes
            now["gathered weights"] += self._gathered_bytes(layout, sizes[""], unit=unit, backward=segment.backward)
            now["gradients"] += gradients
            if sum(now.values()) > sum(worst.values()):
                worst = dict(now)
            alive[f"{segment.part} activations"] += segment.net_bytes * self._kept_share(layout, segment)
            if segment.backward and not accumulates and name and name not in finished:
                gradients += unit.trained_local * GRADIENT
                finished.add(name)
        if self.contrast is not None:
            worst["features"] = self.contrast.bytes(layout)
        return state | {"images": float(self._images(layout)), "gradients": 0.0} | worst

    def _kept_share(self, layout: ParallelLayout, segment: StepSegment) -> float:
        """The bytes that a segment keeps over those of the simulation, which compiles nothing."""
        is_checkpointed = layout.activation_checkpointing != "none"
        if is_checkpointed or segment.part == "logits" or self.run.compile == "never":
            return 1.0
        return self.hardware.compiled_activations

    def _images(self, layout: ParallelLayout) -> int:
        batch = self.batch or full_sequences(self.run, 1)
        return batch.images_NCYX.numel() * (1 if self.batch else layout.micro_batch_size)

    def _gathered_bytes(self, layout: ParallelLayout, root: UnitSizes, *, unit: UnitSizes, backward: bool) -> float:
        """Bytes of gathered weights and whole gradients: of the root, the current block and the next one.

        Where a rank holds all weights, all of them stay gathered.
        """
        if layout.ranks == 1 and self.precision == torch.float32:
            return 0.0
        size, is_block = self.precision.itemsize, unit is not root
        if layout.dp_shard == 1:
            weights = sum(other.gathered for other in self._unit_sizes(layout).values())
        else:
            weights = root.gathered + (2 * unit.gathered if is_block else 0)
        gradients = unit.trained_gathered if is_block and backward else 0
        return weights * size + gradients * (size + GRADIENT)

    def _seconds(self, layout: ParallelLayout, segments: list[StepSegment]) -> dict[str, float]:
        """Seconds of a step: arithmetic by part, communication that no arithmetic hides, and the optimizer."""
        times = self._pass_seconds(layout, segments) | {"optimizer": 0.0}
        micro_batches = self.run.batch_size // (layout.micro_batch_size * layout.data_ranks)
        again = dict.fromkeys(times, 0.0)
        if self.contrast is not None:  # the first pass; the last micro-batch of it is not computed again
            forward = [segment for segment in segments if not segment.backward]
            again |= self._pass_seconds(layout, forward)
        times = {name: value * micro_batches + again[name] * (micro_batches - 1) for name, value in times.items()}
        if self.contrast is not None:
            times["logits"] += self.contrast.seconds(layout, self.hardware, precision=self.precision)
            times["communication"] += self.contrast.gather_seconds(layout, self.hardware)
        trained = sum(unit.trained_local for unit in self._unit_sizes(layout).values())
        # AdamW reads weight, gradient and moments and writes all but the gradient; the norm reads the gradient
        times["optimizer"] = trained * 8 * 4 / self.hardware.memory_bandwidth
        return times

    def _pass_seconds(self, layout: ParallelLayout, segments: list[StepSegment]) -> dict[str, float]:
        """Seconds of these segments of a micro-batch: arithmetic by part, communication, what launches take longer."""
        sizes, gathered = self._unit_sizes(layout), set()
        times: dict[str, float] = dict.fromkeys((*self._parts, "communication"), 0.0)
        for segment in segments:
            work = operation_seconds(segment.ops, self.hardware) * self._image_share(segment)
            times[segment.part] += work
            if (name := _unit_of(segment), segment.backward) not in gathered:
                gathered.add((name, segment.backward))
                sharding = self._sharding_seconds(layout, sizes[name], backward=segment.backward)
                times["communication"] += max(sharding - work, self.hardware.exposed_communication * sharding)
            if segment.part == "decoder" and segment.block is not None:
                times["communication"] += self._block_seconds(layout, segment.block)
        blocks = sum(segment.block is not None and segment.backward for segment in segments)
        times["launches"] = max(0.0, blocks * self.hardware.block_launch - sum(times.values()))
        return times

    def _sharding_seconds(self, layout: ParallelLayout, unit: UnitSizes, *, backward: bool) -> float:
        """Seconds to gather a unit's weights and, in the backward pass, to reduce its gradients."""
        received = unit.received * (self.precision.itemsize + (GRADIENT if backward else 0))
        seconds = received / self.hardware.ring_bandwidth(layout.dp_shard, stride=layout.tp)
        if backward:
            reduced = 2 * unit.trained_local * GRADIENT * (1 - 1 / layout.dp_replicate)
            seconds += reduced / self.hardware.ring_bandwidth(layout.dp_replicate, stride=layout.dp_shard * layout.tp)
        return seconds

    def _block_seconds(self, layout: ParallelLayout, block: int) -> float:
        """Seconds of a block's own communication in one direction, which no arithmetic hides.

        Tensor parallelism adds up the outputs of attention and feed-forward, and the gradients of their inputs. Expert
        parallelism sends each assignment to the rank of its expert and back.
        """
        hidden = (
            layout.micro_batch_size
            * self.run.data.sequence_length
            * self.run.model.decoder.width
            * self.precision.itemsize
        )
        seconds = 4 * hidden * (1 - 1 / layout.tp) / self.hardware.ring_bandwidth(layout.tp, stride=1)
        if self.run.model.decoder.sparse.at(block) and layout.ep > 1:
            is_inside_node = layout.ep * layout.tp <= self.hardware.node_size
            sent = 2 * self.run.model.decoder.sparse.top_k * hidden * (1 - 1 / layout.ep)
            seconds += sent / (self.hardware.node_bandwidth if is_inside_node else self.hardware.network_bandwidth)
        return seconds


def full_sequences(run: RunConfig, count: int) -> Batch:
    """A batch of `count` full sequences, each one document with `max_images` images; all text is trained."""
    data, size = run.data, run.model.vision.image_size
    images = count * data.max_images
    document_BT = torch.ones(count, data.sequence_length, dtype=torch.int64)
    targets_BT = torch.ones_like(document_BT)
    targets_BT[:, : min(data.sequence_length, data.max_images * run.model.connector.tokens)] = IGNORED
    return Batch(
        tokens_BT=torch.zeros_like(document_BT),
        targets_BT=targets_BT,
        document_BT=document_BT,
        position_BT=torch.arange(data.sequence_length).repeat(count, 1),
        images_NCYX=torch.zeros(max(1, images), 3, size, size, dtype=torch.uint8),
        images=images,
        source_B=torch.zeros(count, dtype=torch.int64),
        sequence_B=torch.arange(count),
    )


def _run_of_rank(run: RunConfig, layout: ParallelLayout) -> RunConfig:
    """The run with the shapes that one rank has."""
    local = run.model_copy(deep=True)
    local.compile = "never"  # what compiled code keeps is unknown before it is compiled
    local.parallel.activation_checkpointing = layout.activation_checkpointing
    decoder = local.model.decoder
    decoder.heads //= layout.tp
    decoder.kv_heads //= layout.tp
    if not decoder.sparse.experts:  # experts are not sharded by tensor parallelism
        decoder.mlp_width //= layout.tp
    return local


def _prepare(model: nn.Module, run: RunConfig, precision: torch.dtype) -> None:
    """Adapt, freeze and wrap the model as a run on one rank does; patterns of blocks that it lacks match nothing."""
    names = [name for name, _ in model.named_parameters()]
    if run.lora is not None:
        layers = [name.removesuffix(".weight") for name in names]
        targets = [pattern for pattern in run.lora.targets if matching(pattern, layers)]
        full = [pattern for pattern in run.lora.full if matching(pattern, names)]
        add_adapters(model, run.lora.model_copy(update={"targets": targets, "full": full}))
    freeze(model, [pattern for pattern in run.frozen if matching(pattern, dict(model.named_parameters()))])
    parallelize(model, run, dims=ParallelDims(1, 1, 1, 1, None, None), precision=precision)


def _multiply(segment: StepSegment, sequences: int) -> StepSegment:
    """The segment of one sequence, for `sequences` of them."""
    ops = Counter({Op(op.kind, op.flops * sequences, op.moved * sequences): times for op, times in segment.ops.items()})
    return replace(segment, ops=ops, net_bytes=segment.net_bytes * sequences, peak_bytes=segment.peak_bytes * sequences)


def _unit_of(segment: StepSegment) -> str:
    """The FSDP unit whose weights a segment needs, as `Weight.unit` names it."""
    module = {"encoder": "vision", "logits": ""}.get(segment.part, segment.part)
    if segment.block is not None:
        return f"{module}.blocks.{segment.block}"
    return "" if module == "decoder" else module


def fastest_budget(planner: Planner, ranks: int) -> Budget | None:
    """The budget of the fastest layout that fits; None if none does."""
    fastest = None
    for layout in layouts(planner.run, ranks, node=planner.hardware.node_size):
        if planner.state_bytes(layout) > planner.hardware.memory:
            continue
        budget = planner.budget(layout)
        if budget.fits and (fastest is None or budget.step_seconds < fastest.step_seconds):
            fastest = budget
    return fastest
