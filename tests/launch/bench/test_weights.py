"""`rlsys bench weights`: weights are really sent, whole, and the figures add up. How fast is no matter for a test."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM

from launch.bench.weights import STAGES, render


@pytest.mark.nightly
def test_verified_updates_by_stage(bench, all_cores, tiny_bench_model, record_ratio) -> None:
    document = bench("weights", "--model", tiny_bench_model, *all_cores, "--zero-stage", 3, "--repeats", 2, "--verify")
    assert document["work"]["verified"] and document["work"]["zero_stage"] == 3
    # In bf16, which is what a run sends: two bytes for each of its weights.
    model = AutoModelForCausalLM.from_pretrained(tiny_bench_model)
    assert document["bytes"] == 2 * sum(parameter.numel() for parameter in model.parameters())
    assert len(document["updates"]) == 3
    for update in document["updates"]:
        assert set(update["stages"]) == set(STAGES) and min(update["stages"].values()) > 0
        assert sum(update["stages"].values()) <= update["seconds"]
        assert update["verify_seconds"] > 0
        assert 0 < update["engines"][0]["seconds"] < update["seconds"]
    later = [update["seconds"] for update in document["updates"][1:]]
    assert document["median"]["seconds"] == pytest.approx(sum(later) / 2)
    assert document["bytes_per_s"] == pytest.approx(document["bytes"] / document["median"]["seconds"])
    assert document["share_of_memcpy"] == pytest.approx(document["bytes_per_s"] / document["memcpy_bytes_per_s"])
    assert render(document).row_count > len(STAGES)
    record_ratio("weights, tiny model: one update over copying its bytes", 1 / document["share_of_memcpy"])
