"""How many threads a small pass of the decoder is worth."""

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
    threads = torch.get_num_threads()
    config = decoder.config
    product = config.width * config.mlp_width * (positions + POSITIONS_PER_READ)
    if decoder.embedding.weight.device.type != "cpu" or product >= MIN_PARALLEL_PRODUCT:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
