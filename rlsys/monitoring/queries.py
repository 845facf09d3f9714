"""Queries in PromQL of what `definitions` and Ray itself export, for the board and the alert rules."""

from __future__ import annotations

from dataclasses import dataclass

from rlsys.monitoring.definitions import Metric, all_metrics

RATE_WINDOW = "$__rate_interval"
"""Grafana replaces it by a window that fits the scrape interval."""


@dataclass(frozen=True)
class Query:
    """A query and the legend of its series."""

    expression: str
    legend: str


def metric_named(name: str) -> Metric:
    """Return the metric that is defined as `name`, with its label in braces.

    Raises:
        KeyError: there is none.
    """
    return {metric.name: metric for metric in all_metrics()}[name]


def value_of(name: str, selector: str = "", **label: str) -> str:
    """Return the expression of a metric's current value (of a counter: its rate per second) by run and label.

    Args:
        selector: conditions on labels, as in `run=~"$run"`.
        label: a regular expression that the metric's label has to match.
    """
    metric = metric_named(name)
    conditions = ", ".join([*([selector] if selector else []), *(f'{key}=~"{value}"' for key, value in label.items())])
    by = ", ".join(["run", *([metric.label] if metric.label else [])])
    series = f"{metric.prometheus_name}{{{conditions}}}" if conditions else metric.prometheus_name
    if metric.kind == "counter":
        return f"sum by ({by}) (rate({series}[{RATE_WINDOW}]))"
    return f"max by ({by}) ({series})"
