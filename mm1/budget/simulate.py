"""What a training step does, without doing it: arithmetic, bytes moved, bytes alive. On tensors that have no data.

The real model code runs on torch's fake tensors, forward and backward, with only so many blocks as differ; the step
of the deep model repeats their segments. A segment is what happens between two marks: a block's begin or end.
"""

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import groupby
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mm1.config.model import ModelConfig
from mm1.config.run import RunConfig
from mm1.document import IGNORED, Batch
from mm1.model.attention import Mask, document_mask
from mm1.model.layers import RMSNorm
from mm1.model.mllm import MLLM
from mm1.model.moe import Linears, Routing
from mm1.objectives.next_token import LOGITS, cross_entropy

Part = Literal["encoder", "connector", "decoder", "logits"]
PARTS: tuple[Part, ...] = ("encoder", "connector", "decoder", "logits")


class Op(NamedTuple):
    """One operation, as far as its time depends on it."""

    kind: Literal["matmul", "attention", "other"]
    flops: float
    moved: int  # bytes read and written


@dataclass(slots=True)
class Segment:
    """What happens between two marks of a step."""

    part: Part
    block: int | None  # the layer, where it is inside one
    backward: bool
    ops: Counter[Op] = field(default_factory=Counter)
    change: int = 0  # bytes alive at its end over those at its begin
    rise: int = 0  # bytes alive at most over those at its begin

    def flops(self) -> float:
        return sum(op.flops * times for op, times in self.ops.items())


class Tally(TorchDispatchMode):
    """Writes down every operation and every storage, in segments."""

    def __init__(self) -> None:
        super().__init__()
        self.segments = [Segment("encoder", None, False)]
        self._alive = 0
        self._known: set[int] = set()

    def know(self, *tensors: torch.Tensor) -> None:
        """Leave these out: they were there before."""
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def mark(self, part: Part, block: int | None, *, backward: bool) -> None:
        """Begin the next segment."""
        self.segments.append(Segment(part, block, backward))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace != "aten":  # questions such as on which device a tensor is
            return out
        made = [value for value in tree_leaves(out) if isinstance(value, torch.Tensor)]
        fresh = [value for value in made if self._enter(value)]
        if fresh or func._schema.is_mutable:
            read = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
            moved = sum(value.numel() * value.element_size() for value in [*read, *made])
            self.segments[-1].ops[_op(func, args, kwargs or {}, out=out, moved=moved)] += 1
        return out

    def _enter(self, tensor: torch.Tensor) -> bool:
        """Count the tensor's storage while it lives; whether it is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return False
        self._known.add(key)
        self._alive_by(storage.nbytes())
        weakref.finalize(storage, self._leave, key, storage.nbytes())
        return True

    def _leave(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._alive_by(-size)

    def _alive_by(self, size: int) -> None:
        segment = self.segments[-1]
        segment.change += size
        segment.rise = max(segment.rise, segment.change)


def _op(func: Any, args: Any, kwargs: Any, *, out: Any, moved: int) -> Op:
    name = str(func)
    if "attention" in name:
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        q, k = given["query"], given["key"]
        products = 5 if "backward" in name else 2  # of queries and keys, each a matrix product
        flops = 2.0 * products * q.numel() * k.shape[-2] / (2 if given.get("is_causal") else 1)
        return Op("attention", flops, moved)
    if func is torch.ops.aten._grouped_mm.default:  # not in torch's own list (2.13)
        return Op("matmul", 2.0 * args[0].numel() * args[1].shape[-1], moved)
    if func in (torch.ops.aten.addmm_.default, torch.ops.aten.baddbmm_.default):  # nor are sums made in their place
        return Op("matmul", 2.0 * args[1].numel() * args[2].shape[-1], moved)
    count = flop_registry.get(func.overloadpacket)
    return Op("other", 0.0, moved) if count is None else Op("matmul", float(count(*args, **kwargs, out_val=out)), moved)


def shallow(model: ModelConfig) -> ModelConfig:
    """The model with its first and its last block only, or groups of blocks in a sparse decoder."""
    made = model.model_copy(deep=True)
    made.vision.feature_layer, made.vision.layers = -1, min(2, _used(model))
    made.decoder.layers = min(model.decoder.layers, 2 * _group(model))
    made.decoder.no_rope_layers = ()
    return made


def _group(model: ModelConfig) -> int:
    """Blocks of the decoder after which their kinds come again."""
    sparse = model.decoder.sparse
    return sparse.every if sparse.experts else 1


def _used(model: ModelConfig) -> int:
    """Blocks of the encoder that a picture goes through."""
    return model.vision.layers + 1 + model.vision.feature_layer


def simulate(
    run: RunConfig, batch: Batch, *, weights: torch.dtype, precision: torch.dtype, prepare: Callable[[MLLM], None]
) -> list[Segment]:
    """The segments of one micro-batch, forward and backward, of the whole model in the order they come.

    Of `batch` only the shape counts, and of its text the trained places. The forward pass has `weights` in one type
    and works in `precision`. Gradients of weights are given away as soon as they are made. `prepare` gets the shallow
    model before it runs.
    """
    mask = document_mask(batch.document_BT)
    learned = int((batch.targets_BT != IGNORED).sum())
    low = precision != torch.float32
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.autocast("cpu", precision, enabled=low):
        mllm = _built(shallow(run.model), weights)
        prepare(mllm)
        for parameter in mllm.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_drop)
        if low:
            _as_on_gpus(mllm)
        else:
            _one_product(mllm)
        batch = batch.map(fake.from_tensor)
        places = torch.zeros(learned, dtype=torch.int64)
        with Tally() as tally:
            tally.know(*mllm.parameters(), *mllm.buffers(), *_tensors(batch), places)
            _hook(mllm, tally)
            loss = _loss(mllm, batch, mask=mask, places=places, low=low)
            tally.mark("logits", None, backward=True)
            loss.backward()
    return deepened([segment for segment in tally.segments if segment.ops or segment.change], run.model)


def _loss(mllm: MLLM, batch: Batch, *, mask: Mask, places: torch.Tensor, low: bool) -> torch.Tensor:
    """What `NextToken` minimises; it would look into the batch, which has no data here."""
    x_BTD = mllm.embed(batch.tokens_BT, mllm.encode_images(batch.images_NCYX))
    hidden_BTD, layers = mllm.decoder.routed(x_BTD, batch.position_BT, mask=mask, real_BT=batch.document_BT > 0)
    targets = batch.targets_BT.flatten()
    at_once = LOGITS["cuda" if low else "cpu"]
    total = cross_entropy(mllm, hidden_BTD.flatten(0, 1), targets=targets, places=places, at_once=at_once).total
    routing = Routing.of(layers, mllm.config.decoder.sparse, rows=len(batch.tokens_BT))
    return total if routing is None else total + routing.penalty


def _as_on_gpus(mllm: MLLM) -> None:
    """Let norms be computed as a GPU does in low precision: RMSNorm in one kernel, LayerNorm in fp32 by autocast."""

    def layer_norm(norm: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)

    def rms_norm(norm: RMSNorm, x: torch.Tensor) -> torch.Tensor:
        return _FusedNorm.apply(x, norm.weight.to(x.dtype))

    for module in mllm.modules():
        if isinstance(module, RMSNorm):
            module.forward = partial(rms_norm, module)  # type: ignore[method-assign]
        elif isinstance(module, nn.LayerNorm):
            module.forward = partial(layer_norm, module)  # type: ignore[method-assign]


def _one_product(mllm: MLLM) -> None:
    """Let experts' rows all go through the first one's matrix: as much arithmetic and memory as through their own.

    Fake tensors know torch's grouped product in bf16 only (2.13).
    """

    def product(linears: Linears, x_AI: torch.Tensor, ends_J: torch.Tensor) -> torch.Tensor:
        return F.linear(x_AI, linears.weight[0])

    for module in mllm.modules():
        if isinstance(module, Linears):
            module.forward = partial(product, module)  # type: ignore[method-assign]


class _FusedNorm(torch.autograd.Function):
    """What a norm in one kernel keeps, reads and writes."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return x * weight

    @staticmethod
    def backward(ctx, grad):
        x, weight, _ = ctx.saved_tensors
        return grad * x, torch.empty_like(weight)


def deepened(segments: list[Segment], model: ModelConfig) -> list[Segment]:
    """The segments of the whole model, of those of its shallow form."""
    made: list[Segment] = []
    for (part, inside, backward), group in groupby(segments, key=lambda s: (s.part, s.block is not None, s.backward)):
        if not inside:
            made += group
            continue
        of_block = {segment.block: segment for segment in group}
        size, depth = (1, _used(model)) if part == "encoder" else (_group(model), model.decoder.layers)
        last = len(of_block) - size  # in the shallow model, where the last group begins
        origin = [layer % size + (last if layer >= depth - size else 0) for layer in range(depth)]
        run = [replace(of_block[block], block=layer) for layer, block in enumerate(origin)]
        made += reversed(run) if backward else run
    return made


def _hook(mllm: MLLM, tally: Tally) -> None:
    """Let the model mark where its parts and blocks begin and end, on the way forward and on the way back."""

    def back(tensor: torch.Tensor, part: Part, block: int | None) -> None:
        if tensor.requires_grad:
            tensor.register_hook(lambda grad: tally.mark(part, block, backward=True))

    def watch(module: nn.Module, part: Part, block: int | None, *, before: Part, after: Part | None = None) -> None:
        def enter(module: nn.Module, args: Any) -> None:
            if not tally.segments[-1].backward:  # else the block is recomputed
                tally.mark(part, block, backward=False)
                if not block:  # the way back into a later block begins at the output of the one before
                    back(args[0], before, None)

        def leave(module: nn.Module, args: Any, out: Any) -> None:
            if not tally.segments[-1].backward:
                if after:  # else what is let go of on leaving is the block's too
                    tally.mark(after, None, backward=False)
                back(out[0] if isinstance(out, tuple) else out, part, block)

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    for number, module in enumerate(mllm.vision.blocks):
        watch(module, "encoder", number, before="encoder")
    watch(mllm.connector, "connector", None, before="encoder", after="decoder")
    for number, module in enumerate(mllm.decoder.blocks):
        watch(module, "decoder", number, before="decoder")
    watch(mllm.decoder.norm, "decoder", None, before="decoder", after="logits")


def _built(model: ModelConfig, dtype: torch.dtype) -> MLLM:
    """A model whose weights are of `dtype`; fake ones can't be changed afterwards."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return MLLM(model)
    finally:
        torch.set_default_dtype(before)


def _drop(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _tensors(batch: Batch) -> list[torch.Tensor]:
    return [value for value in (getattr(batch, item.name) for item in fields(batch)) if isinstance(value, torch.Tensor)]
