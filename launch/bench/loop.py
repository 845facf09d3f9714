"""The RL loop with stand-ins for engines and learner (`launch.bench.stand_ins`), to simulate time, bytes and memory.

Ray, the loop (`actors.loops.rl`), its calls (`actors.cluster.calls`), the reward actor and the run folder are real. Nothing is trained.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from actors.cluster.calls import Actors, LearnerGroup
from actors.cluster.reward_client import RewardClient
from actors.cluster.rollout_group import RolloutGroup
from actors.cluster.waiting import Pending, wait, wait_for
from actors.loops.progress import ProgressReporter
from actors.loops.rl import Job
from actors.loops.rl_data import open_data
from actors.loops.rl_step import TrainingBatch
from actors.reward import RewardActor
from launch.bench.memory import resident_bytes
from launch.bench.stand_ins import EngineStandIn, LearnerStandIn, serialized_bytes
from rlsys.config.files import load_config
from rlsys.config.schema import Config, Run
from rlsys.io.metrics import MetricsLog
from rlsys.io.run_folder import RunFolder
from rlsys.system.terminal import silent


class CountingReward(RewardClient):
    """The real reward actor; counts the bytes of the prompts that it receives."""

    prompt_bytes = 0

    def judge(self, key: str, step: int, prompts: pa.RecordBatch, *rest: Any, **options: Any) -> dict[str, Any]:
        self.prompt_bytes += serialized_bytes(prompts)
        return super().judge(key, step, prompts, *rest, **options)


class StandIns:
    """`engines` engines in `processes` processes, one learner, and the real reward actor: the `actors` of a job."""

    def __init__(self, engines: int, processes: int, timeout_s: float = 120.0):
        run = Run(actor_timeout_s=timeout_s)
        host = ray.remote(num_cpus=0, max_concurrency=1000)(EngineStandIn)
        self.hosts = [host.remote(seed) for seed in range(processes)]
        learner = ray.remote(num_cpus=0)(LearnerStandIn).remote(self.hosts)
        self.processes = [f"engine process {seed}" for seed in range(processes)]
        self.rollouts = RolloutGroup([self.hosts[i % processes] for i in range(engines)], run, max_num_seqs=128)
        self.learners = LearnerGroup([learner], run)
        self.reward = CountingReward(ray.remote(num_cpus=0)(RewardActor).remote("reward"), run)
        self.timeout_s = timeout_s

    @property
    def actors(self) -> Actors:
        return Actors(self.rollouts, self.learners, self.reward)

    def start(self) -> None:
        """Wait until all processes are ready."""
        wait([self.reward.ready(), *self._sent_bytes()], self.timeout_s)

    def set_seconds(self, generate_s: float, train_s: float, send_s: float) -> None:
        """Set the durations of the stand-ins."""
        self.learners.call("start", "set_seconds", train_s, send_s)
        wait(
            [Pending(host.set_seconds.remote(generate_s), name, "set_seconds") for host, name in zip(self.hosts, self.processes)],
            self.timeout_s,
        )

    def sent_bytes(self) -> dict[str, int]:
        """Return the bytes put into the object store so far, by kind."""
        total = {"prompts to reward actor": self.reward.prompt_bytes}
        for counts in wait(self._sent_bytes(), self.timeout_s):
            total |= {name: total.get(name, 0) + count for name, count in counts.items()}
        return total

    def _sent_bytes(self) -> list[Pending]:
        named = zip([*self.hosts, *self.learners.actors], [*self.processes, *self.learners.names], strict=True)
        return [Pending(actor.sent_bytes.remote(), name, "sent_bytes") for actor, name in named]

    def close(self) -> None:
        """End all processes."""
        for actor in [*self.hosts, *self.learners.actors, self.reward.actor]:
            ray.kill(actor)


class TimedJob(Job):
    """The RL job on stand-ins; records after each step the CPU time and memory of the driver and the reward actor."""

    def record_usage(self, usage: list[dict[str, float]]) -> None:
        """Append the current CPU time and memory to `usage`, here and after every step."""
        self.usage = usage
        reward = self.actors.reward
        memory = wait_for("judge", [Pending(reward.actor.__ray_call__.remote(resident_bytes), "reward", "resident_bytes")], reward.run)[0]
        usage.append({"cpu_s": time.process_time(), "driver_bytes": resident_bytes(), "reward_bytes": memory})

    def _checkpoint(self, batch: TrainingBatch) -> None:
        super()._checkpoint(batch)
        self.record_usage(self.usage)


def stand_in_config(folder: Path, *overrides: str) -> Config:
    """Return the config of a run on generated tasks of two responses."""
    fixed = [
        "data.responses=[2]",
        "data.heldout_rows=1",
        "checkpoint.every=0",
        "rl.refill=false",
        "watchdog.steps=1000000",
        f"run.dir={folder / 'run'}",
    ]
    return load_config(None, [*fixed, *overrides])


def reinforce(config: Config, stand_ins: StandIns) -> tuple[list[dict[str, float]], list[dict[str, Any]]]:
    """Run the whole loop; return the usage before the first and after each step, and the metrics of the steps."""
    usage: list[dict[str, float]] = []
    with RunFolder(config) as folder, ProgressReporter(silent(), "bench") as progress:
        job = TimedJob(config, folder, progress, open_data(config, folder, progress), stand_ins.actors)
        job.record_usage(usage)
        job.reinforce()
        return usage, MetricsLog.read(folder.path)
