"""The Grafana board of a run, in the format of the dashboards that Ray itself provisions; generated from `definitions`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rlsys.monitoring.alerts import DIED
from rlsys.monitoring.definitions import STEP_PHASES, Metric
from rlsys.monitoring.queries import Query, metric_named, value_of

UID = "rlsys"
TITLE = "rlsys"
FILE = "rlsys_grafana_dashboard.json"
RAY_DATA_UID = "rayDataDashboard"
"""Of the board that Ray's dashboard embeds as its second tab under Metrics."""
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
"""The Prometheus server that the board's first variable names."""
RUN = 'SessionName=~"$SessionName", run=~"$run"'
"""Selector of the chosen runs' series."""
NODES = 'SessionName=~"$SessionName"'
WIDTH, HEIGHT = 8, 7
"""Size of a panel; Grafana's grid has 24 columns."""
DEAD = "DEAD includes those that ended as planned."
BATCH_PHASES = "draw|generate|judge"
LEARNER_PHASES = "learner_.*"
UNITS = {"seconds": "s", "bytes": "bytes"}
"""Unit of a definition -> Grafana's; the others are plain numbers."""


@dataclass(frozen=True)
class Panel:
    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    """Grafana's name."""
    stacked: bool = False
    about: str = ""
    needs_gpu: bool = False
    """Without GPUs there is no such series."""


def metrics_panel(title: str, *names: str, stacked: bool = False, **label: str) -> Panel:
    """Return a panel of metrics by their names in `definitions`."""
    metrics = [metric_named(name) for name in names]
    queries = tuple(Query(value_of(metric.name, RUN, **label), _legend(metric, len(metrics) > 1)) for metric in metrics)
    about = "\n".join(f"{metric.name}: {metric.meaning}" for metric in metrics)
    return Panel(title, queries, UNITS.get(metrics[0].unit, "short"), stacked, about)


def _legend(metric: Metric, named: bool) -> str:
    parts = ["{{run}}", metric.name if named else "", f"{{{{{metric.label}}}}}" if metric.label else ""]
    return " ".join(part for part in parts if part)


def machines_panel(title: str, metric: str, by: str, unit: str, scale: str = "", where: str = NODES, **options: Any) -> Panel:
    """Return a panel of a metric of Ray, summed by labels. `scale`: appended to the expression."""
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return Panel(title, (Query(f"sum by ({by}) ({metric}{{{where}}}){scale}", legend),), unit, **options)


def rows() -> dict[str, list[Panel]]:
    """Return the panels of each row of the board."""
    return {
        "Phases": _phases(),
        "Reward": _reward(),
        "Policy": _policy(),
        "Staleness": _staleness(),
        "Throughput": _throughput(),
        "Machines": _machines(),
    }


def _phases() -> list[Panel]:
    since = (Query(f"time() - {value_of('last_progress', RUN)}", "{{run}}"),)
    return [
        metrics_panel("Phases of a step", "seconds/{phase}", stacked=True, phase="|".join(STEP_PHASES)),
        metrics_panel("Phases of a batch", "seconds/{phase}", stacked=True, phase=BATCH_PHASES),
        metrics_panel("Phases of an update", "seconds/{phase}", stacked=True, phase=LEARNER_PHASES),
        metrics_panel("Weight transfer", "seconds/{phase}", phase="send_weights"),
        metrics_panel("Weights sent to each engine", "weight_bytes"),
        metrics_panel("Restarts", "restarts"),
        Panel("Time since the last progress", since, "s", about="Seconds since the run last completed a phase."),
    ]


def _reward() -> list[Panel]:
    return [
        metrics_panel("Reward", "reward"),
        metrics_panel("Accuracy, parse failures, equal groups", "accuracy", "parse_failure_share", "groups_equal_share"),
        metrics_panel("Parse failures by reason", "parse_failures/{reason}", stacked=True),
        metrics_panel("Reward by source", "source/{source}/reward"),
        metrics_panel("Rows by source", "source/{source}/rows", stacked=True),
        metrics_panel("A policy's samples: judge and Bradley-Terry model", "judge_score", "bt"),
        metrics_panel("A policy's samples: checks, and the judge's agreement", "gold", "judge_agreement"),
        metrics_panel("Judgements of a policy's samples", "judgements", "judgements_failed", "groups_unjudged", "groups_identical"),
        metrics_panel("Tokens of these judgements", "judge_tokens"),
        metrics_panel("Groups", "groups", "groups_unequal", "groups_trained", "groups_all_right"),
        metrics_panel("Samples", "samples", "truncated"),
        metrics_panel("Rows that are too long", "prompts_too_long"),
    ]


def _policy() -> list[Panel]:
    return [
        metrics_panel("KL from the reference policy", "kl"),
        metrics_panel("Entropy", "entropy"),
        metrics_panel("Loss", "loss", "nll"),
        metrics_panel("Gradient norm", "grad_norm"),
        metrics_panel("Learning rate", "lr"),
        metrics_panel("Ratio and clipping", "ratio", "clip_fraction"),
        metrics_panel("Skipped updates", "skipped"),
        metrics_panel("Scalar models on held-out rows", "heldout_{measure}"),
        metrics_panel("Round of rejective fine-tuning", "round"),
    ]


def _staleness() -> list[Panel]:
    lag = (Query(f"{value_of('weight_version', RUN)} - {value_of('oldest_version', RUN)}", "{{run}}"),)
    about = "Versions between the weights that sampled the step's oldest sample and those that the step sent; 1 without overlap."
    return [
        Panel("Staleness", lag, about=about),
        metrics_panel("Weight versions", "weight_version", "oldest_version"),
        metrics_panel("Batches waiting for the learners", "batches_waiting"),
        metrics_panel("Samples in flight by engine", "samples_in_flight/{engine}", stacked=True),
        metrics_panel("Engine against trainer", "mismatch", "mismatch_k3", "mismatch_max"),
        metrics_panel("Importance weights", "importance_weight", "importance_truncated"),
    ]


def _throughput() -> list[Panel]:
    return [
        metrics_panel("Tokens per second by engine", "engine_tokens/{engine}", stacked=True),
        metrics_panel("Tokens per second while generating", "generated_tokens_per_s"),
        metrics_panel("Tokens per sample", "tokens_per_sample"),
        metrics_panel("Tokens of a step", "tokens", "encoded_tokens", "row_tokens"),
    ]


def _machines() -> list[Panel]:
    return [
        machines_panel("Memory in use by machine", "ray_node_mem_used", "ip", "bytes"),
        machines_panel("Memory of the machines", "ray_node_mem_total", "ip", "bytes"),
        machines_panel("Memory by kind of process", "ray_component_rss_bytes", "Component", "bytes"),
        machines_panel("Memory in use by GPU", "ray_node_gram_used", "ip, GpuIndex", "bytes", " * 1024 * 1024", needs_gpu=True),
        machines_panel("Utilisation by GPU", "ray_node_gpus_utilization", "ip, GpuIndex", "percent", needs_gpu=True),
        machines_panel("Utilisation of the CPUs", "ray_node_cpu_utilization", "ip", "percent"),
        machines_panel("Object store", "ray_object_store_memory", "Location", "bytes"),
        machines_panel("Actors by state", "ray_actors", "Name, State", "short", where=f'Source="gcs", {NODES}', about=DEAD),
        machines_panel("Processes that died", DIED, "Name, Type", "short", " or vector(0)", about="Ended unexpectedly."),
    ]


def board(uid: str = UID) -> dict[str, Any]:
    """Return the board as Grafana's JSON. `uid`: under which Grafana knows it."""
    return {
        "uid": uid,
        "title": TITLE,
        "tags": ["rlsys"],
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": list(_variables())},
        "panels": list(_panels()),
    }


def _variables() -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "type": "datasource", "query": "prometheus", "hide": 2, "current": {}}
    some = metric_named("last_progress").prometheus_name
    for name, query in (
        ("SessionName", "label_values(ray_node_mem_used, SessionName)"),
        ("run", f'label_values({some}{{SessionName=~"$SessionName"}}, run)'),
    ):
        yield {
            "name": name,
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": query, "refId": "StandardVariableQuery"},
            "includeAll": True,
            "allValue": ".+",
            "multi": name == "run",
            "refresh": 2,
            "sort": 2,
            "current": {"text": "All", "value": "$__all"},
        }


def _panels() -> Iterator[dict[str, Any]]:
    number, top = 1, 0
    for title, panels in rows().items():
        place = {"x": 0, "y": top, "w": 24, "h": 1}
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        number, top = number + 1, top + 1
        for index, panel in enumerate(panels):
            column, line = index % (24 // WIDTH), index // (24 // WIDTH)
            yield _panel(panel, number) | {"gridPos": {"x": column * WIDTH, "y": top + line * HEIGHT, "w": WIDTH, "h": HEIGHT}}
            number += 1
        top += -(-len(panels) // (24 // WIDTH)) * HEIGHT


def _panel(panel: Panel, number: int) -> dict[str, Any]:
    style = {"fillOpacity": 20 if panel.stacked else 0, "showPoints": "auto", "stacking": {"mode": "normal" if panel.stacked else "none"}}
    targets = [
        {"refId": chr(ord("A") + index), "expr": query.expression, "legendFormat": query.legend}
        for index, query in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, "custom": style}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}, "tooltip": {"mode": "multi"}},
    }


def board_text(uid: str = UID) -> str:
    return json.dumps(board(uid), indent=2) + "\n"
