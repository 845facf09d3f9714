"""A running service: Ray, Serve and the application, started together and ended in order."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from actors.cluster.session import ray_session
from actors.serving.application import NAME, application
from rlsys.config.schema import Config
from rlsys.serving.service import ServiceArguments
from rlsys.system.local_http import own_names

LOG = logging.getLogger(__name__)
DRAIN_MARGIN_S = 10.0
"""Seconds that the answer of the draining ingress may take beyond the time it waits."""

_FAILURES = (RuntimeError, TimeoutError, ray.exceptions.RayError, RayServeException)


class ServiceError(RuntimeError):
    """The service did not start; the message says why."""


@dataclass(frozen=True)
class Service:
    """A running service."""

    url: str
    ingress: DeploymentHandle

    def check(self) -> None:
        """Raise ServiceError if the service has ended by itself."""
        try:
            found = serve.status().applications.get(NAME)
        except (RuntimeError, ray.exceptions.RayError) as error:
            raise ServiceError(f"the service has ended: {type(error).__name__}: {error}") from error
        if found is None:
            raise ServiceError("the service was deleted by somebody else.")

    def drain(self, seconds: float) -> int:
        """Refuse further requests, and wait for those in progress; returns how many are left after `seconds`."""
        try:
            return int(self.ingress.drain.remote(seconds).result(timeout_s=seconds + DRAIN_MARGIN_S))
        except (TimeoutError, ray.exceptions.RayError):
            return 0  # The ingress itself is gone.


@contextmanager
def running_service(
    arguments: ServiceArguments, config: Config, meta_rm: str | None, token: str | None, host: str, port: int, address: str | None = None
) -> Iterator[Service]:
    """Start the service, and stop it when the block ends. In it, SIGTERM raises KeyboardInterrupt, as Ctrl-C does.

    Args:
        config, meta_rm: of `rlsys.serving.service.service_config`.
        address: of a running Ray cluster; None: a local Ray of its own, which ends with the block.

    Raises:
        ServiceError: the port is taken, the service runs already, or a model did not start.
    """
    # Serve's own lines about deployments and replicas; errors are raised.
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    # On a busy machine a proxy takes longer to start than the 5 s after which Serve would kill it.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    own_ray = address is None and not ray.is_initialized()
    with _cluster(config, address), _sigterm_interrupts(), ExitStack() as ending:
        try:
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": host, "port": port},
                logging_config={"log_level": "WARNING", "enable_access_log": False},
            )
            if not own_ray:
                _require_address(host, port)
                _require_no_application()
            # From here on the application is this session's, and removed however the start or the block ends.
            ending.callback(_stop, own_ray)
            ingress = serve.run(application(arguments, config, meta_rm, token, own_names(host)), name=NAME, route_prefix="/")
        except ServiceError:
            raise
        except _FAILURES as error:
            raise ServiceError(f"the service did not start: {error}") from error
        yield Service(f"http://{f'[{host}]' if ':' in host else host}:{port}", ingress)


@contextmanager
def _cluster(config: Config, address: str | None) -> Iterator[None]:
    if address is None:
        with ray_session(config.run):
            yield
        return
    ray.init(address=address, logging_level="warning")
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C. Ray, which has just been started, would end the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _require_address(host: str, port: int) -> None:
    """Check that Serve listens there: one that ran before keeps its own address, which others may reach without a token.

    Raises:
        ServiceError: it listens elsewhere.
    """
    found = _get_global_client().http_config
    if (found.host, found.port) != (host, port):
        raise ServiceError(
            f"Ray Serve runs on this cluster already, at {found.host}:{found.port}; use --host {found.host} --port {found.port}, or end it "
            "(serve shutdown)."
        )


def _require_no_application() -> None:
    """Check that no other session runs the service on this cluster; starting would replace it, and ending remove it.

    Raises:
        ServiceError: one does.
    """
    if NAME in serve.status().applications:
        raise ServiceError(f"an application named {NAME} runs on this cluster already; use it, or end it first.")


def _stop(ray_ends: bool) -> None:
    """Delete the application, and Serve as well if nothing else runs on it, unless it ends with its Ray.

    A failure is logged, so that it does not hide why the service ends.
    """
    try:
        others = [name for name in serve.status().applications if name != NAME]
        serve.delete(NAME)
        if not ray_ends and not others:
            serve.shutdown()
    except _FAILURES as error:
        left = "" if ray_ends else f"; the application {NAME} may still run on the cluster, `serve shutdown` ends it"
        LOG.error("the service could not be stopped in order (%s: %s)%s", type(error).__name__, error, left)
