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
        module.compile()
        module._compiled_call_impl = _for_any_number(module._compiled_call_impl)
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
    vision.embed = _for_any_number(torch.compile(vision.embed))  # type: ignore[method-assign]
    if isinstance(model, MLLM):
        model.embed = _for_any_number(torch.compile(model.embed), argument=1)  # type: ignore[method-assign]


def _for_any_number(compiled: Callable[..., Any] | None, *, argument: int = 0) -> Callable[..., Any]:
    """The compiled function, its code to serve any number of rows of an argument but one, which stays a constant.

    By itself the compiler first takes every number as a constant, which is twice as many graphs. Code for each of
    few numbers would be even more of them, and the compiler gives up after eight.
    """
    assert compiled is not None

    def call(*inputs: Any, **named: Any) -> Any:
        torch._dynamo.maybe_mark_dynamic(inputs[argument], 0)
        return compiled(*inputs, **named)

    return call


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
    try:
        for module in compiled:
            module._compiled_call_impl = None
        yield
    finally:
        for module, call in compiled.items():
            module._compiled_call_impl = call


def missing_compiler(device: torch.device) -> str | None:
    """What this machine lacks to compile for the device; None if nothing."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton"
    names = [os.environ.get("CXX", "g++"), "clang++"]
    return None if any(shutil.which(name) for name in names) else f"a C++ compiler ({' or '.join(names)})"
