"""What of a model is compiled, and whether this machine can."""

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from mm1.config.base import ConfigError
from mm1.model.decoder import DecoderBlock
from mm1.model.mllm import MLLM
from mm1.model.moe import SparseFeedForward
from mm1.model.vision import Vision

log = logging.getLogger("mm1")

FIRST_ROWS = 16
"""The number of tiles that code for any number of them is compiled with."""


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of the encoder, and of the decoder if the model has one."""
    towers = [part for name, part in model.named_children() if name in ("vision", "decoder")]
    return [block for tower in towers for block in tower.get_submodule("blocks").children()]


def compile_blocks(model: nn.Module, mode: Literal["auto", "always", "never"], *, device: torch.device) -> None:
    """Compile the encoder, the connector and the decoder's embedding and blocks in place, if that pays and is possible.

    `auto` compiles on a GPU. On a CPU a compiled step is 1.03 times as fast and the compiler takes about half a
    minute, so only runs of more than twenty minutes gain: there it takes `always`. Parameter names don't change.

    Raises:
        ConfigError: `always`, but this machine has no compiler for the device.
    """
    if mode == "never" or (mode == "auto" and device.type != "cuda"):
        return
    missing = missing_compiler(device)
    if missing and mode == "always":
        raise ConfigError(f"compile=always needs {missing}; install it, or set compile=never")
    if missing:
        log.warning("not compiled: %s is missing", missing)
        return
    of_tiles = _modules_of_tiles(model)
    for module in of_tiles:
        module.forward = ForAnyNumber(module.forward)  # type: ignore[method-assign]
    _compile_embeddings(model)
    for block in blocks_of(model):
        if block not in of_tiles:
            _compile(block)


def _modules_of_tiles(model: nn.Module) -> list[nn.Module]:
    """The modules to compile whose inputs have a tile in each row: the blocks of the encoder, and the connector."""
    connectors = [part for name, part in model.named_children() if name == "connector"]
    return [*model.get_submodule("vision.blocks").children(), *connectors]


def _compile_embeddings(model: nn.Module) -> None:
    """Compile what makes the input of the first blocks: of tiles, and of tokens with the features of tiles."""
    vision = model.get_submodule("vision")
    assert isinstance(vision, Vision)
    vision.embed = ForAnyNumber(vision.embed)  # type: ignore[method-assign]
    if isinstance(model, MLLM):
        model.embed = ForAnyNumber(model.embed, argument=1)  # type: ignore[method-assign]


class ForAnyNumber:
    """A function compiled once, for any number of rows but one of one of its arguments.

    By itself the compiler first takes every number as a constant, which is twice as many graphs, and which of them a
    number then gets depends on the numbers before. Code for each of few numbers would be even more graphs, and the
    compiler gives up after eight.

    It is a module's `forward`, not the module: FSDP's hooks replace the inputs, and with them what marks their rows.
    """

    def __init__(self, function: Callable[..., Any], *, argument: int = 0):
        self.plain, self.argument, self.is_on = function, argument, True
        self._compiled: Callable[..., Any] = torch.compile(function)
        self._has_code: set[bool] = set()  # with gradients, without

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if not self.is_on:
            return self.plain(*inputs, **named)
        before, rows, after = inputs[: self.argument], inputs[self.argument], inputs[self.argument + 1 :]
        rows = rows.contiguous()  # features without those of class token and registers are not
        if torch.is_grad_enabled() not in self._has_code:
            self._has_code.add(torch.is_grad_enabled())
            self._compile_for_first_rows(*before, rows, *after, **named)
        torch._dynamo.maybe_mark_dynamic(rows, 0)
        return self._compiled(*before, rows, *after, **named)

    def __deepcopy__(self, memo: Any) -> "ForAnyNumber":
        raise TypeError("a compiled function keeps the weights that it was compiled for; copy the model before that")

    def _compile_for_first_rows(self, *inputs: Any, **named: Any) -> None:
        """Compile with FIRST_ROWS rows, whatever the first inputs have.

        How the compiler divides sums depends on the number that it sees first. A resumed run sees another one first
        than the run that it continues, and would sum in another order. Inputs with other tensors, such as masks, are
        left to the number that comes first: these may have a row for each of the rows. Rotary angles, a tuple, don't.
        """
        if any(isinstance(other, torch.Tensor) for other in (*inputs[1:], *named.values())):
            return
        rows = inputs[0].new_zeros(FIRST_ROWS, *inputs[0].shape[1:])
        rows.requires_grad_(inputs[0].requires_grad)
        torch._dynamo.maybe_mark_dynamic(rows, 0)
        self._compiled(rows, *inputs[1:], **named)


def _compile(block: nn.Module) -> None:
    """Compile a block as a whole; one whose experts are distributed over ranks in four pieces.

    Before and after these experts tokens are exchanged, which waits for the host, and FSDP gathers their weights apart
    from the block's. Neither can be compiled, and a break of the graph would leave it to chance what is.
    """
    sparse = next((module for module in block.children() if isinstance(module, SparseFeedForward)), None)
    if sparse is None or not isinstance(sparse.experts.gate.weight, DTensor):
        block.compile()
        return
    assert isinstance(block, DecoderBlock)
    pieces: list[tuple[Any, str]] = [(block, "attend"), (sparse, "assign"), (sparse, "combine")]
    for module, method in [*pieces, (sparse.experts, "forward")]:
        setattr(module, method, torch.compile(getattr(module, method)))


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """A context in which no module of the model runs compiled.

    What modules compile for themselves stays compiled: without it FlexAttention would hold the scores of all pairs of
    positions, several GiB. `torch.compiler.set_stance("force_eager")` would turn that off too.
    """
    compiled = {module: module._compiled_call_impl for module in model.modules() if module._compiled_call_impl}
    of_tiles = [module.forward for module in model.modules() if isinstance(module.forward, ForAnyNumber)]
    try:
        for module in compiled:
            module._compiled_call_impl = None
        for function in of_tiles:
            function.is_on = False
        yield
    finally:
        for module, call in compiled.items():
            module._compiled_call_impl = call
        for function in of_tiles:
            function.is_on = True


def missing_compiler(device: torch.device) -> str | None:
    """What this machine lacks to compile for the device; None if nothing."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton"
    names = [os.environ.get("CXX", "g++"), "clang++"]
    return None if any(shutil.which(name) for name in names) else f"a C++ compiler ({' or '.join(names)})"
