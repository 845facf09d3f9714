"""The board and the alert rules follow from the definitions, and have the shape that Grafana, Prometheus and Ray's dashboard expect."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import rlsys_here

from rlsys.monitoring.alerts import Thresholds, rules, rules_text
from rlsys.monitoring.board import board, board_text, rows
from rlsys.monitoring.definitions import all_metrics
from rlsys.monitoring.queries import value_of

TEXT = {"skip_reason"}
"""Metrics that are no numbers."""
EXPRESSIONS = [query.expression for panels in rows().values() for panel in panels for query in panel.queries]


def names(expression: str) -> set[str]:
    return set(re.findall(r"\bray_rlsys_\w+", expression))


def test_every_metric_is_on_the_board_and_nothing_else_of_ours() -> None:
    shown = set().union(*map(names, EXPRESSIONS))
    assert shown == {metric.prometheus_name for metric in all_metrics() if metric.name not in TEXT}


def test_rules_name_metrics_that_exist() -> None:
    known = {metric.prometheus_name for metric in all_metrics()}
    assert all(names(rule["expr"]) <= known for rule in rules())


def test_expressions_keep_the_run_and_the_label() -> None:
    assert value_of("kl") == "max by (run) (ray_rlsys_kl)"
    assert value_of("seconds/{phase}", 'run=~"a"', phase="train|judge") == (
        'max by (run, phase) (ray_rlsys_seconds{run=~"a", phase=~"train|judge"})'
    )
    assert value_of("engine_tokens/{engine}") == "sum by (run, engine) (rate(ray_rlsys_engine_tokens_total[$__rate_interval]))"
    with pytest.raises(KeyError):
        value_of("engine_tokens")


def test_the_board_has_grafanas_shape() -> None:
    document = json.loads(board_text())
    panels = document["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == list(rows())
    boxes = [panel["gridPos"] for panel in panels]
    assert all(box["x"] + box["w"] <= 24 for box in boxes)
    for one, other in combinations(boxes, 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    for panel in panels:
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
    # Ray's dashboard opens a board with var-datasource and var-SessionName.
    assert {variable["name"] for variable in document["templating"]["list"]} == {"datasource", "SessionName", "run"}
    assert set(re.findall(r"\$(\w+)", board_text())) == {"SessionName", "run", "__rate_interval", "__all"}
    assert board("other")["uid"] == "other"


def test_grafanas_own_types_read_the_board_and_lose_nothing() -> None:
    """Keys that Grafana's schema does not know, and values of another shape, would be missing when it is written again."""
    dashboard = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason="not installed (the extra grafana-test)")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins

    register_default_plugins()
    read = json.loads(JSONEncoder().encode(dashboard.Dashboard.from_json(board())))
    assert list(_differences(board(), read)) == []
    # The check sees a misspelt key of a query.
    wrong = json.loads(board_text())
    wrong["panels"][1]["targets"][0]["legendFromat"] = "x"
    read = json.loads(JSONEncoder().encode(dashboard.Dashboard.from_json(wrong)))
    assert list(_differences(wrong, read)) == ["panels.1.targets.0.legendFromat"]


def _differences(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of ours that theirs lacks or has another value for."""
    if type(ours) is not type(theirs) or (isinstance(ours, list) and len(ours) != len(theirs)):
        yield path
    elif isinstance(ours, dict):
        for key, value in ours.items():
            place = f"{path}.{key}" if path else key
            yield from _differences(value, theirs[key], place) if key in theirs else [place]
    elif isinstance(ours, list):
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from _differences(*pair, f"{path}.{number}")
    elif ours != theirs:
        yield path


def test_thresholds_are_in_the_rules() -> None:
    found = {rule["alert"]: rule["expr"] for rule in rules(Thresholds(stalled_minutes=2, kl=0.25, parse_failures=0.75, entropy=0.125))}
    assert found["RlsysNoStep"].endswith("> 120") and found["RlsysKlHigh"].endswith("> 0.25")
    assert found["RlsysParseFailures"].endswith("> 0.75") and found["RlsysEntropyZero"].endswith("< 0.125")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Prometheus: apt-get install prometheus")
def test_prometheus_accepts_the_rules(tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    file.write_text(rules_text())
    result = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0 and "5 rules found" in result.stdout, result.stderr


def test_the_command_writes_all_files(tmp_path: Path) -> None:
    folder, session = tmp_path / "monitoring", tmp_path / "session"
    result = rlsys_here("board", "-o", folder, "--session", session, "--kl", "0.25")
    assert result.returncode == 0, result.stderr
    assert json.loads((folder / "rlsys_grafana_dashboard.json").read_text())["uid"] == "rlsys"
    prometheus = yaml.safe_load((folder / "prometheus.yml").read_text())
    assert prometheus["rule_files"] == [str(folder / "rlsys_alerts.yml")]
    (scraped,) = prometheus["scrape_configs"]
    assert scraped["file_sd_configs"][0]["files"] == [str(session / "prom_metrics_service_discovery.json")]
    (group,) = yaml.safe_load((folder / "rlsys_alerts.yml").read_text())["groups"]
    assert group["rules"] == rules(Thresholds(kl=0.25))


def test_in_rays_dashboard_the_board_takes_the_place_of_ray_datas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR", raising=False)
    monkeypatch.setenv("RAY_GRAFANA_DATA_DASHBOARD_UID", "mine")
    session = tmp_path / "session"
    missing = rlsys_here("board", "-o", tmp_path / "out", "--in-ray", "--session", session)
    assert missing.returncode == 2 and "data_grafana_dashboard.json does not exist" in missing.stderr
    place = session / "metrics" / "grafana" / "dashboards" / "data_grafana_dashboard.json"
    place.parent.mkdir(parents=True)
    place.write_text("{}")
    assert rlsys_here("board", "-o", tmp_path / "out", "--in-ray", "--session", session).returncode == 0
    assert json.loads(place.read_text()) == board("mine")
