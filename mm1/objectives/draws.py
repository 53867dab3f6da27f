"""Random numbers of an objective as pure functions of integers, the same on every device and without waiting for it."""

import torch


def mix(x: torch.Tensor) -> torch.Tensor:
    """The int64 numbers hashed one by one: SplitMix64's last steps (Steele et al., OOPSLA 2014); arithmetic wraps."""
    x = (x ^ (x >> 29)) * -4658895280553007687
    x = (x ^ (x >> 32)) * -7723592293110705685
    return x ^ (x >> 30)


def uniform(first: int, last: int, *, seed: int, what: int, numbers: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Whole numbers from `first` to `last`, drawn by (seed, what, numbers); all `numbers` have one shape."""
    state = torch.full_like(numbers[0], seed)
    for number in (torch.full_like(state, what), *numbers):
        state = mix(state * -7046029254386353131 + number + 1)
    return (state & (2**63 - 1)) % (last - first + 1) + first
