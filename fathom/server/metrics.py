"""Figures for Prometheus at /metrics. Each app has a registry of its own, so that two in one process do not mix.

    from EngineService.stats() at the moment of the scrape    queue, cache, tokens, prefix hits, preemptions, drafts
    measured here, per request                                 time to first token, between tokens, end to end; outcomes

Times are what a client of this server sees: they start when the request is complete and include the queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fathom.engine.outputs import Delta
from fathom.engine.service import EngineService

_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_WHOLE = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)

_GAUGES = {  # field of EngineStats -> (metric, help)
    "running": ("fathom_requests_running", "Sequences in the running batch"),
    "waiting": ("fathom_requests_waiting", "Sequences in the queue"),
    "cache_tokens": ("fathom_cache_tokens", "Tokens that the latent cache can hold"),
    "cache_tokens_used": ("fathom_cache_tokens_used", "Tokens in pages that running requests hold"),
}
_COUNTERS = {
    "prompt_tokens": ("fathom_prompt_tokens", "Prompt tokens taken in"),
    "generated_tokens": ("fathom_generated_tokens", "Tokens generated"),
    "prefix_hit_tokens": ("fathom_prefix_hit_tokens", "Prompt tokens found in the cache"),
    "preemptions": ("fathom_preemptions", "Times a running sequence gave up its pages to others"),
    "drafted": ("fathom_drafted_tokens", "Tokens drafted by multi-token prediction"),
    "accepted": ("fathom_accepted_tokens", "Drafted tokens that the model accepted"),
}


class _EngineCollector(Collector):
    def __init__(self, service: EngineService) -> None:
        self.service = service

    def collect(self) -> Iterator[Metric]:
        stats = self.service.stats()
        for field, (name, text) in _GAUGES.items():
            yield GaugeMetricFamily(name, text, value=float(getattr(stats, field)))
        for field, (name, text) in _COUNTERS.items():
            yield CounterMetricFamily(name, text, value=float(getattr(stats, field)))


class ServerMetrics:
    """The registry of one app."""

    def __init__(self, service: EngineService) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(service))
        self.first_token = Histogram(
            "fathom_time_to_first_token_seconds", "Request to first token", buckets=_FIRST, registry=self.registry
        )
        self.between_tokens = Histogram(
            "fathom_inter_token_seconds", "Token to next token of a sample", buckets=_BETWEEN, registry=self.registry
        )
        self.end_to_end = Histogram(
            "fathom_request_seconds", "Request to end of answer", buckets=_WHOLE, registry=self.registry
        )
        self.requests = Counter(
            "fathom_requests", "HTTP requests by route and outcome", ["route", "outcome"], registry=self.registry
        )

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)

    def clock(self) -> RequestClock:
        """Start measuring a request."""
        return RequestClock(self)


class RequestClock:
    """The moments of one request's tokens."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self.metrics, self.start = metrics, perf_counter()
        self.last: dict[int, float] = {}  # moment of the newest token of each sample

    def token(self, delta: Delta) -> None:
        """A token came."""
        now = perf_counter()
        if not self.last:
            self.metrics.first_token.observe(now - self.start)
        if delta.index in self.last:
            self.metrics.between_tokens.observe(now - self.last[delta.index])
        self.last[delta.index] = now
        if delta.metrics is not None:
            self.metrics.end_to_end.observe(now - self.start)
