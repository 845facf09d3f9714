"""Gauges are set again and again, as Ray forgets those that are not; tests/launch/test_prometheus.py asks a real endpoint."""

from __future__ import annotations

import threading

import pytest

from actors.cluster import metrics
from actors.cluster.metrics import RunMetrics


class Recorder:
    """Stands in for Ray's Gauge and Counter."""

    set_again = threading.Semaphore(0)

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]):
        self.name, self.tag_keys, self.calls = name, tag_keys, []
        made[name] = self

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.tag_keys)
        self.calls.append((value, tags))
        self.set_again.release()

    inc = set


made: dict[str, Recorder] = {}


@pytest.fixture(autouse=True)
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    made.clear()
    monkeypatch.setattr(metrics, "Gauge", Recorder)
    monkeypatch.setattr(metrics, "Counter", Recorder)


def test_a_gauge_keeps_its_last_value_until_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "REFRESH_S", 0.001)
    run = RunMetrics("run")
    run.set("kl", 1.0)
    run.set("kl", 2.0)
    for _ in range(10):
        assert Recorder.set_again.acquire(timeout=60)
    run.close()
    calls = made["rlsys_kl"].calls
    assert calls[0] == (1.0, {"run": "run"}) and len(calls) >= 10 and calls[-1] == (2.0, {"run": "run"})
    assert len(made) == 1 and not run._refresher.is_alive()


def test_what_a_step_does_not_have_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunMetrics("run")
    run.set("last_progress", 1.0)
    run.update({"kl": 1.0, "parse_failures/no_box": 3})
    run.update({"kl": 2.0, "entropy": float("nan")})
    assert run._values == {"last_progress": 1.0, "kl": 2.0}
    run.close()


def test_labels_are_tags_and_only_finite_numbers_are_set() -> None:
    run = RunMetrics("run")
    run.update({"parse_failures/no_box": 3, "skip_reason": "text", "loss": float("nan"), "entropy": None})
    run.add("engine_tokens/rollout-0", 5)
    run.add("engine_tokens/rollout-1", 0)
    run.close()
    assert set(made) == {"rlsys_parse_failures", "rlsys_engine_tokens"}
    assert made["rlsys_parse_failures"].calls[0] == (3, {"run": "run", "reason": "no_box"})
    assert made["rlsys_engine_tokens"].calls == [(5, {"run": "run", "engine": "rollout-0"})]
