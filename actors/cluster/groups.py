"""Create, start and end the actors of a job, each in its place. The calls to them are in `actors.cluster.calls`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.cluster.calls import Actors, LearnerGroup, end_actors
from actors.cluster.heartbeats import Pulse
from actors.cluster.machines import require_same_files
from actors.cluster.replacement import Recoveries, Replacements
from actors.cluster.reservation import Reservation, cluster_machines
from actors.cluster.reward_client import REWARD, RewardClient
from actors.cluster.rollout_group import RolloutGroup, engine_names
from actors.cluster.waiting import ActorFailed, Pending, wait_for
from actors.reward import RewardActor
from actors.rollout.rollout import RolloutActor
from rlsys.config.schema import Config
from rlsys.models.loading import ModelError
from rlsys.rewards.extraction import DEFAULT_FORMAT, ScoreFormat
from rlsys.system.devices import bucket_mib, concurrent_sequences
from rlsys.system.placement import check_reported_gpus, engines_sleep, place, place_learners, weight_backend
from rlsys.system.reward_place import reward_machine

if TYPE_CHECKING:
    from actors.learner.learner import LearnerActor


def create_rollouts(
    config: Config,
    model_path: str,
    max_model_len: int,
    backend: str,
    reservation: Reservation,
    logs: Path,
    sleeps: bool = False,
    kind: str = "rollout",
) -> RolloutGroup:
    """Create the engines of a kind in their places."""
    rollout = config.rollout.model_copy(update={"sleep": sleeps})

    def create(name: str) -> Any:
        return reservation.create(
            RolloutActor,
            name,
            name=name,
            model_path=model_path,
            rollout=rollout,
            dtype=config.model.dtype,
            max_model_len=max_model_len,
            seed=config.seed,
            weight_backend=backend,
            log_dir=str(logs),
            template_args=config.prompt.chat_template_args,
            gpus=reservation.gpu_ids(name),
            prefix_caching=not config.run.deterministic,
        )

    actors = [create(name) for name in engine_names(reservation.placement.count(kind), kind)]
    sequences = concurrent_sequences(rollout, "gpu" if reservation.placement.gpus else "cpu")
    group = RolloutGroup(actors, config.run, sequences, sleeps, kind)
    group.create = create
    return group


def create_learners(
    config: Config, model_path: str, reservation: Reservation, logs: Path, actor: type[LearnerActor], **arguments: Any
) -> LearnerGroup:
    """Create the learner ranks in their places. `arguments`: further arguments of `actor`."""
    ranks = reservation.placement.count("learner")
    actors = [
        reservation.create(
            actor,
            f"learner-{rank}",
            rank=rank,
            world_size=ranks,
            model_path=model_path,
            learner=config.learner,
            dtype=config.model.dtype,
            seed=config.seed,
            log_dir=str(logs),
            timeout_s=config.run.longest_timeout_s,
            **arguments,
        )
        for rank in range(ranks)
    ]
    return LearnerGroup(actors, config.run, config.weights.verify)


def bring_up(rollouts: RolloutGroup, calls: list[Pending]) -> dict[str, Any]:
    """Wait for the start-up calls; returns the actors' self-descriptions, by name. The first failure ends them all."""
    try:
        return {call.actor: found for call, found in zip(calls, wait_for("start", calls, rollouts.run), strict=True)}
    except (ActorFailed, ModelError):
        for engine in rollouts.actors:  # An engine that is still starting cannot handle a shutdown call.
            ray.kill(engine)
        raise


def end_engines(rollouts: RolloutGroup, orderly: Sequence[Any] = (), others: Sequence[Any] = ()) -> None:
    """`end_actors` for engines and other actors of a job."""
    rollouts.supervisor.retire()
    starting = rollouts.starting  # cannot handle a shutdown call
    up = [engine for engine in rollouts.actors if engine not in starting]
    end_actors([*up, *orderly], [*starting, *others])


class Cluster:
    """All actors of a training run. `close` ends them; every wait is bounded by `run.timeouts_s`.

    Args:
        recoveries: lets a rollout engine or the reward actor be replaced alone; None: the first failure ends the job.
    """

    def __init__(
        self,
        config: Config,
        model_path: str,
        max_model_len: int,
        logs: Path,
        score_format: ScoreFormat = DEFAULT_FORMAT,
        recoveries: Recoveries | None = None,
    ):
        require_same_files(model_path, logs, config.run.timeout_s("start"))
        self.config, self.placement = config, place(config, cluster_machines())
        gpus, colocated = self.placement.gpus, self.placement.colocated
        self.backend = weight_backend(config.weights.backend, gpus, colocated)
        reserved = self.reservation = Reservation(self.placement, config.run.timeout_s("start"))
        sleeps = engines_sleep(config, gpus, colocated)
        rollouts = create_rollouts(config, model_path, max_model_len, self.backend, reserved, logs, sleeps)
        from actors.learner.learner import LearnerActor  # takes seconds, while the engines are already starting

        # The engine chooses its positional encoding by the maximum length, not by the actual one: so must the trainer.
        arguments: dict[str, Any] = {"rl": config.rl, "temperature": config.rollout.temperature, "longest": max_model_len}
        learners = create_learners(config, model_path, reserved, logs, LearnerActor, **arguments)
        machine = reward_machine(self.placement)
        node = machine.node_id if machine else ray.get_runtime_context().get_node_id()
        options = {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}

        def create_reward() -> Any:
            return ray.remote(RewardActor).options(name=REWARD, **options).remote(REWARD, score_format)

        reward = RewardClient(create_reward(), config.run)
        reward.create = create_reward
        self.actors = Actors(rollouts, learners, reward)
        self.pulse = Pulse(config.recovery.heartbeat_s)
        self.recoveries = recoveries
        self.replacements: Replacements | None = None

    def start(self) -> dict[str, Any]:
        """Start all actors; returns their self-descriptions, by name.

        Raises:
            ModelError: the learners' self-check found that the model would be computed wrong.
            ActorFailed: an actor failed, died or did not answer in time.
            PlacementError: Ray gave actors that have to share a GPU different ones.
        """
        rollouts, learners, reward = self.actors.rollouts, self.actors.learners, self.actors.reward
        engines = rollouts.ready()
        # vLLM measures the free memory of a GPU while it starts, which no learner may change meanwhile.
        first = rollouts.sleeps or (self.placement.gpus and self.placement.colocated)
        found = bring_up(rollouts, engines) if first else {}
        if rollouts.sleeps:
            rollouts.sleep()  # The learners build their states in the memory of the engines.
        found |= bring_up(rollouts, [*([] if found else engines), *learners.join(), reward.ready()])
        check_reported_gpus(self.placement, {name: (one["node"], one["gpus"]) for name, one in found.items()})
        learners.connect_rollouts(rollouts.actors, self.backend, bucket_mib(self.config.weights.bucket_mib, self.backend))
        if rollouts.sleeps:
            # The weights are still the same on both sides, so that the engines can compare their answers.
            learners.send_weights(0)
        self.actors.watch(self.pulse)
        if self.recoveries is not None:
            self.replacements = Replacements(self.recoveries, self.pulse, {name: one["node"] for name, one in found.items()})
            self._let_replace(self.replacements)
        return {
            name: one | ({"placement": self.placement.describe(name)} if name in self.placement.slots else {})
            for name, one in found.items()
        }

    def _let_replace(self, replacements: Replacements) -> None:
        """Allow what can be replaced alone to be replaced."""
        rollouts, reward = self.actors.rollouts, self.actors.reward
        reward.replacements = replacements
        # A GPU's free memory must not change while an engine starts, and frozen samples would be lost track of.
        if not (self.placement.gpus and self.placement.colocated) and not self.config.rollout.in_flight_updates:
            rollouts.replacements = replacements
            # Otherwise the learners may be in the middle of a step while engines sample.
            rollouts.refresh = self.actors.refresh if self.config.rl.staleness == 0 else None

    def close(self) -> None:
        """Let engines and learners shut down in order, briefly; kill what does not answer."""
        if self.replacements is not None:
            self.replacements.close()
        self.pulse.close()
        end_engines(self.actors.rollouts, self.actors.learners.actors, [self.actors.reward.actor])
        self.reservation.release()


class LearnerCluster:
    """Learner ranks without engines: one GPU each if there are GPUs, else an equal share of the cores.

    Args:
        actor: a subclass of `LearnerActor`; None: that class itself. `arguments`: its further arguments.

    Raises:
        PlacementError: fewer GPUs than ranks.
    """

    def __init__(self, config: Config, model_path: str, logs: Path, actor: type[LearnerActor] | None = None, **arguments: Any):
        from actors.learner.learner import LearnerActor

        require_same_files(model_path, logs, config.run.timeout_s("start"))
        self.placement = place_learners(config, cluster_machines())
        self.reservation = Reservation(self.placement, config.run.timeout_s("start"))
        self.learners = create_learners(config, model_path, self.reservation, logs, actor or LearnerActor, **arguments)
        self.pulse = Pulse(config.recovery.heartbeat_s)

    def start(self) -> dict[str, Any]:
        """Start the ranks; returns their self-descriptions, by name."""
        calls = self.learners.join()
        found = wait_for("start", calls, self.learners.run)
        self.pulse.watch(dict(zip(self.learners.names, self.learners.actors, strict=True)))
        self.learners.pulse = self.learners.transfer_pulse = self.pulse.of(self.learners.names)
        return {call.actor: one | {"placement": self.placement.describe(call.actor)} for call, one in zip(calls, found, strict=True)}

    def close(self) -> None:
        """Let the ranks shut down in order, briefly; kill what does not answer."""
        self.pulse.close()
        end_actors(self.learners.actors)
        self.reservation.release()
