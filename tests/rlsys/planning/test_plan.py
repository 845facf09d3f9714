"""Plans against figures worked out by hand, and the promise that a suggestion, applied, fits."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rlsys.config.files import load_config
from rlsys.config.schema import Config
from rlsys.planning.activations import softmax_entries
from rlsys.planning.advice import fitting_nodes, suggest
from rlsys.planning.batch import step_of
from rlsys.planning.cluster import GIB, Machines, lay_out
from rlsys.planning.plan import Plan, make_plan
from rlsys.planning.shape import ModelShape, read_shape
from rlsys.planning.tables import document, tables
from rlsys.system import terminal

SHAPES = Path(__file__).parents[3] / "launch" / "configs" / "shapes"
BILLION = 10**9


def config(*overrides: str) -> Config:
    return load_config(None, list(overrides))


@cache
def shape(name: str) -> ModelShape:
    return read_shape(SHAPES / f"{name}.json")


def plan(name: str, machines: Machines, *overrides: str) -> Plan:
    return make_plan(config(*overrides), shape(name), machines)


SHARED = ("learner.ranks=8", "rollout.actors=8", "learner.zero_stage=2")
SPLIT_27B = ("learner.ranks=16", "rollout.actors=8", "rollout.tensor_parallel=2", "learner.zero_stage=3", "rl.beta=0.08")
CHECKPOINTING = ("learner.activation_checkpointing=true",)
SPLIT_27B += CHECKPOINTING
FOUR_BY_EIGHT = Machines(nodes=4, gpus=8)


def test_7b_on_eight_shared_gpus() -> None:
    """By hand: 7.6e9 x (2 weights + 2 reference + (4 gradients + 12 optimizer) / 8) = 46 GB; the engine takes 0.4 x 80 GiB."""
    planned = plan("Qwen2.5-7B-Instruct", Machines(gpus=8), *SHARED)
    phases = planned.memory[1, 1]
    learner = sum(phases["train"][part] for part in ("weights", "reference", "gradients", "optimizer"))
    engine = sum(value for part, value in phases["sample"].items() if part in ("engine weights", "engine activations", "KV cache"))
    assert learner / BILLION == pytest.approx(45.7, abs=0.1)
    assert engine / GIB == pytest.approx(32)
    assert learner + engine > 80 * BILLION
    assert planned.resolved.sleep and "KV cache" not in phases["train"]


def test_more_gpus_than_key_heads_replicate_the_cache() -> None:
    """Qwen2.5-7B has 28 heads and 4 key heads: 4 GPUs divide the cache; vLLM refuses 8, which do not divide the heads."""
    tokens = {}
    for parallel in (1, 2, 4, 7):
        placed = ("learner.ranks=1", "rollout.actors=1", f"rollout.tensor_parallel={parallel}", "rollout.kv_cache_gib=8")
        planned = plan("Qwen2.5-7B-Instruct", Machines(gpus=8), *placed)
        tokens[parallel] = planned.cache_tokens
        assert not any("attention heads" in misfit for misfit in planned.misfits)
    assert (tokens[2] / tokens[1], tokens[4] / tokens[1], tokens[7] / tokens[1]) == pytest.approx((2, 4, 4))
    refused = plan("Qwen2.5-7B-Instruct", Machines(nodes=2, gpus=8), "learner.ranks=1", "rollout.actors=1", "rollout.tensor_parallel=8")
    assert any("does not divide the model's 28 attention heads" in misfit for misfit in refused.misfits)


def test_cpu_engines_keep_their_memory_while_they_sleep() -> None:
    awake, asleep = (plan("Qwen3-0.6B", Machines(gpus=0), f"rollout.sleep={sleep}").memory for sleep in ("false", "true"))
    assert awake == asleep


def test_gathers_of_the_reference_follow_how_it_is_kept() -> None:
    def volume(stage: int, kind: str) -> float:
        settings = ("learner.ranks=8", "rollout.actors=8", f"learner.zero_stage={stage}", f"learner.reference={kind}")
        planned = plan("Qwen2.5-7B-Instruct", Machines(gpus=8), *settings)
        (found,) = (each.size for each in planned.transfers if each.name == "gradients and weights among the learners")
        return found

    for stage in (2, 3):
        assert volume(stage, "sharded") > volume(stage, "host")
    assert volume(3, "auto") == volume(3, "sharded") and volume(2, "auto") == volume(2, "host")


def test_27b_on_four_machines() -> None:
    """By hand: 27.2e9 x (2 + 2 + 4 + 12) / 16 = 34 GB per rank; a model of 54 GB is written, and loaded once per machine."""
    planned = plan("gemma-2-27b-it", FOUR_BY_EIGHT, *SPLIT_27B)
    states = [planned.memory[1, 0]["train"][part] for part in ("weights", "reference", "gradients", "optimizer")]
    assert sum(states) / BILLION == pytest.approx(34.0, abs=0.1)
    assert planned.checkpoint["model"] / BILLION == pytest.approx(54.5, abs=0.1)
    assert planned.host["weights while they load"] / BILLION == pytest.approx(54.5, abs=0.1)
    (sent,) = (each for each in planned.transfers if each.name.startswith("new weights"))
    assert (sent.wire, sent.seconds) == ("between machines", pytest.approx(54.45 / 25, rel=0.01))


def test_without_zero_3_every_rank_loads_the_model() -> None:
    """By hand: 8 x 54 GB = 436 GB on a machine."""
    planned = plan("gemma-2-27b-it", FOUR_BY_EIGHT, *SPLIT_27B, "learner.zero_stage=2")
    assert planned.host["weights while they load"] / BILLION == pytest.approx(435.6, abs=1)


def test_shared_gpus_release_states_while_engines_sample() -> None:
    planned = plan("Qwen3-8B", Machines(gpus=8), *SHARED)
    kept = plan("Qwen3-8B", Machines(gpus=8), *SHARED, "learner.release=false")
    released = set(kept.memory[1, 1]["sample"]) - set(planned.memory[1, 1]["sample"])
    assert released == {"optimizer", "reference"}
    assert planned.memory[1, 1]["train"] == kept.memory[1, 1]["train"]
    assert planned.host["optimizer of every rank"] == 8 * kept.memory[1, 1]["sample"]["optimizer"]
    assert "optimizer of every rank" not in kept.host


@pytest.mark.parametrize(
    ("setting", "elsewhere"),
    [("learner.offload=optimizer", {"optimizer", "gradients"}), ("learner.offload=all", {"optimizer", "gradients", "weights"})],
)
def test_offload_moves_states_to_the_host(setting: str, elsewhere: set[str]) -> None:
    here = plan("Qwen3-8B", Machines(gpus=8), *SHARED, "learner.zero_stage=3")
    there = plan("Qwen3-8B", Machines(gpus=8), *SHARED, "learner.zero_stage=3", setting)
    assert set(here.memory[1, 1]["train"]) - set(there.memory[1, 1]["train"]) == elsewhere
    for name in elsewhere:
        assert there.host[f"{name} of every rank"] == 8 * here.memory[1, 1]["train"][name]


def test_the_reference_may_be_elsewhere() -> None:
    whole, sharded, host = (
        plan("Qwen3-8B", Machines(gpus=8), *SHARED, f"learner.reference={kind}") for kind in ("whole", "sharded", "host")
    )
    assert whole.memory[1, 1]["train"]["reference"] == 8 * sharded.memory[1, 1]["train"]["reference"]
    assert host.memory[1, 1]["train"]["reference"] == whole.memory[1, 1]["train"]["reference"]
    assert "reference" not in host.memory[1, 1]["sample"]


def test_softmaxes_of_long_prompts() -> None:
    """Blocks of one group of 8k prompts at 0.6B: every softmax of 16 heads and 28 layers in bfloat16 takes about 65 GB."""
    pairs = softmax_entries(8192, 4, 1024)
    assert 2 * 16 * 28 * pairs / BILLION == pytest.approx(65, rel=0.05)


def test_who_is_where() -> None:
    devices, colocated = lay_out(config(*SPLIT_27B), FOUR_BY_EIGHT)
    assert not colocated
    assert [(device.node, device.gpu) for device in devices] == [(node, gpu) for node in range(4) for gpu in range(8)]
    assert [rank for device in devices for rank in device.ranks] == list(range(16))
    assert [engine for device in devices for engine in device.engines] == [number // 2 for number in range(16)]
    assert not any(device.ranks and device.engines for device in devices)


def test_the_largest_step() -> None:
    """By hand: two groups of 100 + 4 x 49 = 296 tokens fit into 600; four ranks get two each."""
    step = step_of(
        config("prompt.max_tokens=100", "rollout.max_tokens=50", "rl.group_size=4", "rl.prompts_per_step=8", "learner.token_budget=600"), 4
    )
    assert (step.samples, step.sampled_tokens, step.group_tokens, step.encoded_tokens) == (32, 1600, 296, 8 * 296)
    assert (step.micro_batches, step.micro_batch_groups, step.micro_batch_tokens, step.scored_tokens) == (1, 2, 592, 400)


def test_a_group_beyond_the_budget_sets_the_size() -> None:
    step = step_of(config("prompt.max_tokens=1000", "rollout.max_tokens=101", "rl.group_size=8", "learner.token_budget=512"), 1)
    assert (step.micro_batch_tokens, step.micro_batches) == (1000 + 8 * 100, 16)


def test_zero_divides_the_states() -> None:
    one, eight = (plan("Qwen3-8B", Machines(), *SHARED, f"learner.zero_stage={stage}").memory[1, 1]["train"] for stage in (2, 3))
    assert eight["weights"] * 8 == one["weights"] and eight["optimizer"] == one["optimizer"]


def test_without_beta_there_is_no_reference() -> None:
    assert "reference" not in plan("Qwen3-0.6B", Machines(gpus=1), "rl.beta=0").memory[1, 1]["train"]


def test_more_machines_need_not_fit_more_gpus_than_there_are() -> None:
    with pytest.raises(ValueError, match="the cluster has 1"):
        plan("Qwen3-0.6B", Machines(gpus=1), "learner.ranks=2")


TOO_LARGE = {
    "softmaxes": ("Qwen3-0.6B", Machines(gpus=1), ("learner.attention=blocks", "prompt.max_tokens=8192", "rollout.max_tokens=1024")),
    "activations": ("Qwen3-1.7B", Machines(gpus=1), ("learner.token_budget=65536", "prompt.max_tokens=4096", "rl.prompts_per_step=64")),
    "states": ("Qwen3-8B", Machines(gpus=8), (*SHARED, "learner.zero_stage=1")),
    "awake": (
        "Qwen3-8B",
        Machines(gpus=8),
        (*SHARED, "rollout.sleep=false", "learner.release=false", "rollout.gpu_memory_utilization=0.6"),
    ),
    "cache": ("Qwen3-8B", Machines(gpus=8), (*SHARED, "learner.zero_stage=3", "rollout.gpu_memory_utilization=0.21")),
    "engine": ("Qwen3-32B", FOUR_BY_EIGHT, ("learner.ranks=16", "rollout.actors=16", "learner.zero_stage=3")),
    "small GPUs": ("Qwen3-1.7B", Machines(gpus=1, memory_gib=40), ()),
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_a_suggestion_applied_fits(case: str) -> None:
    name, machines, overrides = TOO_LARGE[case]
    settings, model = config(*overrides), shape(name)
    assert not make_plan(settings, model, machines).fits
    suggestions = suggest(settings, model, machines)
    assert suggestions
    for change in suggestions:
        assert make_plan(load_config(None, list(change), start=settings), model, machines).fits, change


@hypothesis_settings(max_examples=20)
@given(
    st.sampled_from(["Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-8B"]),
    st.sampled_from([0, 1, 2, 3]),
    st.sampled_from([24.0, 48.0, 80.0]),
    st.sampled_from([0.2, 0.4, 0.9]),
    st.sampled_from([1024, 8192]),
    st.sampled_from(["blocks", "flex"]),
    st.booleans(),
)
def test_every_suggestion_fits(name: str, stage: int, memory: float, share: float, prompt: int, attention: str, sleep: bool) -> None:
    machines = Machines(gpus=4, memory_gib=memory)
    changes = [f"learner.zero_stage={stage}", f"rollout.gpu_memory_utilization={share}", f"prompt.max_tokens={prompt}"]
    changes += [f"learner.attention={attention}", f"rollout.sleep={str(sleep).lower()}", "learner.ranks=4", "rollout.actors=4"]
    settings, model = config(*changes), shape(name)
    suggestions = suggest(settings, model, machines)
    assert not (suggestions and make_plan(settings, model, machines).fits)
    for change in suggestions:
        assert make_plan(load_config(None, list(change), start=settings), model, machines).fits, change


def test_nothing_to_suggest_for_what_fits() -> None:
    assert suggest(config(), shape("Qwen3-0.6B"), Machines(gpus=1)) == []


def test_more_machines() -> None:
    overrides = ("learner.ranks=8", "rollout.actors=1", "rollout.tensor_parallel=8", "learner.zero_stage=3", *CHECKPOINTING)
    settings, model = config(*overrides, "rollout.gpu_memory_utilization=0.6"), shape("Qwen3-32B")
    machines = Machines(gpus=8, memory_gib=24)
    assert not make_plan(settings, model, machines).fits
    found = fitting_nodes(settings, model, machines)
    assert found is not None
    nodes, change = found
    assert nodes > 1
    assert make_plan(load_config(None, list(change), start=settings), model, Machines(nodes=nodes, gpus=8, memory_gib=24)).fits


def test_a_misfit_names_parts_and_limit() -> None:
    planned = plan("Qwen3-8B", Machines(gpus=8), *SHARED, "learner.zero_stage=0")
    (misfit, *_) = planned.misfits
    assert "learner rank + rollout engine" in misfit and "80 GiB there" in misfit and "optimizer 91.5" in misfit


def test_the_host_is_checked_if_known() -> None:
    assert not plan("gemma-2-27b-it", FOUR_BY_EIGHT, *SPLIT_27B).misfits
    (misfit,) = plan("gemma-2-27b-it", Machines(nodes=4, gpus=8, host_gib=64), *SPLIT_27B).misfits
    assert "host memory" in misfit


def test_a_context_beyond_the_model_is_named() -> None:
    (misfit,) = plan("gemma-2-27b-it", FOUR_BY_EIGHT, *SPLIT_27B, "prompt.max_tokens=8192").misfits
    assert "the model takes 8,192" in misfit


def test_a_machine_without_gpus_holds_everyone() -> None:
    planned = plan("smollm2-135m-instruct", Machines(gpus=0, memory_gib=16), "learner.attention=blocks", "learner.ranks=2")
    assert list(planned.memory) == [(2, 1)]
    parts = planned.memory[2, 1]["train"]
    assert parts["KV cache"] == 2 * GIB and parts["weights"] == 2 * 2 * 134_515_008


def test_tables_show_what_the_document_says() -> None:
    planned = plan("gemma-2-27b-it", FOUR_BY_EIGHT, *SPLIT_27B)
    console = terminal.silent()
    console.record, console.quiet, console.width = True, False, 200
    with console.capture() as captured:
        for table in tables(planned):
            console.print(table)
    text = captured.get()
    for name in ("learner-15", "rollout-7", "16 GPUs with rollout engine", "gathered weights", "checkpoint: optimizer"):
        assert name in text
    written: dict[str, Any] = document(planned)
    assert written["fits"] and len(written["devices"]) == 32
    assert {(each["ranks"], each["engines"]) for each in written["memory"]} == {(1, 0), (0, 1)}
