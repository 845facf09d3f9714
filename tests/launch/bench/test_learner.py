"""`rlsys bench learner`: it does the updates that were asked for, and its figures add up. How fast is no matter for a test."""

from __future__ import annotations

import pytest

from launch.bench.learner import render
from launch.bench.learner_memory import SETTINGS
from launch.bench.learner_memory import render as render_memory
from launch.bench.work import TRAIN_PARTS

SHAPE = ("--prompts", 2, "--samples", 4, "--prompt-tokens", 60, "--output-tokens", 10, "--repeats", 2)


def check_the_same_update(packed: dict, unpacked: dict, rel: float) -> None:
    """However it is laid out: same gradients, same useful work."""
    norms = [[step["grad_norm"] for step in form["steps"]] for form in (packed, unpacked)]
    assert min(norms[0]) > 0 and norms[0] == pytest.approx(norms[1], rel=rel)
    assert packed["useful_flops"] == unpacked["useful_flops"] > 0


@pytest.mark.nightly
def test_packed_beside_unpacked(bench, all_cores, tiny_bench_model, record_ratio) -> None:
    document = bench("learner", "--model", tiny_bench_model, *all_cores, *SHAPE, "model.dtype=float32", "learner.ranks=2")
    packed, unpacked = (document["forms"][name] for name in ("packed", "unpacked"))
    # Nothing is shared between the two prompts; a completion's last token predicts nothing.
    assert packed["encoded_tokens"] == 2 * (60 + 4 * 9)
    assert unpacked["encoded_tokens"] == 8 * (60 + 9)
    for form in (packed, unpacked):
        assert len(form["steps"]) == 3 and form["settings"]["ranks"] == 2
        # Until the first update the reference is the policy, and is not asked.
        assert [step["seconds"]["reference"] > 0 for step in form["steps"]] == [False, True, True]
        for step in form["steps"]:
            parts = [step["seconds"][name] for name in TRAIN_PARTS]
            assert min(parts[1:]) > 0 and sum(parts) <= step["seconds"]["whole"]
        assert form["samples_per_s"] == pytest.approx(8 / form["median"]["whole"])
        assert form["share_of_ceiling"] == pytest.approx(form["useful_flops"] / form["median"]["whole"] / form["ceiling_flops_per_s"])
        assert form["peak_bytes"] >= form["resident_bytes_before"] > 0
    check_the_same_update(packed, unpacked, rel=1e-3)
    assert render(document).row_count > len(TRAIN_PARTS)
    record_ratio("learner, tiny model, 2 x 4 x (60 + 10): packed over unpacked", document["times_as_fast_as_unpacked"])


@pytest.mark.nightly
def test_the_default_model_for_the_record(bench, all_cores, record_ratio) -> None:
    shape = ("--prompts", 2, "--samples", 4, "--prompt-tokens", 256, "--output-tokens", 32, "--repeats", 1)
    document = bench("learner", *all_cores, *shape)
    packed, unpacked = (document["forms"][name] for name in ("packed", "unpacked"))
    assert packed["encoded_tokens"] == 2 * (256 + 4 * 31)
    assert unpacked["encoded_tokens"] == 8 * (256 + 31)
    check_the_same_update(packed, unpacked, rel=0.1)  # bf16 rounds differently in each form; in float32 they agree to 1e-5
    record_ratio("learner, default model, 2 x 4 x (256 + 32): packed over unpacked", document["times_as_fast_as_unpacked"])
    record_ratio("learner, default model: share of the machine's matrix rate", packed["share_of_ceiling"])


@pytest.mark.nightly
def test_what_the_settings_for_larger_models_save(bench, all_cores, tiny_bench_model) -> None:
    shape = ("--prompts", 4, "--samples", 4, "--prompt-tokens", 128, "--output-tokens", 32)
    document = bench("learner", "--memory", "--model", tiny_bench_model, *all_cores, *shape, "learner.ranks=2", "learner.token_budget=512")
    memory = document["memory"]
    assert list(memory) == list(SETTINGS) and {result["ranks"] for result in memory.values()} == {2}
    given = memory["as given"]
    assert all(result["peak_bytes"] > result["held_bytes"] > 0 for result in memory.values())
    assert memory["activation checkpointing"]["peak_bytes"] < given["peak_bytes"]
    assert memory["reference sharded"]["held_bytes"] < given["held_bytes"]
    # Without a GPU, what is moved to the host stays.
    for moved in ("reference on the host", "states released"):
        assert memory[moved]["held_bytes"] == pytest.approx(given["held_bytes"], rel=0.05), moved
    assert render_memory(document).row_count == len(SETTINGS)
