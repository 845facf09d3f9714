"""Place, start and shut down the actors. The calls that the loop makes to them are in `actors.cluster.calls`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.cluster.calls import Actors, LearnerGroup, RewardClient, RolloutGroup, end_actors, rollout_names
from actors.cluster.machines import require_same_files
from actors.cluster.waiting import ActorFailed, Pending, wait
from actors.reward import RewardActor
from actors.rollout.rollout import RolloutActor
from rlsys.config.schema import Config
from rlsys.models.loading import ModelError
from rlsys.rewards.extraction import DEFAULT_FORMAT, ScoreFormat
from rlsys.system.devices import bucket_mib, concurrent_sequences
from rlsys.system.placement import engines_sleep, place, place_learners, weight_backend

if TYPE_CHECKING:
    from actors.learner.learner import LearnerActor


class Reservation:
    """Resources reserved in the cluster for a run's actors, one bundle each.

    Raises:
        ActorFailed: not granted within `timeout_s` seconds.
    """

    def __init__(self, bundles: list[dict[str, float]], timeout_s: float):
        self._group = placement_group(bundles, strategy="PACK")
        if not self._group.wait(timeout_s):
            self.release()
            raise ActorFailed(f"the cluster did not grant {bundles} within {timeout_s:.0f} s; its total is {ray.cluster_resources()}.")

    def options(self, resources: dict[str, float], bundle: int) -> dict[str, Any]:
        """Return the Ray options of an actor that takes `resources` from a bundle; an actor without CPUs runs outside of it."""
        options: dict[str, Any] = {"num_cpus": resources.get("CPU", 0), "num_gpus": resources.get("GPU", 0)}
        if options["num_cpus"]:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
        return options

    def release(self) -> None:
        """Return the resources to the cluster."""
        remove_placement_group(self._group)


class ClusterSize(NamedTuple):
    """Total resources of a Ray cluster."""

    cpus: int
    gpus: int
    nodes: int


def cluster_size() -> ClusterSize:
    """Return the size of the Ray cluster that this process has joined."""
    resources = ray.cluster_resources()
    return ClusterSize(int(resources.get("CPU", 1)), int(resources.get("GPU", 0)), sum(node["Alive"] for node in ray.nodes()))


def create_rollouts(
    config: Config,
    model_path: str,
    max_model_len: int,
    backend: str,
    reservation: Reservation,
    resources: dict[str, float],
    threads: int,
    logs: Path,
    first_bundle: int,
    sleeps: bool = False,
) -> RolloutGroup:
    """Create the rollout actors, in bundles from `first_bundle` on."""
    rollout = config.rollout.model_copy(update={"sleep": sleeps})
    actors = [
        ray.remote(RolloutActor)
        .options(name=name, **reservation.options(resources, first_bundle + i))
        .remote(
            name=name,
            model_path=model_path,
            rollout=rollout,
            dtype=config.model.dtype,
            max_model_len=max_model_len,
            seed=config.seed,
            weight_backend=backend,
            log_dir=str(logs),
            threads=threads,
            template_args=config.prompt.chat_template_args,
        )
        for i, name in enumerate(rollout_names(rollout.actors))
    ]
    sequences = concurrent_sequences(rollout, "gpu" if cluster_size().gpus else "cpu")
    return RolloutGroup(actors, config.run.actor_timeout_s, sequences, sleeps)


def create_learners(
    config: Config,
    model_path: str,
    reservation: Reservation,
    resources: dict[str, float],
    threads: int,
    logs: Path,
    actor: type[LearnerActor],
    **arguments: Any,
) -> LearnerGroup:
    """Create the learner ranks, in the first bundles. `arguments`: further arguments of `actor`."""
    ranks, timeout_s = config.learner.ranks, config.run.actor_timeout_s
    actors = [
        ray.remote(actor)
        .options(name=f"learner-{rank}", **reservation.options(resources, rank))
        .remote(
            rank=rank,
            world_size=ranks,
            model_path=model_path,
            learner=config.learner,
            dtype=config.model.dtype,
            seed=config.seed,
            log_dir=str(logs),
            threads=threads,
            timeout_s=timeout_s,
            **arguments,
        )
        for rank in range(ranks)
    ]
    return LearnerGroup(actors, timeout_s, config.weights.verify)


def bring_up(rollouts: RolloutGroup, calls: list[Pending]) -> list[Any]:
    """Wait for the concurrent start-up `calls` and return their results; the first failure ends them all."""
    try:
        return wait(calls, rollouts.timeout_s)
    except (ActorFailed, ModelError):
        for engine in rollouts.actors:  # An engine that is still starting cannot handle a shutdown call.
            ray.kill(engine)
        raise


class Cluster:
    """All actors of a training run. `close` ends them; every wait is bounded by `run.actor_timeout_s`."""

    def __init__(self, config: Config, model_path: str, max_model_len: int, logs: Path, score_format: ScoreFormat = DEFAULT_FORMAT):
        require_same_files(model_path, logs, config.run.actor_timeout_s)
        size, self.config = cluster_size(), config
        placement = self.placement = place(config, *size)
        self.backend = weight_backend(config.weights.backend, size.gpus, placement.colocated)
        sleeps = engines_sleep(config, size.gpus, placement.colocated)
        ranks, engines = config.learner.ranks, config.rollout.actors if placement.rollout["CPU"] else 0
        bundles = [placement.learner] * ranks + [placement.rollout] * engines
        reserved = self.reservation = Reservation(bundles, config.run.actor_timeout_s)
        engine = placement.rollout, placement.rollout_threads
        rollouts = create_rollouts(config, model_path, max_model_len, self.backend, reserved, *engine, logs, ranks, sleeps)
        from actors.learner.learner import LearnerActor  # takes seconds, while the engines are already starting

        # The engine chooses its positional encoding by the maximum length, not by the actual one: so must the trainer.
        arguments: dict[str, Any] = {"rl": config.rl, "temperature": config.rollout.temperature, "longest": max_model_len}
        learner = placement.learner, placement.learner_threads
        learners = create_learners(config, model_path, reserved, *learner, logs, LearnerActor, **arguments)
        reward = ray.remote(RewardActor).options(name="reward", num_cpus=0).remote("reward", score_format)
        self.actors = Actors(rollouts, learners, RewardClient(reward, config.run.actor_timeout_s))

    def start(self) -> dict[str, Any]:
        """Start all actors concurrently; returns their self-descriptions, by name.

        Raises:
            ModelError: the learners' self-check found that the model would be computed wrong.
            ActorFailed: an actor failed, died or did not answer in time.
        """
        rollouts, learners, reward = self.actors.rollouts, self.actors.learners, self.actors.reward
        calls = [*rollouts.ready(), *learners.join(), reward.ready()]
        descriptions = bring_up(rollouts, calls)
        learners.connect_rollouts(rollouts.actors, self.backend, bucket_mib(self.config.weights.bucket_mib, self.backend))
        return {call.actor: description for call, description in zip(calls, descriptions, strict=True)}

    def close(self) -> None:
        """Let engines and learners shut down in order, briefly; kill what does not answer."""
        end_actors([*self.actors.rollouts.actors, *self.actors.learners.actors], [self.actors.reward.actor])
        self.reservation.release()


class LearnerCluster:
    """Learner ranks without engines: one GPU each if there are GPUs, else an equal share of the cores.

    Args:
        actor: a subclass of `LearnerActor`; None: that class itself. `arguments`: its further arguments.

    Raises:
        ValueError: fewer GPUs than ranks.
    """

    def __init__(self, config: Config, model_path: str, logs: Path, actor: type[LearnerActor] | None = None, **arguments: Any):
        from actors.learner.learner import LearnerActor

        require_same_files(model_path, logs, config.run.actor_timeout_s)
        resources, threads = place_learners(config, *cluster_size())
        self.reservation = Reservation([resources] * config.learner.ranks, config.run.actor_timeout_s)
        self.learners = create_learners(config, model_path, self.reservation, resources, threads, logs, actor or LearnerActor, **arguments)

    def start(self) -> list[dict[str, Any]]:
        """Start the ranks; returns their self-descriptions."""
        return wait(self.learners.join(), self.learners.timeout_s)

    def close(self) -> None:
        """Let the ranks shut down in order, briefly; kill what does not answer."""
        end_actors(self.learners.actors)
        self.reservation.release()
