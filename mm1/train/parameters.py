"""Parameters by pattern, a part's name (`vision`, `decoder.blocks.0`) or a glob over names; and parts of a tensor that
is sharded over ranks made whole."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate

from mm1.config.base import ConfigError, nearest


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The parameters' `names` that match `pattern`: those of the part it names, or those the glob fits."""
    return [name for name in names if name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)]


def require_matching(pattern: str, names: Iterable[str], *, field: str, kind: str = "parameter") -> list[str]:
    """The names that match `pattern`, which is a value of `field`; `kind` is what has such names.

    Raises:
        ConfigError: there is none; the message has the nearest name.
    """
    names = list(names)
    if matches := matching(pattern, names):
        return matches
    parts = {name.rsplit(".", depth)[0] for name in names for depth in range(name.count(".") + 1)}
    near = get_close_matches(pattern.rstrip(".*"), sorted(parts), n=1, cutoff=0.5)
    inside = [re.sub(r"^decoder\.blocks\.\d+", "*", name) for name in names]
    known = inside if all(name.startswith("*") for name in inside) else [name.partition(".")[0] for name in names]
    raise ConfigError(f"{field}: {pattern!r} is no {kind} of this model; {nearest(pattern, near or sorted({*known}))}")


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def freeze(model: nn.Module, patterns: Iterable[str]) -> None:
    """Exclude the parameters that match `patterns` from training: without a gradient no optimizer moves or decays them.

    Raises:
        ConfigError: a pattern matches nothing, or nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        for name in require_matching(pattern, parameters, field="frozen"):
            parameters[name].requires_grad_(False)
    if not trained(model):
        raise ConfigError(f"frozen={[*patterns]} leaves nothing to train; remove a pattern")


def full_tensor(x: torch.Tensor) -> torch.Tensor:
    """All of `x`, on every rank."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def reduced(x: torch.Tensor) -> torch.Tensor:
    """`x` with its pending sums over ranks done; what is sharded stays sharded."""
    if not isinstance(x, DTensor):
        return x
    return x.redistribute(placements=[Replicate() if placed.is_partial() else placed for placed in x.placements])
