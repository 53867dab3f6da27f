"""Experts of Mixtral and Qwen3-MoE, one tensor each in their files, as ours, one tensor per layer, and back."""

import re

import torch

State = dict[str, torch.Tensor]

_EXPERT = re.compile(r"(.*\.experts\.)(\d+)\.((?:w[123]|\w+_proj)\.weight)")
_STACKED = re.compile(r"(.*\.experts\.)((?:w[123]|\w+_proj)\.weight)")


def stack_experts(theirs: State) -> State:
    """Their state dict with the experts of a layer stacked, [J, O, I], under the name without a number.

    Raises:
        ValueError: an expert is missing.
    """
    experts_of: dict[str, dict[int, torch.Tensor]] = {}
    state: State = {}
    for name, x in theirs.items():
        if match := _EXPERT.fullmatch(name):
            experts_of.setdefault(match[1] + match[3], {})[int(match[2])] = x
        else:
            state[name] = x
    for name, experts in experts_of.items():
        if sorted(experts) != [*range(len(experts))]:
            raise ValueError(f"{name} is there for experts {sorted(experts)}; some are missing")
        state[name] = torch.stack([experts[number] for number in range(len(experts))])
    return state


def unstack_experts(state: State) -> State:
    """The inverse: a tensor for each expert, which is a view of the stacked one."""
    theirs: State = {}
    for name, x in state.items():
        if match := _STACKED.fullmatch(name):
            theirs |= {f"{match[1]}{number}.{match[2]}": matrix for number, matrix in enumerate(x.unbind(0))}
        else:
            theirs[name] = x
    return theirs
