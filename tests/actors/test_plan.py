"""`rlsys plan`'s arithmetic against real learners and engines on CPUs, part by part: three sizes of a model, all ZeRO stages.

`pytest -m nightly -s tests/actors/test_plan.py` prints planned beside measured; docs/plan.md quotes it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from actors.learner.learner import LearnerActor
from actors.rollout.rollout import RolloutActor
from launch.bench.allocations import Allocations
from launch.bench.memory import resident_bytes
from rlsys.config.schema import Config
from rlsys.data.chain import LearnerBatch, LearnerRow
from rlsys.planning.batch import step_of
from rlsys.planning.cluster import Machines
from rlsys.planning.engine import engine_bytes, token_bytes
from rlsys.planning.learner import state_bytes, step_bytes
from rlsys.planning.plan import make_plan
from rlsys.planning.settings import resolve
from rlsys.planning.shape import ModelShape, read_shape

pytestmark = pytest.mark.nightly

WAIT_S = 600
WITHIN = 0.15
SIZES = {"5M": (256, 5, 640), "20M": (448, 7, 1216), "80M": (768, 12, 2048), "160M": (1024, 12, 2816)}
"""Hidden width, layers and feed-forward width."""
PROMPT, SAMPLES, COMPLETION, GROUPS = 300, 4, 64, 4
MIB = 2**20


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random models of the sizes, with the tiny model's tokenizer."""
    folder = tmp_path_factory.mktemp("sizes")
    for name, (hidden, layers, inner) in SIZES.items():
        shutil.copytree(tiny_model, folder / name)
        config = AutoConfig.from_pretrained(tiny_model)
        config.update({"vocab_size": 4096, "hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": inner})
        config.update({"num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64})
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / name)
    return {name: folder / name for name in SIZES}


def settings(**learner: Any) -> Config:
    return Config.model_validate(
        {
            "prompt": {"max_tokens": PROMPT},
            "rollout": {"max_tokens": COMPLETION, "kv_cache_gib": 0.25, "max_num_seqs": 16},
            "rl": {"group_size": SAMPLES, "prompts_per_step": GROUPS, "beta": 0.1},
            "learner": {"ranks": 2, "self_check": False, "token_budget": 600, **learner},
        }
    )


class Probe(LearnerActor):
    """A learner rank that counts what each phase allocates."""

    phases: list[tuple[str, int, int]]

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        with super()._timed(phase), Allocations() as counted:
            yield
        self.phases.append((phase, counted.growth, counted.peak))

    def states(self) -> dict[str, int]:
        """Return the bytes of this rank's tensors, by part."""
        optimizer = self.engine.basic_optimizer
        masters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        masters = getattr(self.engine.optimizer, "fp32_partitioned_groups_flat", masters)  # ZeRO-3's
        moments = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value) and value.dim()]
        reference = self.reference if self.reference is not None else torch.nn.Module()
        states = {"weights": _held(self.engine.module), "optimizer": _size(masters) + _size(moments), "reference": _held(reference)}
        if self.learner.zero_stage == 3:
            states["gradients"] = self.engine.optimizer.grad_partitions_flat_buffer.nbytes
        return states

    def measured_step(self, batch: LearnerBatch) -> list[tuple[str, int, int]]:
        """Train; returns (phase, growth, peak) of every phase, in bytes."""
        self.phases = []
        metrics = self.train_grpo(batch, 1.0)["metrics"]
        assert not metrics["skipped"]
        return self.phases


def _held(module: torch.nn.Module) -> int:
    return _size(getattr(parameter, "ds_tensor", parameter) for parameter in module.parameters())


def _size(tensors: Any) -> int:
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def random_batch() -> LearnerBatch:
    random = np.random.default_rng(0)
    prompts = [random.integers(3, 500, size=PROMPT) for _ in range(GROUPS)]
    rows = [
        LearnerRow(group, sample, random.integers(3, 500, size=COMPLETION), [-8.0] * COMPLETION, 1.0 - 2 * (sample % 2))
        for group in range(GROUPS)
        for sample in range(SAMPLES)
    ]
    return LearnerBatch.of(prompts, rows)


@contextmanager
def ranks_of(model: Path, config: Config, logs: Path) -> Iterator[Callable[..., list[Any]]]:
    """Yield a function that calls a method of every rank; the ranks end with the block."""
    for module in (sys.modules[__name__], sys.modules[Allocations.__module__]):
        ray.cloudpickle.register_pickle_by_value(module)
    world, actor = config.learner.ranks, ray.remote(Probe).options(num_cpus=0)
    common = (world, str(model), config.learner, config.rl, config.model.dtype, 0, str(logs), 1, WAIT_S)
    actors = [actor.remote(rank, *common) for rank in range(world)]

    def call(method: str, *arguments: Any) -> list[Any]:
        return ray.get([getattr(actor, method).remote(*arguments) for actor in actors], timeout=WAIT_S)

    try:
        call("setup", *ray.get(actors[0].address.remote(), timeout=WAIT_S))
        yield call
    finally:
        for actor in actors:
            ray.kill(actor)


def measure_learner(model: Path, config: Config, logs: Path) -> dict[str, float]:
    """Return rank 0's bytes by part, in the third of three steps (the first ones allocate once and for all)."""
    with ranks_of(model, config, logs) as ranks:
        ranks("snapshot_reference")
        ranks("start_stage", 1e-4, 0)
        phases = [ranks("measured_step", random_batch())[0] for _ in range(3)][-1]
        measured: dict[str, float] = ranks("states")[0]
    forward = [(growth, peak) for phase, growth, peak in phases if phase == "forward"]
    growths = [growth for _, growth, _ in phases]
    if config.learner.zero_stage != 1:  # it keeps gradients from step to step, which hides what a step adds
        measured["peak"] = max(sum(growths[:number]) + peak for number, (_, _, peak) in enumerate(phases))
    if config.learner.zero_stage in (0, 2):
        # From one micro-batch to the next, only gradients are kept.
        measured["gradients"] = sum(growths[: [phase for phase, _, _ in phases].index("backward") + 1])
    if config.learner.zero_stage < 3:  # its gathered weights come and go with the layers
        measured["logits chunk"] = max(peak - growth for growth, peak in forward)
        measured["activations"] = max(growth for growth, _ in forward)
    return measured


def report(title: str, planned: dict[str, float], measured: dict[str, float]) -> None:
    print(f"\n{title}")
    for name, value in measured.items():
        print(f"  {name:16} planned {planned[name] / MIB:9.1f} MiB, measured {value / MIB:9.1f}, ratio {planned[name] / max(value, 1):.3f}")


def planned_learner(shape: ModelShape, config: Config) -> dict[str, float]:
    machines, ranks = Machines(gpus=0), config.learner.ranks
    step = step_bytes(shape, config, resolve(config, machines, True), step_of(config, ranks))
    # ZeRO-3 allocates the buffers of gradients once, before the first step.
    before = {"gradients", "gradient buckets"} if config.learner.zero_stage == 3 else set()
    peak = sum(value for name, value in step.items() if name not in before)
    return state_bytes(shape, config, ranks) | step | {"peak": peak}


@pytest.mark.parametrize(
    ("size", "stage", "checkpointing"),
    [("20M", 2, False), ("80M", 2, False), ("20M", 3, False), ("20M", 1, False), ("5M", 2, False), ("20M", 0, False), ("20M", 2, True)],
)
def test_a_learner_rank(size: str, stage: int, checkpointing: bool, models: dict[str, Path], ray_session: Any, tmp_path: Path) -> None:
    config = settings(zero_stage=stage, activation_checkpointing=checkpointing)
    shape = read_shape(models[size])
    measured = measure_learner(models[size], config, tmp_path)
    planned = planned_learner(shape, config)
    report(
        f"learner rank, {shape.parameters / 1e6:.1f}M parameters, ZeRO-{stage}{', checkpointing' if checkpointing else ''}",
        planned,
        measured,
    )
    for name, value in measured.items():
        assert planned[name] == pytest.approx(value, rel=WITHIN), name


class EngineProbe(RolloutActor):
    async def memory(self) -> dict[str, int]:
        (measured,) = await self._engine.collective_rpc(_engine_memory)
        return measured


def _engine_memory(worker: Any) -> dict[str, int]:
    cache = worker.vllm_config.cache_config
    return {
        "KV cache": _size(worker.model_runner.kv_caches),
        "cached tokens": cache.num_gpu_blocks * cache.block_size,
        "resident": resident_bytes(),
    }


def measure_engine(model: Path, config: Config, logs: Path) -> dict[str, float]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    environment = {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
    actor = ray.remote(EngineProbe).options(num_cpus=0, runtime_env={"env_vars": environment})
    engine = actor.remote("rollout-0", str(model), config.rollout, "bfloat16", PROMPT + COMPLETION, 0, "cpu", str(logs), 1)
    ray.get(engine.ready.remote(), timeout=WAIT_S)
    measured = ray.get(engine.memory.remote(), timeout=WAIT_S)
    ray.get(engine.shutdown.remote(), timeout=WAIT_S)
    ray.kill(engine)
    return measured


def test_engines(models: dict[str, Path], ray_session: Any, tmp_path: Path) -> None:
    """Cache, and how the resident memory grows with the model: what the smallest engine holds besides its weights, all of them hold."""
    config, machines = settings(), Machines(gpus=0)
    resolved = resolve(config, machines, True)
    resident: list[tuple[float, float]] = []
    for model in models.values():
        shape = read_shape(model)
        measured = measure_engine(model, config, tmp_path)
        planned = engine_bytes(shape, config, resolved, machines)
        planned["cached tokens"] = planned["KV cache"] / token_bytes(shape, config, resolved)
        resident.append((planned["engine weights"], measured.pop("resident")))
        report(f"engine, {shape.parameters / 1e6:.1f}M parameters", planned, measured)
        for name, value in measured.items():
            assert planned[name] == pytest.approx(value, rel=WITHIN), name
    (least, measured_least), *larger = resident
    for (planned_bytes, measured_bytes), name in zip(larger, list(models)[1:], strict=True):
        growth, measured_growth = planned_bytes - least, measured_bytes - measured_least
        report(f"from the smallest engine to that of {name}", {"resident": growth}, {"resident": measured_growth})
        assert growth == pytest.approx(measured_growth, rel=WITHIN), name


def test_a_checkpoint(models: dict[str, Path], ray_session: Any, tmp_path: Path) -> None:
    config = settings(zero_stage=2)
    plan = make_plan(config, read_shape(models["20M"]), Machines(gpus=0, memory_gib=16))
    folder = tmp_path / "checkpoint"
    with ranks_of(models["20M"], config, tmp_path) as ranks:
        ranks("snapshot_reference")
        ranks("start_stage", 1e-4, 0)
        ranks("measured_step", random_batch())  # before the first step there are no moments
        ranks("save", str(folder))
    written = {name: sum(file.stat().st_size for file in (folder / name).rglob("*") if file.is_file()) for name in plan.checkpoint}
    report("checkpoint", plan.checkpoint, written)
    for name, value in written.items():
        assert plan.checkpoint[name] == pytest.approx(value, rel=WITHIN), name
