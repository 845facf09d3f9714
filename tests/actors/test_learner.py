"""The learner's ranks, in real Ray actors with real DeepSpeed, against a plain PyTorch loop over whole, unpacked sequences."""

from __future__ import annotations

import numpy as np
import plain_grpo
import pytest
import ray
import torch
from learner_batches import learner_batch
from plain_grpo import GROUPS, LR, TEMPERATURE, WAIT_S, PlainGrpo, Probe, distance, identical, plain_logprobs
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.cluster.waiting import Pending, wait
from actors.learner.learner import LearnerActor
from launch.console import exit_status
from rlsys.algorithms.mismatch import MismatchError, MismatchGuard
from rlsys.config.schema import Config, Learner, Rl
from rlsys.data.chain import LearnerBatch
from rlsys.models.loading import ModelError
from rlsys.models.zoo import FAMILIES, build

STAGES_AND_RANKS = [(2, 1), (3, 1), (0, 2), (1, 2), (2, 2), (3, 2)]


@pytest.fixture(scope="module")
def ranks(start_ranks, tiny_model, tmp_path_factory):
    logs = tmp_path_factory.mktemp("learner_logs")
    ray.cloudpickle.register_pickle_by_value(plain_grpo)
    actor = ray.remote(Probe).options(num_cpus=0)

    def start(world_size: int):
        common = (world_size, str(tiny_model), Learner(ranks=world_size), Rl(), "float32", 0, str(logs), 1, WAIT_S)
        started = start_ranks(lambda rank: actor.remote(rank, *common), world_size)
        started.logs = logs
        return started

    return {world_size: start(world_size) for world_size in (1, 2)}


def test_every_rank_says_what_it_is(ranks):
    descriptions = ranks[2].descriptions
    assert [each["name"] for each in descriptions] == ["learner-0", "learner-1"]
    assert {each["threads"] for each in descriptions} == {1}


def test_libraries_output_goes_to_a_file(ranks):
    ranks[2]("write_output")
    log = (ranks[2].logs / "learner-1.log").read_text()
    assert "printed" in log and "written by C" in log and "a warning of DeepSpeed" in log


@pytest.mark.parametrize("token_budget", [32, 4096])
@pytest.mark.parametrize(("stage", "world_size"), STAGES_AND_RANKS)
def test_two_steps_equal_the_plain_loop(ranks, batch, tiny_model, stage, world_size, token_budget):
    learner = ranks[world_size]
    learner("rebuild", {"zero_stage": stage, "token_budget": token_budget}, {})
    plain = PlainGrpo(tiny_model, beta=0.05)
    # The second step has moments, and a reference that differs from the policy. AdamW's first step moves every weight by about the
    # learning rate, however small its gradient: where that is rounding alone, so is the weight from which the second step begins.
    for tolerance in (2e-6, 2e-5):
        before = plain.weights()
        expected = plain.step(batch, TEMPERATURE)
        metrics = learner.first("train_grpo", batch, TEMPERATURE)["metrics"]
        for name in ("loss", "importance_truncated"):
            assert metrics[name] == pytest.approx(expected[name], rel=1e-5), name
        # Two norms differ by no more than the norm of the difference.
        assert metrics["grad_norm"] == pytest.approx(expected["grad_norm"], rel=max(tolerance, 1e-5))
        assert metrics["kl"] == pytest.approx(expected["kl"], rel=1e-4, abs=1e-9)
        assert distance(learner.first("gradients"), plain.gradient) < tolerance
        weights = learner.first("weights")
        moved = {name: weights[name] - before[name] for name in weights}
        assert distance(moved, {name: value - before[name] for name, value in plain.weights().items()}) < 1e-3
    assert expected["importance_truncated"] > 0 and expected["kl"] > 0
    assert metrics["tokens"] == sum(sum(lengths) for _, lengths in GROUPS)


def test_a_shared_prompt_is_encoded_once(ranks, batch):
    ranks[1]("rebuild", {"token_budget": 4096}, {"beta": 0.0})
    metrics = ranks[1].first("train_grpo", batch, TEMPERATURE)["metrics"]
    assert metrics["encoded_tokens"] <= sum(prompt + sum(lengths) for prompt, lengths in GROUPS)


def test_the_reference_is_asked_from_the_second_step_on(ranks, batch):
    ranks[1]("rebuild", {}, {})
    first, second = (ranks[1].first("train_grpo", batch, TEMPERATURE) for _ in range(2))
    # Until the first update it is the policy, which has answered already.
    assert first["metrics"]["kl"] == 0 == first["metrics"]["seconds/learner_reference"]
    assert first["samples"]["reference_logprob"] == first["samples"]["trainer_logprob"]
    assert second["metrics"]["kl"] > 0 and second["metrics"]["seconds/learner_reference"] > 0
    assert second["samples"]["reference_logprob"].to_pylist() == pytest.approx(first["samples"]["trainer_logprob"].to_pylist(), abs=1e-4)


def test_several_updates_on_one_batch_are_clipped_against_the_first_policy(ranks, batch, tiny_model):
    ranks[2]("rebuild", {"zero_stage": 2, "lr": LR}, {"updates_per_batch": 3})
    plain = PlainGrpo(tiny_model, beta=0.05)
    expected = plain.step(batch, TEMPERATURE, passes=3)
    metrics = ranks[2].first("train_grpo", batch, TEMPERATURE)["metrics"]
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert metrics["kl"] == pytest.approx(expected["kl"], rel=1e-4)
    assert metrics["clip_fraction"] > 0


def test_samples_carry_the_log_probabilities_before_the_update(ranks, batch, tiny_model):
    ranks[2]("rebuild", {"zero_stage": 3}, {})
    answers = ranks[2]("train_grpo", batch, TEMPERATURE)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    expected = [plain_logprobs(model, row, TEMPERATURE).mean().item() for row in batch.to_pylist()]
    for answer in answers:
        samples = answer["samples"].to_pydict()
        assert list(zip(samples["group"], samples["sample"], strict=True)) == [(group, i) for group in range(3) for i in range(4)]
        assert samples["trainer_logprob"] == pytest.approx(expected, rel=1e-5)
        assert samples["reference_logprob"] == pytest.approx(expected, rel=1e-5)


def test_without_a_penalty_there_is_no_reference(ranks, batch):
    ranks[1]("rebuild", {}, {"beta": 0.0})
    answer = ranks[1].first("train_grpo", batch, TEMPERATURE)
    assert not ranks[1].first("has_reference")
    assert answer["samples"]["reference_logprob"].null_count == batch.num_rows
    assert "kl" not in answer["metrics"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("stage", "world_size"), [(0, 1), *STAGES_AND_RANKS])
def test_nothing_that_is_not_finite_reaches_the_weights(ranks, batch, stage, world_size, dtype):
    """One poisoned sample on one rank: every rank skips, and the next step is as if nothing had happened."""
    learner = ranks[world_size]

    def poisoned(column: str) -> LearnerBatch:
        rows = batch.to_pylist()
        if column == "advantage":
            rows[-1]["advantage"] = float("nan")
        else:
            rows[0]["rollout_logprobs"][0] = float("nan")
        return learner_batch(rows)

    learner("rebuild", {"zero_stage": stage}, {}, dtype)
    learner.first("train_grpo", batch, TEMPERATURE)
    before = learner.first("weights")
    for column in ("advantage", "rollout_logprobs"):
        for answer in learner("train_grpo", poisoned(column), TEMPERATURE):
            assert answer["metrics"]["skipped"] == 1
            assert "not finite" in answer["metrics"]["skip_reason"]
        assert identical(learner.first("weights"), before)
    after = learner.first("train_grpo", batch, TEMPERATURE)["metrics"]
    resumed = learner.first("weights")

    learner("rebuild", {"zero_stage": stage}, {}, dtype)
    for _ in range(2):
        untouched = learner.first("train_grpo", batch, TEMPERATURE)["metrics"]
    assert after["skipped"] == 0 and after["loss"] == untouched["loss"]
    assert identical(resumed, learner.first("weights"))


@pytest.mark.parametrize(("stage", "world_size"), [(0, 1), (1, 2), (2, 1), (2, 2), (3, 2)])
def test_updates_too_small_for_bf16_add_up(ranks, batch, stage, world_size):
    """At lr 1e-6 a step is far below bf16's resolution of most weights; the fp32 masters must keep it."""
    learner = ranks[world_size]
    learner("rebuild", {"zero_stage": stage, "lr": 1e-6, "weight_decay": 0.0}, {"beta": 0.0}, "bfloat16")
    before = learner.first("weights")
    for _ in range(10):
        learner.first("train_sft", batch)
    masters = learner.first("master_weights")
    name = "model.layers.0.mlp.down_proj.weight"
    moved = np.abs(masters[name] - before[name])
    # Adam moves a weight by about lr a step while its gradient keeps its sign.
    assert 5e-6 < np.median(moved) < 1.1e-5
    for key, value in learner.first("weights").items():
        assert np.array_equal(value, torch.tensor(masters[key]).bfloat16().float().numpy())


def test_supervised_steps_follow_the_warm_up_and_learn(ranks, batch, tiny_model):
    ranks[2]("rebuild", {"zero_stage": 2}, {"beta": 0.0})
    ranks[2]("start_stage", 2e-3, 4)
    steps = [ranks[2].first("train_sft", batch) for _ in range(6)]
    assert [step["lr"] for step in steps] == pytest.approx([5e-4, 1e-3, 1.5e-3, 2e-3, 2e-3, 2e-3])
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    expected = -np.mean([plain_logprobs(model, row, 1.0).mean().item() for row in batch.to_pylist()])
    assert steps[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.5


def test_the_learning_rate_falls_to_zero_over_the_stage(ranks, batch):
    ranks[1]("rebuild", {"zero_stage": 1}, {"beta": 0.0})
    ranks[1]("start_stage", 2e-3, 2)
    ranks[1]("decay_over", 4)
    rates = [ranks[1].first("train_sft", batch)["lr"] for _ in range(5)]
    assert rates == pytest.approx([1e-3, 1.5e-3, 1e-3, 5e-4, 0.0])
    ranks[1]("start_stage", 2e-3, 0)
    assert ranks[1].first("train_sft", batch)["lr"] == pytest.approx(2e-3)


@pytest.mark.parametrize(("stage", "world_size"), [(0, 2), (1, 2), (2, 1), (2, 2), (3, 2)])
def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(ranks, batch, stage, world_size, tmp_path):
    learner = ranks[world_size]
    learner("rebuild", {"zero_stage": stage, "warmup_steps": 5}, {"beta": 0.0})
    learner("train_grpo", batch, TEMPERATURE)
    learner("save", str(tmp_path))
    uninterrupted = learner.first("train_grpo", batch, TEMPERATURE)["metrics"]
    expected = learner.first("weights")

    learner("rebuild", {"zero_stage": stage}, {"beta": 0.0})
    learner("load", str(tmp_path))
    resumed = learner.first("train_grpo", batch, TEMPERATURE)["metrics"]
    assert (resumed["loss"], resumed["grad_norm"], resumed["lr"]) == tuple(uninterrupted[name] for name in ("loss", "grad_norm", "lr"))
    assert identical(learner.first("weights"), expected)
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_of_another_shape_is_refused_in_words(ranks, batch, tmp_path):
    ranks[2]("rebuild", {"zero_stage": 2}, {"beta": 0.0})
    ranks[2]("save", str(tmp_path))
    ranks[2]("rebuild", {"zero_stage": 3}, {"beta": 0.0})
    with pytest.raises(ValueError, match="learner.zero_stage was 2 and is 3.*model.path"):
        ranks[2]("load", str(tmp_path))
    with pytest.raises(ValueError, match="no optimizer state"):
        ranks[2]("load", str(tmp_path / "elsewhere"))


@pytest.mark.parametrize(("stage", "dtype"), [(2, "float32"), (3, "bfloat16")])
def test_a_saved_model_loads_in_transformers_as_it_is(ranks, batch, tiny_model, stage, dtype, tmp_path):
    ranks[2]("rebuild", {"zero_stage": stage}, {"beta": 0.0}, dtype)
    ranks[2]("train_sft", batch)
    ranks[2]("save", str(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert model.dtype == getattr(torch, dtype)
    weights = ranks[2].first("weights")
    assert identical({name: p.detach().float().numpy() for name, p in model.named_parameters()}, weights)
    found = ranks[2].first("evaluate_logprobs", batch, TEMPERATURE)
    for row, logprobs in zip(batch.to_pylist(), found, strict=True):
        expected = plain_logprobs(model, row, TEMPERATURE).float().tolist()
        assert logprobs == pytest.approx(expected, abs=1e-5 if dtype == "float32" else 0.1)
    text = "Scores: \\boxed{9, 2}"
    assert AutoTokenizer.from_pretrained(tmp_path / "model").encode(text) == AutoTokenizer.from_pretrained(tiny_model).encode(text)


# --- does the model say what it should? --------------------------------------------------------------------------


def test_every_rank_checks_the_model_before_it_trains(ranks):
    for rank, description in enumerate(ranks[2].descriptions):
        check = description["self_check"]
        assert check["logprob_error"] <= check["tolerance"] < 1e-3, rank
        assert check["gradient_error"] <= check["gradient_tolerance"] < 1e-2, rank


def test_a_model_that_would_be_computed_wrong_is_refused_in_one_line(ray_session, tiny_model, tmp_path):
    """GPT-Neo's attention takes no function of ours: packed, each sample would see its siblings."""
    family = next(family for family in FAMILIES if family.name == "GPT-Neo")
    build(family).save_pretrained(tmp_path / "model")
    rank = ray.remote(LearnerActor).options(num_cpus=0)
    for settings, refused in ((Learner(), True), (Learner(packing=False), False)):
        actor = rank.remote(0, 1, str(tmp_path / "model"), settings, Rl(), "float32", 0, str(tmp_path), 1, WAIT_S)
        address = ray.get(actor.address.remote(), timeout=WAIT_S)
        setup = Pending(actor.setup.remote(*address), "learner-0", "setup")
        if refused:
            with pytest.raises(ModelError, match="GPTNeoForCausalLM") as error:
                wait([setup], WAIT_S)
            assert "learner.packing=false" in str(error.value) and "Traceback" not in str(error.value)
            assert exit_status(error.value) == 2
        else:
            (description,) = wait([setup], WAIT_S)
            assert description["self_check"]["logprob_error"] < 1e-4
        ray.kill(actor)


def test_the_guard_sees_corrupted_rollout_logprobs(ranks, batch, tiny_model):
    """A trainer and an engine that agree pass; an engine whose weights are off by a twentieth, or whose values are shifted, does not."""
    honest = with_logprobs(batch, AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32))
    perturbed = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        for parameter in perturbed.parameters():
            parameter += 0.05 * parameter.std() * torch.randn_like(parameter) if parameter.ndim > 1 else 0
    shifted = learner_batch(
        [row | {"rollout_logprobs": [*row["rollout_logprobs"][1:], row["rollout_logprobs"][0]]} for row in honest.to_pylist()]
    )
    config = Config.model_validate({"model": {"dtype": "float32"}})

    def mismatch(rows: LearnerBatch) -> float:
        ranks[1]("rebuild", {"zero_stage": 2}, {"beta": 0.0})
        return ranks[1].first("train_grpo", rows, TEMPERATURE)["metrics"]["mismatch"]

    assert MismatchGuard.from_config(config).check(1, mismatch(honest)) is None
    for corrupted in (with_logprobs(batch, perturbed), shifted):
        guard, found = MismatchGuard.from_config(config), mismatch(corrupted)
        with pytest.raises(MismatchError, match="rl.mismatch_float32"):
            for step in range(1, config.rl.mismatch_steps + 1):
                guard.check(step, found)
        assert step == config.rl.mismatch_steps


def with_logprobs(batch: LearnerBatch, model) -> LearnerBatch:
    """Return the batch with the log-probabilities of an engine with this model's weights."""
    rows = [row | {"rollout_logprobs": plain_logprobs(model, row, TEMPERATURE).tolist()} for row in batch.to_pylist()]
    return learner_batch(rows)
