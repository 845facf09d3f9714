"""The RL loop with stand-ins for engines and learner (`launch.bench.stand_ins`), to simulate time, bytes and memory.

Ray, the loop (`actors.loops.rl`), its calls (`actors.cluster.calls`), the reward actor and the run folder are real. Nothing is trained.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from actors.cluster.calls import Actors
from actors.cluster.waiting import Pending, wait
from actors.loops.progress import ProgressReporter
from actors.loops.rl import Job, TrainingBatch
from actors.reward import RewardActor
from launch.bench.memory import resident_bytes
from launch.bench.stand_ins import EngineStandIn, LearnerStandIn, serialized_bytes
from rlsys.config.files import load_config
from rlsys.config.schema import Config
from rlsys.io.metrics import MetricsLog
from rlsys.io.run_folder import RunFolder
from rlsys.system.terminal import silent


class StandIns(Actors):
    """`engines` engines in `processes` processes, one learner, and the real reward actor."""

    def __init__(self, engines: int, processes: int, timeout_s: float = 120.0):
        host = ray.remote(num_cpus=0, max_concurrency=1000)(EngineStandIn)
        self.hosts = [host.remote(seed) for seed in range(processes)]
        learner = ray.remote(num_cpus=0)(LearnerStandIn).remote(self.hosts)
        reward = ray.remote(num_cpus=0)(RewardActor).remote("reward")
        self.prompt_bytes = 0
        self.processes = [f"engine process {seed}" for seed in range(processes)]
        super().__init__([self.hosts[i % processes] for i in range(engines)], [learner], reward, timeout_s, max_num_seqs=128)

    def start(self) -> None:
        """Wait until all processes are ready."""
        wait([Pending(self.reward.ready.remote(), "reward", "ready"), *self._sent_bytes()], self.timeout_s)

    def set_seconds(self, generate_s: float, train_s: float, send_s: float) -> None:
        """Set the durations of the stand-ins."""
        self.learners.call("set_seconds", train_s, send_s)
        wait(
            [Pending(host.set_seconds.remote(generate_s), name, "set_seconds") for host, name in zip(self.hosts, self.processes)],
            self.timeout_s,
        )

    def judge(self, key: str, step: int, prompts: pa.RecordBatch, *rest: Any, **options: Any) -> dict[str, Any]:
        self.prompt_bytes += serialized_bytes(prompts)
        return super().judge(key, step, prompts, *rest, **options)

    def sent_bytes(self) -> dict[str, int]:
        """Return the bytes put into the object store so far, by kind."""
        total = {"prompts to reward actor": self.prompt_bytes}
        for counts in wait(self._sent_bytes(), self.timeout_s):
            total |= {name: total.get(name, 0) + count for name, count in counts.items()}
        return total

    def _sent_bytes(self) -> list[Pending]:
        named = zip([*self.hosts, *self.learners.actors], [*self.processes, *self.learners.names], strict=True)
        return [Pending(actor.sent_bytes.remote(), name, "sent_bytes") for actor, name in named]

    def close(self) -> None:
        for actor in [*self.hosts, *self.learners.actors, self.reward]:
            ray.kill(actor)


class TimedJob(Job):
    """The RL job on stand-ins; records after each step the CPU time and memory of the driver and the reward actor."""

    def __enter__(self) -> TimedJob:
        return self

    def attach(self, actors: StandIns) -> None:
        """Start the job as `start` does, but with existing actors, which are not closed with the job."""
        self.prepare()
        self.actors = actors
        self._actors = actors
        self.step = 0
        self.usage: list[dict[str, float]] = []
        self._log = MetricsLog(self.folder.path)

    def __exit__(self, *error: object) -> None:
        self._actors = None
        super().__exit__(*error)

    def record_usage(self) -> None:
        """Record the current CPU time and memory."""
        self.usage.append(
            {
                "cpu_s": time.process_time(),
                "driver_bytes": resident_bytes(),
                "reward_bytes": self.actors.finish(
                    Pending(self.actors.reward.__ray_call__.remote(resident_bytes), "reward", "resident_bytes")
                ),
            }
        )

    def _checkpoint(self, batch: TrainingBatch) -> None:
        super()._checkpoint(batch)
        self.record_usage()


def stand_in_config(folder: Path, *overrides: str) -> Config:
    """Return the config of a run on generated tasks of two responses."""
    fixed = ["data.responses=[2]", "data.heldout_rows=1", "checkpoint.every=0", "rl.refill=false", f"run.dir={folder / 'run'}"]
    return load_config(None, [*fixed, *overrides])


def reinforce(config: Config, actors: StandIns) -> tuple[list[dict[str, float]], list[dict[str, Any]]]:
    """Run the whole loop; return the usage before the first and after each step, and the metrics of the steps."""
    with RunFolder(config) as folder, ProgressReporter(silent(), "bench") as progress, TimedJob(config, folder, progress) as job:
        job.attach(actors)
        job.record_usage()
        job.reinforce()
        return job.usage, MetricsLog.read(folder.path)
