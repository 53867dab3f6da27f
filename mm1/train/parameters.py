"""Which parameters a pattern means: a part's name (`vision`, `decoder.blocks.0`) or a glob over names; and what of a
parameter that is spread over ranks is whole."""

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate

from mm1.config.base import ConfigError, nearest


def named_by(pattern: str, names: Iterable[str]) -> list[str]:
    """Those of the parameters' `names` that `pattern` means: the parameters of a part, or what the glob fits."""
    return [name for name in names if name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)]


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def freeze(model: nn.Module, patterns: Iterable[str]) -> None:
    """Leave out of training what `patterns` mean: without a gradient no optimizer moves or decays it.

    Raises:
        ConfigError: a pattern that means no parameter, or nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        for name in found(pattern, parameters, field="frozen"):
            parameters[name].requires_grad_(False)
    if not trained(model):
        raise ConfigError(f"frozen={[*patterns]} leaves nothing to train; take a pattern away")


def found(pattern: str, names: Iterable[str], *, field: str) -> list[str]:
    """`named_by`, where meaning nothing is a mistake in `field`."""
    names = list(names)
    if meant := named_by(pattern, names):
        return meant
    parts = {name.rsplit(".", depth)[0] for name in names for depth in range(name.count(".") + 1)}
    near = get_close_matches(pattern.rstrip(".*"), sorted(parts), n=1, cutoff=0.5)
    outer = sorted({name.partition(".")[0] for name in names})
    raise ConfigError(f"{field}: {pattern!r} is no parameter of this model; {nearest(pattern, near or outer)}")


def whole(x: torch.Tensor) -> torch.Tensor:
    """All of `x`, on every rank."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def settled(x: torch.Tensor) -> torch.Tensor:
    """`x` with its sums over ranks done; what is spread stays spread."""
    if not isinstance(x, DTensor):
        return x
    return x.redistribute(placements=[Replicate() if at.is_partial() else at for at in x.placements])
