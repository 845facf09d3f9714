"""The service as an application of Ray Serve: `rlsys serve` runs it, and `serve deploy` with launch/cluster/serve.yaml."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application

from actors.cluster.reservation import cluster_machines
from actors.serving.deployments import Ingress, JudgeReplica, MetaReplica
from rlsys.config.schema import Config, ConfigError
from rlsys.io.run_folder import find_model
from rlsys.serving.app import Settings
from rlsys.serving.service import ServiceArguments, read_token, service_config
from rlsys.system.placement import Placement, place_judges, weight_backend

NAME = "rlsys"
HEALTH_S = 5.0
"""Seconds between two health checks of a replica."""
STOP_S = 20.0
"""Seconds that a replica may take to end."""
TARGET_REQUESTS = 16
"""Requests in progress per engine above which another engine is started, and below which one is stopped."""

GATHERINGS = 2
"""Routes on which responses wait for their groups: /get_reward and /slime."""
SPARE_REQUESTS = 256
"""For probes, the page, and requests that are about to be refused."""


def build(args: dict[str, Any]) -> Application:
    """Return the application, for `serve deploy`.

    Args:
        args: those of `rlsys.serving.service.ServiceArguments`.

    Raises:
        ValidationError: an argument is unknown or has a wrong value.
        ConfigError: the arguments have mistakes, or there is no token although `anonymous` is not set.
        PlacementError: the cluster has too few GPUs.
    """
    arguments = ServiceArguments.model_validate(args)
    token = read_token(arguments.token_file)
    if token is None and not arguments.anonymous:
        raise ConfigError(
            "no token: whoever reaches this service's port may use it. Name a token_file, set RLSYS_TOKEN on the cluster, or set "
            "anonymous: true if only its users can reach it."
        )
    config, meta_rm, problems = service_config(arguments)
    if problems:
        raise ConfigError(*problems)
    return application(arguments, config, meta_rm, token)


def application(
    arguments: ServiceArguments, config: Config, meta_rm: str | None, token: str | None, hosts: frozenset[str] | None = None
) -> Application:
    """Return the application for checked arguments.

    Args:
        hosts: see `rlsys.serving.app.Settings`.
    """
    placement = place_judges(config, cluster_machines(), scorer=meta_rm is not None)
    model = find_model(config.model.path)
    engine = _options(placement, "rollout")
    meta = None
    if meta_rm is not None:
        scorer = _options(placement, "scorer")
        meta = _deployment(MetaReplica, "meta", 1, 1, scorer, arguments).bind(
            meta_rm, config.model.dtype, _threads(placement, "scorer"), model, arguments
        )
    backend = weight_backend("auto", placement.gpus, colocated=True)
    judge = _deployment(JudgeReplica, "judge", *arguments.replicas, engine, arguments).bind(
        arguments, config, meta_rm, _threads(placement, "rollout"), backend, meta
    )
    ingress = ingress_deployment(arguments)
    return ingress.bind(judge, Settings(arguments.limits, token, hosts))


def ingress_deployment(arguments: ServiceArguments) -> Any:
    """Return the HTTP ingress, which lets Serve hold back nothing that its own limits admit: they refuse, and say why, at once."""
    limits = arguments.limits
    admitted = GATHERINGS * limits.max_gathering + 2 * limits.max_pending + SPARE_REQUESTS
    deployment = _deployment(Ingress, "ingress", 1, 1, {"num_cpus": 0}, arguments)
    return deployment.options(max_ongoing_requests=admitted, max_queued_requests=limits.max_pending)


def _deployment(kind: type, name: str, smallest: int, largest: int, options: dict[str, Any], arguments: ServiceArguments) -> Any:
    scale: dict[str, Any] = {"num_replicas": smallest}
    if largest > smallest:
        scale = {"autoscaling_config": {"min_replicas": smallest, "max_replicas": largest, "target_ongoing_requests": TARGET_REQUESTS}}
    return serve.deployment(kind).options(
        name=name,
        ray_actor_options=options,
        # The ingress admits no more than the limit, and engines batch what they are given.
        max_ongoing_requests=4 * arguments.limits.max_pending,
        health_check_period_s=HEALTH_S,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=STOP_S,
        max_constructor_retry_count=2,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
        **scale,
    )


def _options(placement: Placement, kind: str) -> dict[str, Any]:
    """Return what Ray reserves for each replica, which must fit all of them: the least of their slots."""
    slots = [slot for name, slot in placement.slots.items() if name.startswith(f"{kind}-")]
    return {"num_cpus": min(slot.cpus for slot in slots), "num_gpus": min(slot.gpu_share * len(slot.gpus) for slot in slots)}


def _threads(placement: Placement, kind: str) -> int:
    return min(slot.threads for name, slot in placement.slots.items() if name.startswith(f"{kind}-"))
