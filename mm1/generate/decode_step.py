"""A pass of the decoder over the next tokens of many rows of a cache, in the form that each device is fastest at.

A CPU takes exactly as many rows and slots as there are. A GPU runs the 900 kernels of a step in a fraction of the time
that the host takes to launch them, so there a step is recorded as a CUDA graph and replayed. A graph has fixed shapes
and addresses: rows, tokens and slots are rounded up to few sizes, a mask hides what isn't there, and inputs are copied
into buffers that stay. What is recorded is the plain step. `torch.compile(mode="reduce-overhead")` would compile every
size first, and it records nothing that writes to its inputs, as a step writes to the cache.
"""

from typing import Any, NamedTuple

import numpy as np
import torch

from mm1.generate.threads import threads_for
from mm1.model.cache import Cache
from mm1.model.mllm import MLLM

SLOTS = 128
"""Slots of the cache that a step reads are rounded up to a multiple of this."""

PLAIN_USES = 4
"""So many steps of a shape run plainly before one is recorded, which takes as long as several of them."""


class DecodeStep:
    """The steps of one engine, computing only what is needed."""

    def __init__(self, model: MLLM):
        self.model = model

    def rows(self, count: int) -> int:
        """How many rows a step computes where `count` are in use, or all if there are fewer."""
        return count

    def forget(self) -> None:
        """Let go of the last cache: its memory is about to be freed."""

    def __call__(self, cache: Cache, tokens_BT: np.ndarray, slot_BT: np.ndarray, *, spare: np.ndarray) -> torch.Tensor:
        """Logits [B, T, V] in fp32 for the first rows of `cache`, valid until the next step.

        The tokens' keys and values are then in their slots. `spare` are slots, one in each of the next rows, that the
        step may write to.
        """
        decoder, device = self.model.decoder, self.model.decoder.embedding.weight.device
        position_BT = torch.from_numpy(slot_BT + cache.shared_length).to(device)
        view = cache.view(slice(0, len(slot_BT)), int(slot_BT.max()) + 1)
        with threads_for(decoder, slot_BT.size):
            x_BTD = decoder.embed(torch.from_numpy(tokens_BT).to(device))
            return decoder.logits(decoder(x_BTD, position_BT, cache=view)).float()


class BucketedStep(DecodeStep):
    """Computes the next larger of few shapes, from inputs in buffers that stay; on a GPU as a CUDA graph."""

    def __init__(self, model: MLLM):
        super().__init__(model)
        self._cache: Cache | None = None
        self._passes: dict[_Shape, _Pass] = {}
        self._pool: Any = None  # one memory for all graphs: none needs what another has left there

    def rows(self, count: int) -> int:
        return _power_of_two(count)

    def forget(self) -> None:
        self._cache = None
        self._passes.clear()
        self._pool = None  # it ends with the last graph in it, and can't take another one

    def __call__(self, cache: Cache, tokens_BT: np.ndarray, slot_BT: np.ndarray, *, spare: np.ndarray) -> torch.Tensor:
        if cache is not self._cache:  # a graph reads and writes the memory that it was recorded with
            self.forget()
            self._cache = cache
        count, news = tokens_BT.shape
        slots = min(-(-(int(slot_BT.max()) + 1) // SLOTS) * SLOTS, cache.length)
        shape = _Shape(count + len(spare), _power_of_two(news), slots)
        if shape not in self._passes:
            if self._pool is None and self.model.decoder.embedding.weight.is_cuda:
                self._pool = torch.cuda.graph_pool_handle()
            self._passes[shape] = _Pass(self.model, cache, shape, pool=self._pool)
        inputs_2BT = np.zeros((2, shape.rows, shape.tokens), np.int64)
        inputs_2BT[1, count:] = spare[:, None]
        # a row repeats its last token, whose keys don't change
        inputs_2BT[:, :count] = np.stack((tokens_BT, slot_BT))[:, :, np.minimum(np.arange(shape.tokens), news - 1)]
        return self._passes[shape](inputs_2BT)[:count, :news]


class _Shape(NamedTuple):
    rows: int
    tokens: int
    slots: int


class _Pass:
    """The steps of one shape."""

    def __init__(self, model: MLLM, cache: Cache, shape: _Shape, *, pool: Any):
        self._decoder, self._slots, self._pool = model.decoder, shape.slots, pool
        self._cache = cache.view(slice(0, shape.rows), cache.length)
        device = model.decoder.embedding.weight.device
        self._inputs_2BT = torch.zeros(2, shape.rows, shape.tokens, dtype=torch.int64, device=device)
        self._uses = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits_BTV = torch.empty(0)

    def __call__(self, inputs_2BT: np.ndarray) -> torch.Tensor:
        self._inputs_2BT.copy_(torch.from_numpy(inputs_2BT))
        self._uses += 1
        if not self._inputs_2BT.is_cuda or self._uses <= PLAIN_USES:
            return self._compute()
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            # thread_local: other threads, such as a server's, may use the GPU meanwhile
            with torch.cuda.graph(self._graph, pool=self._pool, capture_error_mode="thread_local"):
                self._logits_BTV = self._compute()
        self._graph.replay()
        return self._logits_BTV

    def _compute(self) -> torch.Tensor:
        tokens_BT, slot_BT = self._inputs_2BT.unbind(0)
        reading = self._cache.static_reading(slot_BT, self._slots)
        position_BT = slot_BT + self._cache.shared_length
        with threads_for(self._decoder, slot_BT.numel()):
            hidden_BTD = self._decoder(self._decoder.embed(tokens_BT), position_BT, cache=reading)
            return self._decoder.logits(hidden_BTD).float()


def _power_of_two(count: int) -> int:
    """The smallest power of two that is no less than `count`."""
    return 1 << (count - 1).bit_length()


STEPS: dict[str, type[DecodeStep]] = {"cuda": BucketedStep}


def step_for(model: MLLM) -> DecodeStep:
    """The steps of the device that the model is on."""
    return STEPS.get(model.decoder.embedding.weight.device.type, DecodeStep)(model)
