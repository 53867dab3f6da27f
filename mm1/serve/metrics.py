"""What dashboards read at /metrics: vLLM's names with the prefix `mm1:`."""

from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

REASONS = {"token": "stop", "text": "stop", "choice": "stop", "length": "length", "aborted": "abort"}
"""How vLLM calls the reasons of the engine."""

COUNTERS = {
    "prefix_cache_queries": "Positions of prompts that were looked up in the prefix cache.",
    "prefix_cache_hits": "Positions of prompts that the prefix cache held.",
    "prompt_tokens": "Tokens of prompts, image tokens included.",
    "generation_tokens": "Tokens written.",
}
HISTOGRAMS = {
    "time_to_first_token_seconds": "From the arrival of a request to its first token.",
    "inter_token_latency_seconds": "Between two tokens of an answer.",
    "e2e_request_latency_seconds": "From the arrival of a request to its end.",
    "request_queue_time_seconds": "From the arrival of a request to the start of its prefill.",
    "request_prefill_time_seconds": "From the start of the prefill to the first token.",
    "request_decode_time_seconds": "From the first token to the last.",
}


@dataclass(frozen=True, slots=True)
class Span:
    """When an answer was submitted, began to be computed, had its first and its last token, and ended; 0: never."""

    submitted: float
    started: float
    first_token: float
    last_token: float
    ended: float


class Metrics:
    """The metrics of one server."""

    def __init__(self, model_name: str):
        self.registry = CollectorRegistry()
        self._label = {"model_name": model_name}
        self._counters = {name: self._labelled(Counter, name, text) for name, text in COUNTERS.items()}
        self._histograms = {
            name: self._labelled(Histogram, name, text, buckets=SECONDS) for name, text in HISTOGRAMS.items()
        }
        self._ends = Counter(
            "mm1:request_success", "Answers by the reason of their end.", ["model_name", "finished_reason"],
            registry=self.registry,
        )  # fmt: skip

    def _labelled(self, kind: type, name: str, text: str, **options):
        return kind(f"mm1:{name}", text, ["model_name"], registry=self.registry, **options).labels(**self._label)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Show what `value` is when the metrics are read."""
        self._labelled(Gauge, name, text).set_function(value)

    def count(self, name: str, amount: float) -> None:
        """Add to one of `COUNTERS`."""
        self._counters[name].inc(amount)

    def token_gap(self, seconds: float) -> None:
        """Note the time between two tokens of an answer."""
        self._histograms["inter_token_latency_seconds"].observe(seconds)

    def ended(self, span: Span, *, reason: str) -> None:
        """Note an answer that has ended."""
        self._ends.labels(**self._label, finished_reason=REASONS[reason]).inc()
        self._observe("e2e_request_latency_seconds", span.submitted, span.ended)
        self._observe("request_queue_time_seconds", span.submitted, span.started)
        self._observe("time_to_first_token_seconds", span.submitted, span.first_token)
        self._observe("request_prefill_time_seconds", span.started, span.first_token)
        self._observe("request_decode_time_seconds", span.first_token, span.last_token)

    def _observe(self, name: str, start: float, end: float) -> None:
        if start and end:
            self._histograms[name].observe(end - start)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
