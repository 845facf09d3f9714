"""`rlsys bench control`: the loop really goes through every sample, on stand-ins, and the figures add up."""

from __future__ import annotations

import pytest

from launch.bench.control import PHASES, render


@pytest.mark.nightly
def test_every_sample_passes_through_the_loop(bench, tiny_bench_model, tmp_path, record_ratio) -> None:
    shape = ("--engines", 20, "--samples", 480, "--step-prompts", 40, "--group-size", 4, "--processes", 2)
    document = bench("control", *shape, "--model", tiny_bench_model, "--output", tmp_path / "control.png")
    assert [(fleet["engines"], fleet["processes"]) for fleet in document["fleets"]] == [(1, 1), (16, 2), (20, 2)]
    for fleet in document["fleets"]:
        assert fleet["samples"] == fleet["judged"] == (480 if fleet["engines"] == 20 else 160)
        assert fleet["trained"] == 4 * fleet["groups_trained"] > 0
        assert fleet["driver_cpu_us"] > 0 and min(fleet["phase_us"].values()) >= 0
        # A step's phases are all there is of it; generating happens within the wait for samples.
        assert sum(fleet["phase_us"][phase] for phase in PHASES) <= fleet["wall_us"]
        assert set(fleet["store_bytes"]) == {"prompts to engines", "prompts to reward actor", "samples", "learner", "trained"}
        # Tokens of 4 bytes, with a log-probability each; a slice that dragged its table along would show here.
        assert 500 < fleet["store_bytes"]["samples"] < 5000
        assert fleet["store_bytes"]["prompts to engines"] < 2000
    largest = document["fleets"][-1]
    assert [row["samples"] for row in largest["memory"]] == [160, 320, 480, 640]
    assert len(largest["driver_cpu_us_over_time"]) == 3
    assert sum(largest["driver_cpu_us_over_time"]) / 3 == pytest.approx(largest["driver_cpu_us"])
    assert len(render(document).renderables) == 2
    assert (tmp_path / "control.png").read_bytes().startswith(b"\x89PNG")
    record_ratio("control: driver CPU per sample, 20 engines over 1", largest["driver_cpu_us"] / document["fleets"][0]["driver_cpu_us"])
