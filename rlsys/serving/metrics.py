"""Metrics of a service, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rlsys.serving.contract import SampleResult

LATENCY_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The metrics of one app, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("rlsys_serve_requests", "HTTP requests", ["route", "status"], registry=self.registry)
        self.latency = Histogram(
            "rlsys_serve_seconds",
            "Seconds from a request to the end of its answer",
            ["route"],
            registry=self.registry,
            buckets=LATENCY_BUCKETS_S,
        )
        self.in_progress = Gauge("rlsys_serve_in_progress", "Judgements and chats in progress or queued", registry=self.registry)
        self.tokens = Counter("rlsys_serve_tokens", "Tokens, of distinct prompts and generated", ["kind"], registry=self.registry)
        self.samples = Counter(
            "rlsys_serve_samples", "Finished samples: parsed, failed, or cut_off at the token limit", ["outcome"], registry=self.registry
        )
        self.failures = Counter("rlsys_serve_parse_failures", "Samples without scores", ["reason"], registry=self.registry)

    def count_sample(self, sample: SampleResult) -> None:
        """Count a finished sample."""
        parsed = sample.parse_failure is None
        self.samples.labels("parsed" if parsed else "cut_off" if sample.truncated else "failed").inc()
        self.tokens.labels("generated").inc(sample.tokens)
        if sample.parse_failure is not None:
            self.failures.labels(sample.parse_failure).inc()

    def text(self) -> bytes:
        """Return all metrics as Prometheus reads them."""
        return generate_latest(self.registry)
