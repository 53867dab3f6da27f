"""The engine of a server: a cache of fixed size, requests in the order of their arrival, long prompts in parts."""

from dataclasses import dataclass

from mm1.generate.admission import new_positions, next_wave
from mm1.generate.decode_step import DecodeStep
from mm1.generate.engine import Engine
from mm1.generate.prefix_cache import PrefixCache
from mm1.generate.prefix_index import MIN_SHARED
from mm1.generate.prompt import Features
from mm1.generate.request import ActiveRequest, EngineRequest
from mm1.model.mllm import MLLM


@dataclass(frozen=True, slots=True)
class ServingSizes:
    """The sizes of a server's cache and of its passes.

    rows        requests that are written at a time
    kept_rows   rows beside them, which only remember prompts
    positions   of a row: the longest prompt with what is written after it
    prefill     positions of prompts in one pass; those that write wait for such a pass between two of their tokens
    """

    rows: int
    positions: int
    kept_rows: int = 0
    prefill: int = 512

    def cache_bytes(self, model: MLLM) -> int:
        """What the keys and values of all rows take."""
        config, bytes_each = model.config.decoder, model.decoder.embedding.weight.element_size()
        of_position = 2 * config.layers * config.kv_heads * config.head_width * bytes_each
        return (self.rows + self.kept_rows) * self.positions * of_position


class ServingEngine(Engine):
    """An engine whose memory doesn't change, for requests that come at any time.

    A pass over new prompts and a pass that writes take turns. A prompt of more than `prefill` positions is computed in
    parts, of whole images: what a part left in its row is found there by the next one. An image of more positions is a
    part of its own. Requests get rows in the order of their arrival, but one that begins like another that is about to
    be computed waits for that one's keys and values.
    """

    def __init__(
        self, model: MLLM, sizes: ServingSizes, *, features: Features | None = None, decode: DecodeStep | None = None
    ):
        super().__init__(model, rows=sizes.rows, features=features, decode=decode)
        self.sizes = sizes
        self._writes_next = False
        self._ready()

    @property
    def running(self) -> int:
        """Requests that have a row."""
        return len(self._requests) - len(self.waiting)

    @property
    def usage(self) -> float:
        """The share of the cache that requests use."""
        return self.prefix_cache.usage if self.prefix_cache is not None else 0.0

    def submit(self, request: EngineRequest) -> int:
        """The id of the request.

        Raises:
            ValueError: as in every engine, or it needs more positions than a row has.
        """
        after = request.decoding.max_tokens if request.continuation is None else len(request.continuation)
        longest = len(request.prompt.tokens) + after
        if longest > self.sizes.positions:
            raise ValueError(f"a request needs {longest} positions, and a row has {self.sizes.positions}")
        return super().submit(request)

    def _ready(self) -> PrefixCache:
        """The cache, empty if a failed step has left nothing of the last one."""
        if self.prefix_cache is None:
            sizes = self.sizes
            self.prefix_cache = PrefixCache(
                self.model,
                rows=sizes.rows + sizes.kept_rows,
                positions=sizes.positions,
                features=self.features,
                decode=self.decode,
            )
        return self.prefix_cache

    def _join_arrivals(self) -> None:
        self._ready()
        self._waiting, self._arrivals = [*self._waiting, *self._arrivals], []

    def _pass(self, prefix_cache: PrefixCache) -> None:
        rows = self.rows - self.running
        if self._waiting and rows and not (self._writes_next and self.running):
            self._writes_next = True
            self._prefill(prefix_cache, rows)
        elif self.running:
            self._writes_next = False
            self._decode(prefix_cache)

    def _prefill(self, prefix_cache: PrefixCache, rows: int) -> None:
        """Compute the next waiting prompts, or a part of the first one if it is long."""
        first = self._waiting[0]
        cached = first.known.whole(prefix_cache.cached(first.known))
        if new_positions(first, cached) > self.sizes.prefill:
            stop = self._next_stop(first, cached)
            if stop < len(first.known):
                self._prefill_part(first, prefix_cache, stop=stop)
                return
        self._admit(next_wave(self._waiting, prefix_cache, most=rows, positions=self.sizes.prefill), prefix_cache)

    def _next_stop(self, active: ActiveRequest, cached: int) -> int:
        """Up to which position the next part of a prompt goes."""
        length = len(active.known)
        start = min(cached, length - active.outputs)
        stop = start + max(self.sizes.prefill, MIN_SHARED)
        if active.continuation is not None and stop > length - active.outputs:
            return length  # scores need all of their logits from one pass
        whole = active.known.whole(min(stop, length))
        return whole if whole >= start + MIN_SHARED else active.known.next_whole(min(stop, length))

    def _prefill_part(self, active: ActiveRequest, prefix_cache: PrefixCache, *, stop: int) -> None:
        """Compute the prompt up to `stop`. Its row is then free, but remembers it, and no other prompt comes before."""
        part = active.known.beginning(stop, self.model.config)
        read = active.outputs - (len(active.known) - stop) if active.reading is not None else 1
        hidden_TD = prefix_cache.admit([part], [active.number], outputs=[read])
        prefix_cache.release(active.number)
        active.cached = prefix_cache.reused[0] if active.cached is None else active.cached
        self._read_prompt(active, hidden_TD)
        self._events.append(active.event())
