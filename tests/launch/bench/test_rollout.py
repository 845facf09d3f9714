"""`rlsys bench rollout`: both sides draw what was asked for. How fast is no matter for a test."""

from __future__ import annotations

import pytest

from launch.bench.rollout import render


@pytest.mark.nightly
def test_a_rollout_actor_beside_bare_vllm(bench, all_cores, tiny_bench_model, record_ratio) -> None:
    shape = ("--prompts", 2, "--samples", 4, "--prompt-tokens", 40, "--output-tokens", 8, "--repeats", 2)
    document = bench("rollout", "--model", tiny_bench_model, *all_cores, *shape, "model.dtype=float32", "rollout.kv_cache_gib=0.25")
    ours, bare = (document["sides"][name] for name in ("rlsys", "bare"))
    for side in (ours, bare):
        assert len(side["seconds"]) == 3 and min(side["seconds"]) > 0
        assert side["first"] == side["seconds"][0]
        assert side["tokens_per_s"] == pytest.approx(2 * 4 * 8 / (sum(side["seconds"][1:]) / 2))
    assert ours["vllm"] == bare["vllm"] and ours["device"] == bare["device"]
    assert document["share_of_bare"] == pytest.approx(ours["tokens_per_s"] / bare["tokens_per_s"])
    assert render(document).row_count == 2
    record_ratio("rollout, tiny model: tokens/s over bare vLLM's", document["share_of_bare"])
