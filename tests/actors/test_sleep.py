"""Engines sleep while the learner trains: a real engine in a real Ray, driven through every state that vLLM has for it.

On CPUs vLLM's worker keeps the memory; scheduler, caches and states behave as on a GPU, and the engine logs each state.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.cluster.rollout_group import RolloutGroup
from actors.cluster.waiting import ActorFailed
from actors.loops.rl import train
from actors.rollout.rollout import RolloutActor
from actors.weights.source import WeightSource
from actors.weights.transfer import WeightTransferError, make_trainer
from rlsys.config.files import load_config
from rlsys.config.schema import ConfigError, Rollout, Run
from rlsys.data.chain import PROMPTS
from rlsys.system.placement import engines_sleep

WAIT_S = 600
ONCE = ["asleep", "weights", "kv_cache"]
"""What vLLM is asked for in one sleep, in order."""


def states(log: Path) -> list[str]:
    """Return the states in the engine's log."""
    words = re.findall(r"seconds to (?:fall (asleep)|wake up tags \['(\w+)'\])", log.read_text())
    return [asleep or woken for asleep, woken in words]


# --- who sleeps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "gpus", "colocated", "sleeps"),
    [
        ([], 1, True, True),
        ([], 2, False, False),
        ([], 0, True, False),
        (["rl.staleness=1"], 1, True, False),
        (["rollout.sleep=false"], 1, True, False),
        (["rollout.sleep=true"], 0, True, True),
    ],
)
def test_engines_sleep_where_they_take_turns_on_a_card(overrides, gpus, colocated, sleeps):
    assert engines_sleep(load_config(None, overrides), gpus, colocated) is sleeps


def test_sleep_beside_overlapping_phases_is_refused_before_anything_starts(tmp_path):
    config = load_config(None, ["rollout.sleep=true", "rl.staleness=1", f"run.dir={tmp_path / 'run'}"])
    with pytest.raises(ConfigError, match="rollout.sleep=true requires rl.staleness=0, found 1"):
        train(config)
    assert not (tmp_path / "run").exists()


# --- one engine -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sleeper(ray_session, tiny_model, tmp_path_factory):
    """An fp32 engine that may sleep: its handle (`actor`), the one actor of `group`, and its `log`."""
    logs = tmp_path_factory.mktemp("logs")
    rollout = Rollout(max_num_seqs=64, kv_cache_gib=0.25, sleep=True)
    actor = ray.remote(RolloutActor).options(num_cpus=0)
    actor = actor.remote("rollout-0", str(tiny_model), rollout, "float32", 256, 0, "cpu", str(logs), 1)
    ray.get(actor.ready.remote(), timeout=2 * WAIT_S)
    yield SimpleNamespace(
        actor=actor, group=RolloutGroup([actor], Run(actor_timeout_s=WAIT_S), 64, sleeps=True), log=logs / "rollout-0.log"
    )
    ray.get(actor.shutdown.remote(), timeout=WAIT_S)
    ray.kill(actor)


@pytest.fixture
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


@pytest.fixture(scope="module")
def prompt(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model).encode("a prompt that fills some blocks of the prefix cache " * 3)[:80]


def begin(actor, prompt, seeds=(0,), temperature=0.0, length=24):
    batch = pa.RecordBatch.from_pylist([{"group": 0, "prompt_token_ids": prompt, "seeds": list(seeds)}], schema=PROMPTS)
    return actor.generate.remote(batch, temperature, 1.0, length, length)


def ask(actor, prompt):
    """(greedy tokens, weight version)."""
    answer = ray.get(begin(actor, prompt), timeout=WAIT_S)
    return answer["token_ids"][0].as_py(), answer["weight_version"][0].as_py()


def greedy(model, prompt):
    return model.generate(torch.tensor([prompt]), min_new_tokens=24, max_new_tokens=24, do_sample=False)[0, len(prompt) :].tolist()


def test_after_sleep_and_update_an_engine_answers_as_one_that_never_slept(sleeper, engines, model, prompt):
    never = engines.actors[0]
    trainer = make_trainer("cpu", 0, WeightSource(model), [sleeper.actor, never], 1, WAIT_S)
    generator = torch.Generator().manual_seed(0)
    before = len(states(sleeper.log))
    for version in (101, 102):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        sleeper.group.sleep()
        trainer.send_weights(version, verify=True)
        expected = greedy(model, prompt), version
        assert ask(sleeper.actor, prompt) == ask(never, prompt) == expected
    assert states(sleeper.log)[before:] == 2 * ONCE
    assert states(engines.logs / "rollout-0.log") == []


def test_an_engine_that_is_asleep_refuses_to_sample_until_it_has_weights(sleeper, model, prompt):
    trainer = make_trainer("cpu", 0, WeightSource(model), [sleeper.actor], 1, WAIT_S)
    sleeper.group.sleep()
    with pytest.raises(ray.exceptions.RayTaskError, match="rollout-0: asleep, its weights are dropped; have the learners send"):
        ray.get(begin(sleeper.actor, prompt), timeout=WAIT_S)
    # In the middle of an update it is not refused any more: it waits for the end.
    trainer.client.start_weight_update()
    waiting = begin(sleeper.actor, prompt)
    assert ray.wait([waiting], timeout=0.5)[0] == []
    with pytest.raises(ActorFailed, match="cannot sleep with a weight update in progress"):
        sleeper.group.sleep()
    for bucket in range(len(trainer.sender.tables)):
        trainer.client.update_weights({"bucket": bucket})
    trainer.client.finish_weight_update("111")
    assert ray.get(waiting, timeout=WAIT_S)["weight_version"].to_pylist() == [111]
    # What lay in the buckets were no weights.
    trainer.send_weights(112, verify=True)


def test_an_engine_refuses_to_sleep_on_samples_under_way(sleeper, prompt):
    running = begin(sleeper.actor, prompt, range(64), 1.0, 160)
    while not ray.get(sleeper.actor.in_flight.remote(), timeout=WAIT_S):
        pass
    with pytest.raises(ActorFailed, match=r"cannot sleep with 64 sample\(s\) in progress"):
        sleeper.group.sleep()
    assert ray.get(running, timeout=WAIT_S).num_rows == 64


def test_an_engine_without_sleep_mode_says_so_and_goes_on(engines, prompt):
    with pytest.raises(ray.exceptions.RayTaskError, match="rollout-0: it was started with rollout.sleep off"):
        ray.get(engines.actors[0].sleep.remote(), timeout=WAIT_S)
    assert len(ask(engines.actors[0], prompt)[0]) == 24


def test_an_engine_that_computes_something_else_after_it_slept_is_refused(sleeper, tiny_model, prompt):
    """The other weights stand for buffers that did not come back. The last test here: the engine has failed afterwards."""
    first = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    trainer = make_trainer("cpu", 0, WeightSource(first), [sleeper.actor], 1, WAIT_S)
    # Version 0 is that of its first sleep.
    sleeper.group.sleep()
    trainer.send_weights(0)
    assert ask(sleeper.actor, prompt) == (greedy(first, prompt), 0)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    sleeper.group.sleep()
    with pytest.raises(WeightTransferError, match="rollout-0: it computes something else since it slept: token 1 .*rollout.sleep=false"):
        trainer.send_weights(0)
    with pytest.raises(ray.exceptions.RayTaskError, match="computes something else"):
        ask(sleeper.actor, prompt)
