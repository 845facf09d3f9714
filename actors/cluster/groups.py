"""Place, start and shut down the actors. The calls that the loop makes to them are in `actors.cluster.calls`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.cluster.calls import Actors, LearnerGroup, rollout_names
from actors.cluster.waiting import ActorFailed, Pending, wait
from actors.reward import RewardActor
from actors.rollout.rollout import RolloutActor
from rlsys.config.schema import Config
from rlsys.models.loading import ModelError
from rlsys.rewards.extraction import DEFAULT_FORMAT, ScoreFormat
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


class ReservedActors(Actors):
    """Actors with a resource reservation, which `close` releases.

    Args:
        bundles: one for each actor that needs resources.
    """

    def __init__(self, config: Config, bundles: list[dict[str, float]]):
        self.config = config
        self.reservation = Reservation(bundles, config.run.actor_timeout_s)
        super().__init__(
            [], [], None, config.run.actor_timeout_s, config.rollout.max_num_seqs, config.weights.verify, bool(config.rollout.sleep)
        )

    def add_rollouts(
        self, model_path: str, max_model_len: int, backend: str, resources: dict[str, float], threads: int, logs: Path, first_bundle: int
    ) -> None:
        """Create the rollout actors, in bundles from `first_bundle` on."""
        config = self.config
        self.rollout_names = rollout_names(config.rollout.actors)
        self.rollouts = [
            ray.remote(RolloutActor)
            .options(name=name, **self.reservation.options(resources, first_bundle + i))
            .remote(
                name=name,
                model_path=model_path,
                rollout=config.rollout,
                dtype=config.model.dtype,
                max_model_len=max_model_len,
                seed=config.seed,
                weight_backend=backend,
                log_dir=str(logs),
                threads=threads,
                template_args=config.prompt.chat_template_args,
            )
            for i, name in enumerate(self.rollout_names)
        ]

    def add_learners(
        self, model_path: str, resources: dict[str, float], threads: int, logs: Path, actor: type[LearnerActor], **arguments: Any
    ) -> None:
        """Create the learner ranks, in the first bundles. `arguments`: further arguments of `actor`."""
        config, ranks = self.config, self.config.learner.ranks
        handles = [
            ray.remote(actor)
            .options(name=f"learner-{rank}", **self.reservation.options(resources, rank))
            .remote(
                rank=rank,
                world_size=ranks,
                model_path=model_path,
                learner=config.learner,
                dtype=config.model.dtype,
                seed=config.seed,
                log_dir=str(logs),
                threads=threads,
                timeout_s=self.timeout_s,
                **arguments,
            )
            for rank in range(ranks)
        ]
        self.learners = LearnerGroup(handles, self.timeout_s)

    def bring_up(self, calls: list[Pending]) -> list[Any]:
        """Wait for the concurrent start-up `calls` and return their results; the first failure ends them all."""
        try:
            return wait(calls, self.timeout_s)
        except (ActorFailed, ModelError):
            for engine in self.rollouts:  # An engine that is still starting cannot handle a shutdown call.
                ray.kill(engine)
            raise

    def close(self) -> None:
        super().close()
        self.reservation.release()


class Cluster(ReservedActors):
    """All actors of a training run. `close` ends them; every wait is bounded by `run.actor_timeout_s`."""

    def __init__(self, config: Config, model_path: str, max_model_len: int, logs: Path, score_format: ScoreFormat = DEFAULT_FORMAT):
        size = cluster_size()
        placement = self.placement = place(config, *size)
        self.backend = weight_backend(config.weights.backend, size.gpus, placement.colocated)
        sleep = engines_sleep(config, size.gpus, placement.colocated)
        config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"sleep": sleep})})
        ranks, engines = config.learner.ranks, config.rollout.actors if placement.rollout["CPU"] else 0
        super().__init__(config, [placement.learner] * ranks + [placement.rollout] * engines)
        self.add_rollouts(model_path, max_model_len, self.backend, placement.rollout, placement.rollout_threads, logs, first_bundle=ranks)
        from actors.learner.learner import LearnerActor  # takes seconds, while the engines are already starting

        # The engine chooses its positional encoding by the maximum length, not by the actual one: so must the trainer.
        arguments = {"rl": config.rl, "temperature": config.rollout.temperature, "longest": max_model_len}
        self.add_learners(model_path, placement.learner, placement.learner_threads, logs, LearnerActor, **arguments)
        self.reward = ray.remote(RewardActor).options(name="reward", num_cpus=0).remote("reward", score_format)

    def start(self) -> dict[str, Any]:
        """Start all actors concurrently; returns their self-descriptions, by name.

        Raises:
            ModelError: the learners' self-check found that the model would be computed wrong.
            ActorFailed: an actor failed, died or did not answer in time.
        """
        ready = [Pending(actor.ready.remote(), name, "ready") for actor, name in zip(self.rollouts, self.rollout_names, strict=True)]
        descriptions = self.bring_up([*ready, *self.learners.join(), Pending(self.reward.ready.remote(), "reward", "ready")])
        self.learners.connect_rollouts(self.rollouts, self.backend, self.config.weights.bucket_mib, self.timeout_s)
        return dict(zip([*self.rollout_names, *self.learners.names, "reward"], descriptions, strict=True))


class LearnerCluster(ReservedActors):
    """Learner ranks without engines: one GPU each if there are GPUs, else an equal share of the cores.

    Args:
        actor: a subclass of `LearnerActor`; None: that class itself. `arguments`: its further arguments.

    Raises:
        ValueError: fewer GPUs than ranks.
    """

    def __init__(self, config: Config, model_path: str, logs: Path, actor: type[LearnerActor] | None = None, **arguments: Any):
        from actors.learner.learner import LearnerActor

        resources, self.threads = place_learners(config, *cluster_size())
        super().__init__(config, [resources] * config.learner.ranks)
        self.add_learners(model_path, resources, self.threads, logs, actor or LearnerActor, **arguments)

    def start(self) -> list[dict[str, Any]]:
        """Start the ranks; returns their self-descriptions."""
        return wait(self.learners.join(), self.timeout_s)
