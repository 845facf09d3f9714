"""A run's metrics in Ray's registry, from which the cluster's metrics endpoint and hence Prometheus get them."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from rlsys.monitoring.definitions import Metric, MetricValue, find

REFRESH_S = 5.0
"""Interval at which gauges are set again, in seconds. Ray's endpoint forgets a gauge that was not set for 20 s; a step takes longer."""


class RunMetrics:
    """Sets metrics by their names (`rlsys.monitoring.definitions`), each with the label `run`. Gauges keep their values until `close`."""

    def __init__(self, run: str):
        self.run = run
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}
        self._values: dict[str, float] = {}
        self._step: set[str] = set()  # names of the last step's metrics
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._refresher: threading.Thread | None = None

    def update(self, metrics: Mapping[str, MetricValue]) -> None:
        """Set a step's metrics that are finite numbers, and let those of the step before expire that it does not have."""
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float) and math.isfinite(value)}
        with self._lock:
            for name in self._step - numbers.keys():
                self._values.pop(name, None)
            self._step = set(numbers)
        for name, value in numbers.items():
            self.set(name, value)

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        with self._lock:
            self._values[name] = value
            self._export(name, value)
            if self._refresher is None:
                self._refresher = threading.Thread(target=self._refresh, name="metrics", daemon=True)
                self._refresher.start()

    def add(self, name: str, value: float) -> None:
        """Increase a counter by `value`, at least 0."""
        if not value:
            return  # refused by Ray
        metric, label = find(name)
        if metric.name not in self._counters:
            self._counters[metric.name] = Counter(metric.dashboard_name, _description(metric), tag_keys=("run", *label))
        self._counters[metric.name].inc(value, {"run": self.run, **label})

    def close(self) -> None:
        """Let the gauges expire."""
        self._closed.set()
        if self._refresher is not None:
            self._refresher.join()

    def _export(self, name: str, value: float) -> None:
        metric, label = find(name)
        if metric.name not in self._gauges:
            self._gauges[metric.name] = Gauge(metric.dashboard_name, _description(metric), tag_keys=("run", *label))
        self._gauges[metric.name].set(value, {"run": self.run, **label})

    def _refresh(self) -> None:
        while not self._closed.wait(REFRESH_S):
            with self._lock:
                for name, value in self._values.items():
                    self._export(name, value)


def _description(metric: Metric) -> str:
    return f"{metric.meaning} ({metric.unit})" if metric.unit else metric.meaning
