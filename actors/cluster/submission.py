"""Jobs submitted to a running Ray cluster: `connect`, `submit`, then `follow` the log until the job ends."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

REQUEST_S = 60.0
"""Longest silence of the dashboard within one request."""
POLL_S = 10.0
"""Seconds between two looks at the job's status, without which a silent log and a lost connection look the same."""
LOST_S = 300.0
"""Seconds without any answer from the dashboard after which `follow` gives up."""
RETRY_S = 1.0
"""Pause before a broken log is opened again."""
TALKATIVE = ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")
"""Ray's loggers that report every ignore file and every end of a connection."""
UNREACHABLE = (OSError, RuntimeError, LookupError, aiohttp.ClientError)
"""What Ray's client raises if the dashboard cannot be reached, or something else answers at its address."""


class SubmissionError(ValueError):
    """The cluster cannot be reached, or refuses the job."""


class ConnectionLost(RuntimeError):
    """The dashboard no longer answers; the job itself may go on."""


class Client(JobSubmissionClient):
    """Ray's client, whose requests would otherwise wait for ever."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=REQUEST_S, **options)


def connect(address: str) -> Client:
    """Connect to the dashboard at `address` (http://HEAD:8265).

    Raises:
        SubmissionError: no Ray dashboard answers there, or it refuses the token.
    """
    if not address.startswith(("http://", "https://")):
        raise SubmissionError(f"address {address!r}: expected the dashboard's, http://HEAD:8265, as `ray start --head` prints it.")
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray lets this variable override the argument, and RAY_ADDRESS otherwise.
    try:
        return Client(address)
    except AuthenticationError as error:
        raise SubmissionError(
            f"{address} refuses this token. `source launch/ray_env.sh`, with the cluster's ~/.ray/auth_token (or RAY_AUTH_TOKEN) here. "
            f"Ray says: {str(error).splitlines()[0]}"
        ) from error
    except UNREACHABLE as error:
        raise SubmissionError(
            f"{address}: no Ray dashboard answers here ({error}). Check the address; through a firewall, forward the port: "
            "ssh -L 8265:localhost:8265 HEAD."
        ) from error


def submit(client: Client, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> str:
    """Upload the working directory, start `entrypoint` on the cluster, and return the job's name.

    Raises:
        SubmissionError: the runtime environment is refused (for example, a working directory of more than 500 MiB), or the upload failed.
    """
    try:
        return client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env, metadata=metadata)
    except (ValueError, TypeError, *UNREACHABLE) as error:
        raise SubmissionError(f"the job was not submitted: {error}") from error


async def follow(client: Client, job: str, show: Callable[[str], None]) -> JobDetails:
    """Pass the job's log to `show`, from its beginning, until the job ends; a broken connection is resumed where it broke.

    Raises:
        ConnectionLost: no answer for `LOST_S` seconds, or the cluster does not know the job (any more).
    """
    log = _Log(client, job, show)
    answered, drained = time.monotonic(), False
    tail = asyncio.create_task(log.tail())
    try:
        while True:
            await asyncio.wait({tail}, timeout=POLL_S)
            try:
                details = await asyncio.to_thread(client.get_job_info, job)
                answered = time.monotonic()
                if details.status.is_terminal():
                    if drained or (tail.done() and tail.result()):
                        return details
                    drained = True  # One more round for the end of the log.
            except UNREACHABLE as error:
                if time.monotonic() - answered > LOST_S or "status code 404" in str(error):
                    raise ConnectionLost(f"the cluster no longer answers for job {job}: {error}") from error
            if tail.done():
                await asyncio.sleep(RETRY_S)
                tail = asyncio.create_task(log.tail())
    finally:
        tail.cancel()
        await asyncio.gather(tail, return_exceptions=True)


class _Log:
    """The log of a job; every `tail` continues where the last one ended."""

    def __init__(self, client: Client, job: str, show: Callable[[str], None]):
        self.client, self.job, self.show = client, job, show
        self.shown = 0

    async def tail(self) -> bool:
        """Show what is new until the job ends; return False if the connection broke."""
        position = 0  # The dashboard starts at the beginning of the log.
        try:
            async for text in self.client.tail_job_logs(self.job):
                new = text[max(0, self.shown - position) :]
                position += len(text)
                self.shown = max(self.shown, position)
                if new:
                    self.show(new)
        except UNREACHABLE:
            return False
        return True


def stop(client: Client, job: str, timeout_s: float = 60.0) -> str:
    """Stop a job, and return its status once it has ended (at the latest after `timeout_s` seconds)."""
    client.stop_job(job)
    deadline = time.monotonic() + timeout_s
    while not (status := client.get_job_status(job)).is_terminal() and time.monotonic() < deadline:
        time.sleep(0.5)
    return status.value
