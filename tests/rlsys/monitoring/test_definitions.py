"""Every metric is defined once, and found by each of its names."""

from __future__ import annotations

import json
import re

import pytest
from commands import rlsys

from rlsys.algorithms.grpo import MEAN_OVER_TOKENS
from rlsys.monitoring.definitions import all_metrics, find


@pytest.mark.parametrize(
    ("name", "gauge", "label"),
    [
        ("kl", "rlsys_kl", {}),
        ("parse_failures/no_box", "rlsys_parse_failures", {"reason": "no_box"}),
        ("seconds/learner_forward", "rlsys_seconds", {"phase": "learner_forward"}),
        ("source/a/b.jsonl/rows", "rlsys_source_rows", {"source": "a/b.jsonl"}),
        ("source/rows/reward", "rlsys_source_reward", {"source": "rows"}),
        ("heldout_log_loss", "rlsys_heldout", {"measure": "log_loss"}),
    ],
)
def test_a_name_is_one_metric_and_one_gauge(name: str, gauge: str, label: dict[str, str]) -> None:
    metric, found = find(name)
    assert (metric.dashboard_name, found) == (gauge, label)
    assert sum(one.match(name) is not None for one in all_metrics()) == 1


@pytest.mark.parametrize("name", ["", "parse_failures/", "seconds", "kl2", "source//rows"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{name}: no metric has this name")):
        find(name)


def test_gauges_have_names_of_their_own_that_prometheus_accepts() -> None:
    names = [metric.dashboard_name for metric in all_metrics()]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]", name) for name in names)


def test_every_figure_of_the_loss_is_defined() -> None:
    assert {find(name)[0].name for name in MEAN_OVER_TOKENS} == set(MEAN_OVER_TOKENS)


def test_the_command_lists_every_metric() -> None:
    shown = rlsys("metrics")
    listed = json.loads(rlsys("metrics", "--json").stdout)
    assert [one["name"] for one in listed] == [metric.name for metric in all_metrics()]
    assert all(one["prometheus"].startswith("ray_rlsys_") and one["meaning"] for one in listed)
    assert shown.returncode == 0 and all(metric.name in shown.stdout for metric in all_metrics())
