"""Mixtral's experts, which are a tensor each in its files, as ours, which are one tensor a layer."""

import re

import torch

State = dict[str, torch.Tensor]

_ONE = re.compile(r"(.*\.experts\.)(\d+)\.(w[123]\.weight)")
_ALL = re.compile(r"(.*\.experts\.)(w[123]\.weight)")


def stacked(theirs: State) -> State:
    """Their state dict with the experts of a layer stacked, [J, O, I], under the name without a number.

    Raises:
        ValueError: a number is missing.
    """
    found: dict[str, dict[int, torch.Tensor]] = {}
    rest = {}
    for name, x in theirs.items():
        if part := _ONE.fullmatch(name):
            found.setdefault(part[1] + part[3], {})[int(part[2])] = x
        else:
            rest[name] = x
    for name, experts in found.items():
        if sorted(experts) != [*range(len(experts))]:
            raise ValueError(f"{name} is there for experts {sorted(experts)}; some are missing")
        rest[name] = torch.stack([experts[number] for number in range(len(experts))])
    return rest


def spread(theirs: State) -> State:
    """The way back: a tensor for each expert, views of the stacked one."""
    found: State = {}
    for name, x in theirs.items():
        if part := _ALL.fullmatch(name):
            found |= {f"{part[1]}{number}.{part[2]}": matrix for number, matrix in enumerate(x.unbind(0))}
        else:
            found[name] = x
    return found
