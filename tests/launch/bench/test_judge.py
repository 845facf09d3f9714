"""`rlsys bench judge`: both sides judge what was asked for. How fast is no matter for a test."""

from __future__ import annotations

import pytest

from launch.bench.judge import render


@pytest.mark.nightly
def test_judging_beside_chat(bench, all_cores, tiny_bench_model, record_ratio) -> None:
    shape = ("--rows", 3, "--k", 4, "--output-tokens", 8, "--repeats", 2)
    document = bench("judge", "--model", tiny_bench_model, *all_cores, *shape, "model.dtype=float32", "rollout.kv_cache_gib=0.25")
    ours, chat = (document["sides"][name] for name in ("rlsys", "chat"))
    for side in (ours, chat):
        assert len(side["seconds"]) == 1 + 2 + 1 and min(side["seconds"]) > 0
        assert side["tokens_per_s"] == pytest.approx(3 * 4 * 8 / (sum(side["seconds"][1:3]) / 2))
    # The same different prompts on both sides; in the last batch one for each row.
    assert ours["prompts"] == chat["prompts"] and ours["prompts"][-1] == 3 < max(ours["prompts"])
    assert document["share_of_chat"] == pytest.approx(ours["tokens_per_s"] / chat["tokens_per_s"])
    assert render(document).row_count == 2
    record_ratio("judge, tiny model: tokens/s over LLM.chat's", document["share_of_chat"])
