"""New weights reach every running engine whole: real engines, real Ray, real ZeRO shards, against transformers on the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial

import pyarrow as pa
import pytest
import ray
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.weights.buckets import Segment, lay_out, one_thread, table_bytes, views
from actors.weights.checks import checksum, compare
from actors.weights.source import DeepSpeedSource, ParamMeta, WeightSource
from actors.weights.transfer import CpuSender, RayClient, Trainer, WeightTransferError, make_trainer
from rlsys.config.schema import Learner
from rlsys.data.chain import PROMPTS

WAIT_S = 600
PROMPT = "The prompt is long enough to fill some blocks of the prefix cache, before and after an update of the weights. " * 2


@pytest.fixture
def model(tiny_model):
    """A fresh fp32 copy of the model that the engines started from."""
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


@pytest.fixture(scope="module")
def prompt(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model).encode(PROMPT)


def disturb(model, seed, scale=0.05):
    """Change every parameter: embeddings (tied to the output head), projections and norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)


def greedy(model, prompt):
    return model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0, len(prompt) :].tolist()


def ask(engines, prompt):
    """(tokens, weight version) that each engine answers greedily."""
    batch = pa.RecordBatch.from_pylist([{"group": 0, "prompt_token_ids": prompt, "seeds": [0]}], schema=PROMPTS)
    answers = ray.get([actor.generate.remote(batch, 0.0, 1.0, 24) for actor in engines.actors], timeout=WAIT_S)
    return [(answer["token_ids"][0].as_py(), answer["weight_version"][0].as_py()) for answer in answers]


def open_transfer(source, actors):
    return make_trainer("cpu", 0, source, actors, 1, WAIT_S)


# --- through running engines ------------------------------------------------------------------------------------------


def test_both_engines_answer_with_the_new_weights_and_carry_their_version(engines, model, prompt):
    trainer = open_transfer(WeightSource(model), engines.actors)
    trainer.send_weights(1, verify=True)
    before = greedy(model, prompt)
    assert ask(engines, prompt) == [(before, 1)] * 2
    # The same prompt lies in the prefix cache now; had it survived the update, its keys and values would be the old weights'.
    disturb(model, seed=1)
    trainer.send_weights(2, verify=True)
    after = greedy(model, prompt)
    assert after != before
    assert ask(engines, prompt) == [(after, 2)] * 2
    assert ray.get([actor.weight_version.remote() for actor in engines.actors], timeout=WAIT_S) == [2, 2]


def test_other_machines_get_the_same_weights(engines, model, prompt):
    """A learner that takes itself for another machine sends through the object store."""
    source, client = WeightSource(model), RayClient(engines.actors, WAIT_S)
    trainer = Trainer(CpuSender(source, client, 2**20, "another"), source, client)
    for version in (30, 31):
        disturb(model, seed=version)
        trainer.send_weights(version, verify=True)
        assert ask(engines, prompt) == [(greedy(model, prompt), version)] * 2


def test_samples_under_way_finish_on_the_weights_they_began_with(engines, model, prompt):
    trainer = open_transfer(WeightSource(model), engines.actors)
    trainer.send_weights(10)
    batch = pa.RecordBatch.from_pylist([{"group": 0, "prompt_token_ids": prompt[:20], "seeds": list(range(64))}], schema=PROMPTS)
    engine = engines.actors[0]
    expected = ray.get(engine.generate.remote(batch, 1.0, 1.0, 64), timeout=WAIT_S)
    running = engine.generate.remote(batch, 1.0, 1.0, 64)
    while not ray.get(engine.in_flight.remote(), timeout=WAIT_S):
        pass
    disturb(model, seed=2)
    trainer.send_weights(11)
    assert ray.get(running, timeout=WAIT_S) == expected
    later = ray.get(engine.generate.remote(batch, 1.0, 1.0, 64), timeout=WAIT_S)
    assert set(later["weight_version"].to_pylist()) == {11} and later["token_ids"] != expected["token_ids"]


def test_a_changed_value_is_found_and_named(engines, model):
    source = WeightSource(model)
    trainer = open_transfer(source, engines.actors)
    trainer.send_weights(3, verify=True)
    for name in ("model.layers.1.self_attn.k_proj.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"):
        with torch.no_grad():
            model.get_parameter(name)[..., -1] += 0.5
        with pytest.raises(WeightTransferError, match="differ") as failure:
            trainer.verify()
        assert {line.split(" (in ")[0] for line in str(failure.value).splitlines()[1:]} == {f"{engine}: {name}" for engine in engines.names}
        trainer.send_weights(3, verify=True)


def test_an_engine_left_behind_is_named(engines, model):
    both = open_transfer(WeightSource(model), engines.actors)
    both.send_weights(4)
    disturb(model, seed=3)
    open_transfer(WeightSource(model), engines.actors[:1]).send_weights(5, verify=True)
    with pytest.raises(WeightTransferError, match="rollout-1: model.embed_tokens.weight") as failure:
        both.verify()
    assert "rollout-0" not in str(failure.value)
    assert "lm_head" in str(failure.value), "the tied head's own packed copy is looked at, too"


class Odd(torch.nn.Module):
    """Parameters that two ranks cannot divide evenly, one of them a single number."""

    def __init__(self):
        super().__init__()
        self.model = torch.nn.ParameterDict({f"p{size}": torch.arange(float(size)) + 1 for size in (1, 2, 7, 15)})
        self.model["matrix"] = torch.nn.Parameter(torch.arange(33.0).view(3, 11))


class Rank:
    """One of `world_size` DeepSpeed ranks that hold a disturbed copy of the model."""

    def __init__(self, rank, world_size):
        self.rank, self.world_size, self.store = rank, world_size, None

    def address(self):
        from actors.learner import deepspeed_engine as ds

        host = ray.util.get_node_ip_address()
        self.store = ds.open_store(host, self.world_size, WAIT_S)
        return host, self.store.port

    def setup(self, host, port):
        from actors.learner import deepspeed_engine as ds

        ds.join_group(self.rank, self.world_size, host, port, self.store, WAIT_S)

    def shutdown(self):
        torch.distributed.destroy_process_group()

    def build(self, folder, zero_stage):
        from actors.learner import deepspeed_engine as ds

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        disturb(self.model, seed=zero_stage)
        self.engine = ds.build_engine(self.model, Learner(zero_stage=zero_stage), torch.float32)

    def learn(self, prompt):
        """One optimizer step on some loss."""
        from actors.learner import deepspeed_engine as ds

        loss = self.engine(input_ids=torch.tensor([prompt])).logits.square().mean()
        ds.backward(self.engine, loss, last=True)
        assert ds.step(self.engine, 0.01).applied

    def whole(self):
        from actors.learner import deepspeed_engine as ds

        return {name: whole.clone().numpy() for name, whole in ds.full_weights(self.engine.module)}

    def shards(self):
        return [parameter.numel() for parameter in self.engine.module.parameters()]

    def metadata(self):
        return [(meta.name, meta.dtype, meta.shape) for meta in DeepSpeedSource(self.engine).metadata()]

    def odd_parts(self, zero_stage):
        from actors.learner import deepspeed_engine as ds

        engine = ds.build_engine(Odd(), Learner(zero_stage=zero_stage), torch.float32)
        return [(name, first, values.tolist()) for name, first, values in DeepSpeedSource(engine).parts()]

    def send(self, actors, version, apart):
        source = DeepSpeedSource(self.engine)
        if apart:
            client = RayClient(actors, WAIT_S) if self.rank == 0 else None
            trainer = Trainer(CpuSender(source, client, 2**20, f"machine {self.rank}"), source, client)
        else:
            trainer = make_trainer("cpu", self.rank, source, actors, 1, WAIT_S)
        trainer.send_weights(version, verify=True)


@pytest.fixture(scope="module")
def ranks(start_ranks):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    actor = ray.remote(Rank).options(num_cpus=0)
    return {size: start_ranks(partial(actor.remote, world_size=size), size) for size in (1, 2)}


@pytest.mark.parametrize(
    ("size", "zero_stage", "apart"),
    [(1, 2, False), (1, 3, False), (2, 2, False), (2, 3, False), (2, 3, True)],
)
def test_a_deepspeed_engine_s_weights_arrive_whole(engines, ranks, model, prompt, tiny_model, size, zero_stage, apart):
    """Ranks of one machine write their parts side by side; those of several machines (`apart`) gather on rank 0."""
    learner = ranks[size]
    learner("build", str(tiny_model), zero_stage)
    if zero_stage == 3:
        assert sum(learner.first("shards")) < sum(p.numel() for p in model.parameters())
    disturb(model, seed=zero_stage)
    assert learner.first("metadata") == [(name, p.dtype, tuple(p.shape)) for name, p in model.named_parameters()]
    first = 1000 * size + 100 * zero_stage + 10 * apart
    learner("send", engines.actors, first, apart)
    assert ask(engines, prompt) == [(greedy(model, prompt), first)] * 2
    learner("learn", prompt)
    trained = {name: torch.tensor(whole) for name, whole in learner.first("whole").items()}
    assert all((trained[name] != parameter).any() for name, parameter in model.named_parameters())
    model.load_state_dict(trained, strict=False)
    learner("send", engines.actors, first + 1, apart)
    assert ask(engines, prompt) == [(greedy(model, prompt), first + 1)] * 2


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_the_parts_of_all_ranks_are_each_parameter_once(ranks, zero_stage):
    parts = ranks[2]("odd_parts", zero_stage)
    for (name, whole), first_rank, second_rank in zip(Odd().model.named_parameters(), *parts, strict=True):
        elements = []
        for sent, first, values in (first_rank, second_rank):
            assert sent == name
            assert not values or first == len(elements)
            elements += values
        assert elements == whole.flatten().tolist()
    # Of more than one number each rank brings some.
    assert all(values for rank in parts for name, _, values in rank if name != "p1")


# --- waits ------------------------------------------------------------------------------------------------------------


class Deaf:
    """An actor that knows its name and never comes back from `start_update`."""

    def identity(self):
        return {"name": "rollout-deaf", "node": ray.get_runtime_context().get_node_id(), "tensor_parallel": 1}

    def init_weight_transfer(self, info):
        pass

    def start_update(self):
        time.sleep(WAIT_S)


def test_an_engine_that_does_not_answer_is_named(ray_session, model):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    deaf = ray.remote(Deaf).options(num_cpus=0).remote()
    ray.get(deaf.identity.remote(), timeout=WAIT_S)
    trainer = make_trainer("cpu", 0, WeightSource(model), [deaf], 1, timeout_s=2.0)
    with pytest.raises(WeightTransferError, match=r"no answer within 2 s from rollout-deaf \(start_update\)"):
        trainer.send_weights(1)
    ray.kill(deaf)


# --- the wire format --------------------------------------------------------------------------------------------------

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(DTYPES, st.lists(st.integers(1, 9), min_size=1, max_size=3)), max_size=12), st.integers(64, 600))
def test_buckets_hold_every_tensor_bit_for_bit(layout, bucket_bytes):
    tensors = [(f"tensor {i}", torch.randn(shape).to(dtype)) for i, (dtype, shape) in enumerate(layout)]
    stream, received = iter(tensors), []
    for table in lay_out([ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors], bucket_bytes):
        bucket = torch.full([table_bytes(table)], 255, dtype=torch.uint8)
        assert bucket.numel() <= bucket_bytes or len(table) == 1
        for wanted, place in views(table, bucket):
            name, tensor = next(stream)
            assert name == wanted
            place.copy_(tensor)
        received += [(name, tensor.clone()) for name, tensor in views(table, bucket)]
    assert [name for name, _ in received] == [name for name, _ in tensors]
    for (_, sent), (_, arrived) in zip(tensors, received, strict=True):
        assert sent.dtype == arrived.dtype and torch.equal(sent, arrived)


def test_a_segment_is_shared_and_leaves_nothing_behind():
    names = set(os.listdir("/dev/shm"))
    segment = Segment(8192)
    segment.bytes[8191] = 7
    look = f"from actors.weights.buckets import attach; bytes = attach({segment.path!r}, 8192); print(int(bytes[8191])); bytes[0] = 9"
    seen = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": "."})
    assert seen.stdout == "7\n" and segment.bytes[0] == 9
    assert set(os.listdir("/dev/shm")) <= names, "it never has a name, so that even a killed process leaves none"
    path = segment.path
    del segment
    assert not os.path.exists(path)


def test_memory_that_the_machine_does_not_have_is_not_asked_for():
    with pytest.raises(MemoryError, match="Lower weights.bucket_mib"):
        Segment(2**50)


def test_one_thread_holds_inside_only_also_where_vllm_forbids_it(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with monkeypatch.context() as vllm:
            vllm.setattr(torch, "set_num_threads", lambda count: None)
            with pytest.raises(ZeroDivisionError), one_thread():
                assert torch.get_num_threads() == 1
                raise ZeroDivisionError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_checksum_tells_values_shapes_and_names_apart():
    tensor = torch.tensor([[1.0, 0.0], [2.0, -3.0]])
    assert checksum("a", tensor) == checksum("a", tensor.clone()) == checksum("a", torch.tensor([[1.0, -0.0], [2.0, -3.0]]))
    others = [("b", tensor), ("a", tensor.t()), ("a", tensor.view(4)), ("a", tensor.bfloat16()), ("a", torch.nextafter(tensor, tensor + 1))]
    assert len({checksum("a", tensor), *(checksum(name, other) for name, other in others)}) == 1 + len(others)


def test_shards_of_several_workers_must_cover_a_tensor():
    """Two workers hold the halves of one tensor; one of them loses its half, then holds another tensor's."""
    whole = torch.arange(12.0).view(4, 3)
    halves = [("w", 0, start, 2, checksum("w", whole[start : start + 2]), "qkv") for start in (0, 2)]
    assert compare([("w", whole)], {"rollout-0": [[halves[0]], [halves[1]]]}) == []
    assert compare([("w", whole)], {"rollout-0": [[halves[0]], []]}) == ["rollout-0: w is incomplete"]
    swapped = [("w", 0, 2, 2, halves[0][4], "qkv")]
    assert compare([("w", whole)], {"rollout-0": [[halves[0]], swapped]}) == ["rollout-0: w (in qkv, 2..4 of dimension 0) differs"]
    assert "does not exist in the learner" in compare([], {"rollout-0": [[halves[0]]]})[0]
