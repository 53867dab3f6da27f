"""The arithmetic, the bytes moved and the bytes alive in a training step, counted on tensors without data.

The real model code runs on torch's fake tensors, forward and backward, with only as many blocks as differ; the step
of the whole model repeats their segments. A segment begins and ends where a block does.
"""

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import groupby
from typing import Any, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mm1.budget.objectives import loss_of, model_of
from mm1.config.model import ModelConfig
from mm1.config.run import RunConfig
from mm1.document import IGNORED, Batch
from mm1.model.attention import document_mask
from mm1.model.decoder import masks_of
from mm1.model.layers import RMSNorm
from mm1.model.mllm import MLLM
from mm1.model.moe import Linears
from mm1.objectives.autoregressive_pixels import PixelModel
from mm1.objectives.contrastive import ContrastiveModel

ModelPart = Literal["encoder", "connector", "decoder", "logits", "head"]
M = TypeVar("M", bound=nn.Module)
MODEL_PARTS: tuple[ModelPart, ...] = ("encoder", "connector", "decoder", "logits")
"""The parts that a model may have; one that predicts pixels has a `head` besides."""


class Op(NamedTuple):
    """One operation: all that its time depends on."""

    kind: Literal["matmul", "attention", "other"]
    flops: float
    moved: int  # bytes read and written


@dataclass(slots=True)
class StepSegment:
    """One stretch of a step, forward or backward: a block, or what lies between two blocks."""

    part: ModelPart
    block: int | None  # the number of the layer; None outside of blocks
    backward: bool
    ops: Counter[Op] = field(default_factory=Counter)
    net_bytes: int = 0  # bytes alive at its end, less those alive when it began
    peak_bytes: int = 0  # most bytes alive during it, less those alive when it began

    def flops(self) -> float:
        return sum(op.flops * times for op, times in self.ops.items())


class Recorder(TorchDispatchMode):
    """Records every operation, and every storage while it is alive, in segments."""

    def __init__(self, windows: dict[int | None, int | None]) -> None:
        """`windows` are those of the decoder's blocks: their attention is counted over the positions that are seen."""
        super().__init__()
        self._windows = windows
        self.segments = [StepSegment("encoder", None, False)]
        self._storages: set[int] = set()

    def ignore(self, *tensors: torch.Tensor) -> None:
        """Do not count these tensors: they existed before the step."""
        self._storages |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def begin(self, part: ModelPart, block: int | None, *, backward: bool) -> None:
        """Begin the next segment."""
        self.segments.append(StepSegment(part, block, backward))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace != "aten":  # queries, such as for a tensor's device
            return out
        outputs = [value for value in tree_leaves(out) if isinstance(value, torch.Tensor)]
        allocated = [value for value in outputs if self._track(value)]
        if allocated or func._schema.is_mutable:
            inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
            moved = sum(value.numel() * value.element_size() for value in [*inputs, *outputs])
            segment = self.segments[-1]
            window = self._windows.get(segment.block) if segment.part == "decoder" else None
            segment.ops[_op(func, args, kwargs or {}, out=out, moved=moved, window=window)] += 1
        return out

    def _track(self, tensor: torch.Tensor) -> bool:
        """Count the tensor's storage from now until it is freed; False if it is counted already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return False
        self._storages.add(key)
        self._add_bytes(storage.nbytes())
        weakref.finalize(storage, self._release, key, storage.nbytes())
        return True

    def _release(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self._add_bytes(-size)

    def _add_bytes(self, size: int) -> None:
        segment = self.segments[-1]
        segment.net_bytes += size
        segment.peak_bytes = max(segment.peak_bytes, segment.net_bytes)


def _op(func: Any, args: Any, kwargs: Any, *, out: Any, moved: int, window: int | None) -> Op:
    name = str(func)
    if "attention" in name:
        names = [argument.name for argument in func._schema.arguments]
        arguments = dict(zip(names, args, strict=False)) | kwargs
        q, k = arguments["query"], arguments["key"]
        products = 5 if "backward" in name else 2  # of queries and keys, each a matrix product
        keys = k.shape[-2] / 2 if arguments.get("is_causal") else k.shape[-2]
        if window is not None and window < k.shape[-2]:
            keys = window - window**2 / (2 * k.shape[-2])  # of a mean query
        return Op("attention", 2.0 * products * q.numel() * keys, moved)
    if func is torch.ops.aten._grouped_mm.default:  # not in torch's own list (2.13)
        return Op("matmul", 2.0 * args[0].numel() * args[1].shape[-1], moved)
    if func in (torch.ops.aten.addmm_.default, torch.ops.aten.baddbmm_.default):  # nor are in-place sums
        return Op("matmul", 2.0 * args[1].numel() * args[2].shape[-1], moved)
    count = flop_registry.get(func.overloadpacket)
    return Op("other", 0.0, moved) if count is None else Op("matmul", float(count(*args, **kwargs, out_val=out)), moved)


def shallow(model: ModelConfig) -> ModelConfig:
    """The model with only its first and its last block, or group of blocks in a sparse decoder."""
    copy = model.model_copy(deep=True)
    copy.vision.feature_layer, copy.vision.layers = -1, min(2, _encoder_depth(model))
    decoder, size, windows = copy.decoder, _group_size(model), _windows_of(model)
    decoder.layers = 2 * size if len(windows) > 1 else min(model.decoder.layers, 2 * size)
    decoder.no_rope_layers = ()
    decoder.attention_softcap = None  # FlexAttention caps scores in its kernel
    # in a group, first the blocks of the first window, then those of the second
    wholes = [layer for layer in range(decoder.layers) if windows[layer % size * len(windows) // size] is None]
    decoder.full_layers = tuple(wholes)
    return copy


def _group_size(model: ModelConfig) -> int:
    """Blocks of the shallow decoder, one of each kind."""
    sparse = model.decoder.sparse
    return (sparse.every if sparse.experts else 1) * len(_windows_of(model))


def _windows_of(model: ModelConfig) -> list[int | None]:
    """The windows that the decoder's blocks have: one, and none where they see all."""
    return [*dict.fromkeys(model.decoder.window_of(layer) for layer in range(model.decoder.layers))]


def _encoder_depth(model: ModelConfig) -> int:
    """How many blocks of the encoder a picture goes through."""
    return model.vision.layers + 1 + model.vision.feature_layer


def simulate(
    run: RunConfig, batch: Batch, *, precision: torch.dtype, prepare: Callable[[nn.Module], None]
) -> list[StepSegment]:
    """The segments of one micro-batch through the whole model, forward and backward, in order.

    Only the shape of `batch` and the number of its trained tokens count. Weights and activations have the type
    `precision`. Gradients of weights are freed as soon as they exist. `prepare` changes the shallow model before it
    runs.
    """
    decoder = shallow(run.model).decoder
    trained = int((batch.targets_BT != IGNORED).sum())
    low_precision = precision != torch.float32
    masks = masks_of(decoder, batch.document_BT)
    if low_precision:  # FlexAttention skips what no window shows, SDPA would compute it
        masks = dict.fromkeys(masks, document_mask(batch.document_BT))
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        model = _in_type(precision, lambda: model_of(run, shallow(run.model)))
        prepare(model)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_drop)
        if low_precision:
            _fuse_norms(model)
        else:
            _use_one_expert(model)
        batch = batch.map(fake.from_tensor)
        positions = torch.zeros(trained, dtype=torch.int64)
        with Recorder({layer: decoder.window_of(layer) for layer in range(decoder.layers)}) as recorder:
            recorder.ignore(*model.parameters(), *model.buffers(), *_tensors(batch), positions)
            _hook(model, recorder)
            loss = loss_of(model, batch, run, masks=masks, positions=positions, low_precision=low_precision)
            recorder.begin("logits", None, backward=True)
            loss.backward()
    return repeat_blocks([segment for segment in recorder.segments if segment.ops or segment.net_bytes], run.model)


@dataclass(frozen=True, slots=True)
class PassBytes:
    """The most bytes alive in a pass without gradients, beside the weights: of the encoder, and of the decoder."""

    encoder: int
    decoder: int
    of_position: float  # of the decoder


def pass_bytes(model: ModelConfig, *, precision: torch.dtype, positions: int, images: int) -> PassBytes:
    """What a pass of inference over so many images, and over so many positions of a prompt, holds for a moment."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        mllm = _in_type(precision, lambda: MLLM(shallow(model)))
        if precision != torch.float32:
            _fuse_norms(mllm)
        else:
            _use_one_expert(mllm)
        size = model.vision.image_size
        with Recorder({}) as recorder:
            recorder.ignore(*mllm.parameters(), *mllm.buffers())
            features = mllm.encode_images(torch.zeros(images, 3, size, size, dtype=torch.uint8))
            encoder, kept = recorder.segments[-1].peak_bytes, recorder.segments[-1].net_bytes
            recorder.begin("decoder", None, backward=False)
            x_BTD = torch.zeros(1, positions, model.decoder.width, dtype=precision)
            hidden_BTD = mllm.decoder(x_BTD, torch.arange(positions)[None])
            mllm.decoder.logits(hidden_BTD[:, -1])
            decoder = recorder.segments[-1].peak_bytes
        del features
    return PassBytes(encoder, kept + decoder, decoder / positions)


def _fuse_norms(model: nn.Module) -> None:
    """Compute RMSNorm as a GPU does in low precision, in one kernel."""

    def rms_norm(norm: RMSNorm, x: torch.Tensor) -> torch.Tensor:
        return _FusedNorm.apply(x, norm.weight.to(x.dtype))

    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.forward = partial(rms_norm, module)  # type: ignore[method-assign]


def _use_one_expert(model: nn.Module) -> None:
    """Send the rows of all experts through the first one's matrix, which is as much arithmetic and memory.

    Fake tensors support torch's grouped product in bf16 only (2.13).
    """

    def product(linears: Linears, x_AI: torch.Tensor, ends_J: torch.Tensor) -> torch.Tensor:
        return F.linear(x_AI, linears.weight[0])

    for module in model.modules():
        if isinstance(module, Linears):
            module.forward = partial(product, module)  # type: ignore[method-assign]


class _FusedNorm(torch.autograd.Function):
    """A norm in one kernel: it keeps, reads and writes as much as the real one; its values are wrong."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return x * weight

    @staticmethod
    def backward(ctx, grad):
        x, weight, _ = ctx.saved_tensors
        return grad * x, torch.empty_like(weight)


def repeat_blocks(segments: list[StepSegment], model: ModelConfig) -> list[StepSegment]:
    """The segments of the whole model, from those of its shallow form."""
    whole: list[StepSegment] = []
    for (part, inside, backward), group in groupby(segments, key=lambda s: (s.part, s.block is not None, s.backward)):
        if not inside:
            whole += group
            continue
        by_block = {segment.block: segment for segment in group}
        origin = _origins(model, len(by_block)) if part == "decoder" else _encoder_origins(model, len(by_block))
        blocks = [replace(by_block[block], block=layer) for layer, block in enumerate(origin)]
        whole += reversed(blocks) if backward else blocks
    return whole


def _encoder_origins(model: ModelConfig, blocks: int) -> list[int]:
    """The block of the shallow encoder, which has so many, that each block repeats."""
    return [*[0] * (_encoder_depth(model) - 1), blocks - 1]


def _origins(model: ModelConfig, blocks: int) -> list[int]:
    """The same of the decoder: the block of the same kind, for the last blocks that of the last group."""
    decoder, windows, size = model.decoder, _windows_of(model), _group_size(model)
    every, last = size // len(windows), blocks - size
    return [
        windows.index(decoder.window_of(layer)) * every + layer % every + last * (layer >= decoder.layers - every)
        for layer in range(decoder.layers)
    ]


def _hook(model: nn.Module, recorder: Recorder) -> None:
    """Begin a segment where a part or a block begins or ends, in the forward and in the backward pass."""

    def begin_backward(tensor: torch.Tensor, part: ModelPart, block: int | None) -> None:
        if tensor.requires_grad:
            tensor.register_hook(lambda grad: recorder.begin(part, block, backward=True))

    def watch(
        module: nn.Module, part: ModelPart, block: int | None, *, before: ModelPart, after: ModelPart | None = None
    ) -> None:
        def enter(module: nn.Module, args: Any) -> None:
            if not recorder.segments[-1].backward:  # otherwise the block is recomputed
                recorder.begin(part, block, backward=False)
                if not block:  # the backward pass of a later block begins at the output of the block before it
                    begin_backward(args[0], before, None)

        def leave(module: nn.Module, args: Any, out: Any) -> None:
            if not recorder.segments[-1].backward:
                if after:  # without it, what is freed on leaving counts as the block's
                    recorder.begin(after, None, backward=False)
                begin_backward(out[0] if isinstance(out, tuple) else out, part, block)

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    for number, block in enumerate(model.get_submodule("vision.blocks").children()):
        watch(block, "encoder", number, before="encoder")
    if isinstance(model, PixelModel):
        watch(model.head, "head", None, before="encoder", after="logits")
        return
    if isinstance(model, ContrastiveModel):
        watch(model.image_projection, "encoder", None, before="encoder", after="decoder")
    else:
        watch(model.get_submodule("connector"), "connector", None, before="encoder", after="decoder")
    for number, block in enumerate(model.get_submodule("decoder.blocks").children()):
        watch(block, "decoder", number, before="decoder")
    watch(model.get_submodule("decoder.norm"), "decoder", None, before="decoder", after="logits")


def _in_type(dtype: torch.dtype, build: Callable[[], M]) -> M:
    """The model that `build` makes, with weights of type `dtype`; fake weights can't be converted later."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return build()
    finally:
        torch.set_default_dtype(default)


def _drop(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _tensors(batch: Batch) -> list[torch.Tensor]:
    return [value for value in (getattr(batch, item.name) for item in fields(batch)) if isinstance(value, torch.Tensor)]
