"""`rlsys bench start`: every stage of both sides, one after the other. How long they take is no matter for a test."""

from __future__ import annotations

import pytest

from launch.bench.start import render


@pytest.mark.nightly
def test_stages_of_a_run_beside_bare_vllm(bench, all_cores, tiny_bench_model, record_ratio) -> None:
    document = bench("start", *all_cores, "--model", tiny_bench_model, "model.dtype=float32", "rollout.kv_cache_gib=0.25")
    ours, bare = (document["sides"][name]["ends"] for name in ("rlsys", "bare"))
    assert len(ours) == 5 and len(bare) == 3
    for ends in (list(ours.values()), list(bare.values())):
        assert ends == sorted(ends) and ends[0] > 0
    assert document["times_bare"] == pytest.approx(ours["first sample"] / bare["first sample"])
    assert 0 < document["sides"]["rlsys"]["engine_s"] < ours["first sample"]
    assert render(document).row_count == 8
    record_ratio("start, tiny model: seconds to the first sample over bare vLLM's", document["times_bare"])
