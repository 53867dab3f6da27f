"""How many threads a pass over few places is worth."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mm1.model.decoder import Decoder

PLACES_OF_A_READING = 8
"""Places whose products take as long as reading the matrix from memory."""

WORTH_WAKING = 1 << 24
"""Multiplications of a matrix product from which on several threads are faster than one."""


@contextmanager
def threads_for(decoder: Decoder, places: int) -> Iterator[None]:
    """One thread of the CPU while a pass over so few places goes on that waking others takes longer than it saves.

    On two cores SmolLM2-135M writes a token in 47 ms with one thread and in 68 with two, eight rows in 112 and 178.
    """
    threads = torch.get_num_threads()
    config = decoder.config
    product = config.width * config.mlp_width * (places + PLACES_OF_A_READING)
    if decoder.embedding.weight.device.type != "cpu" or product >= WORTH_WAKING:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
