"""How many threads small work is worth."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mm1.model.decoder import Decoder

POSITIONS_PER_READ = 8
"""Positions whose products take as long as reading the matrix from memory."""

MIN_PARALLEL_PRODUCT = 1 << 24
"""Multiplications of a matrix product from which on several threads are faster than one."""


@contextmanager
def threads_for(decoder: Decoder, positions: int) -> Iterator[None]:
    """A context with one CPU thread, if the pass has so few positions that waking others takes longer than it saves.

    On two cores SmolLM2-135M writes a token in 47 ms with one thread and in 68 with two, eight rows in 112 and 178.
    """
    config = decoder.config
    product = config.width * config.mlp_width * (positions + POSITIONS_PER_READ)
    if decoder.embedding.weight.device.type != "cpu" or product >= MIN_PARALLEL_PRODUCT:
        yield
        return
    with one_thread():
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """A context in which torch computes on one CPU thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
