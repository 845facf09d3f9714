"""Ways to hold less memory equal the plain path: sharded and offloaded states, references elsewhere, checkpoints written by all ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import plain_grpo
import pytest
import ray
import torch
from plain_grpo import LR, TEMPERATURE, WAIT_S, PlainGrpo, Probe, distance, identical
from transformers import AutoModelForCausalLM

from actors.learner import checkpoints as saving
from actors.learner import deepspeed_engine as ds
from rlsys.config.schema import Learner, Rl


class MemoryProbe(Probe):
    """A learner whose states can be moved, and that writes small shards."""

    def release(self) -> None:
        ds.release_states(self.engine, self.reference, self.learner)
        self.released = True

    def save_in_shards(self, folder: str, shard_bytes: int) -> None:
        saving.SHARD_BYTES = shard_bytes
        saving.save_model(self.engine.module.model, self.model_path, Path(folder))


@pytest.fixture(scope="module")
def ranks(start_ranks, tiny_model, tmp_path_factory):
    logs = tmp_path_factory.mktemp("learner_logs")
    for module in (sys.modules[__name__], plain_grpo):
        ray.cloudpickle.register_pickle_by_value(module)
    actor = ray.remote(MemoryProbe).options(num_cpus=0)
    common = (2, str(tiny_model), Learner(ranks=2), Rl(), "float32", 0, str(logs), 1, WAIT_S)
    return start_ranks(lambda rank: actor.remote(rank, *common), 2)


@pytest.mark.parametrize(
    "settings",
    [
        {"zero_stage": 2, "activation_checkpointing": True},
        {"zero_stage": 3, "activation_checkpointing": True},
        {"zero_stage": 1, "offload": "optimizer"},
        {"zero_stage": 2, "offload": "optimizer"},
        {"zero_stage": 3, "offload": "all"},
        {"zero_stage": 1, "reference": "sharded"},
        {"zero_stage": 2, "reference": "host"},
        {"zero_stage": 3, "reference": "whole"},
        {"zero_stage": 1, "deepspeed": {"zero_optimization": {"reduce_scatter": True, "overlap_comm": True}}},
        {
            "zero_stage": 2,
            "deepspeed": {"zero_optimization": {"reduce_scatter": True, "overlap_comm": True, "reduce_bucket_size": 100_000}},
        },
    ],
    ids=str,
)
def test_two_steps_equal_the_plain_loop(ranks, batch, tiny_model, settings):
    ranks("rebuild", settings, {})
    plain = PlainGrpo(tiny_model, beta=0.05)
    for _ in range(2):
        before = plain.weights()
        expected = plain.step(batch, TEMPERATURE)
        metrics = ranks.first("train_grpo", batch, TEMPERATURE)["metrics"]
        assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert metrics["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        assert metrics["kl"] == pytest.approx(expected["kl"], rel=1e-4, abs=1e-9)
        weights = ranks.first("weights")
        moved = {name: weights[name] - before[name] for name in weights}
        assert distance(moved, {name: value - before[name] for name, value in plain.weights().items()}) < 1e-3
    assert expected["kl"] > 0


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_states_that_were_released_come_back_unchanged(ranks, batch, stage, tmp_path):
    answers = []
    for released in (False, True):
        ranks("rebuild", {"zero_stage": stage}, {})
        for step in range(3):
            if released and step:
                ranks("release")
            ranks("train_grpo", batch, TEMPERATURE)
        if released:
            ranks("release")
        ranks("save", str(tmp_path / str(released)))
        answers.append(ranks.first("weights"))
    assert identical(*answers)
    ranks("load", str(tmp_path / "True"))
    assert identical(ranks.first("weights"), answers[0])


@pytest.mark.parametrize("stage", [1, 3])
def test_each_rank_writes_a_shard_of_a_large_model(ranks, batch, stage, tmp_path):
    ranks("rebuild", {"zero_stage": stage, "lr": LR}, {"beta": 0.0})
    ranks("train_grpo", batch, TEMPERATURE)
    ranks("save_in_shards", str(tmp_path / "whole"), 2**40)
    ranks("save_in_shards", str(tmp_path / "sharded"), 2**18)
    files = {name: sorted(path.name for path in (tmp_path / name).glob("*.safetensors*")) for name in ("whole", "sharded")}
    assert files["whole"] == ["model.safetensors"]
    assert files["sharded"] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    sizes = [(tmp_path / "sharded" / name).stat().st_size for name in files["sharded"][:2]]
    assert min(sizes) > 0.25 * max(sizes)
    expected = ranks.first("weights")
    for name in ("whole", "sharded"):
        model, report = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32, output_loading_info=True)
        assert not any(report.values())
        assert identical({name: p.detach().numpy() for name, p in model.named_parameters()}, expected)
    others = {path.name for path in (tmp_path / "whole").iterdir()} - {*files["whole"]}
    assert others == {path.name for path in (tmp_path / "sharded").iterdir()} - {*files["sharded"]}
    assert np.array_equal(*(AutoModelForCausalLM.from_pretrained(tmp_path / n).lm_head.weight.detach().float().numpy() for n in files))
    assert not list(tmp_path.glob(".*"))
