"""The deployments of the service on Ray Serve: HTTP ingress -> judge replicas, one engine each -> meta reward model replicas."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from actors.serving.backend import ServedJudge
from actors.serving.judge import JudgeActor
from rlsys.config.schema import Config
from rlsys.serving.app import Settings, create_app
from rlsys.serving.contract import ServingError
from rlsys.serving.service import ServiceArguments

DRAIN_STEP_S = 0.1


class JudgeReplica(JudgeActor):
    """A replica with one engine. If the engine dies, so does the replica, and Serve starts another one."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it.
        self, arguments: ServiceArguments, config: Config, meta_rm: str | None, threads: int, backend: str, meta: Any = None
    ):
        name = f"judge-{serve.get_replica_context().replica_id.unique_id}"
        super().__init__(name, arguments, config, meta_rm, log_folder(arguments), threads, backend, meta)
        await self.ready()

    def check_health(self) -> None:
        """Called by Serve, periodically."""
        if self._engine.engine_failure():
            # Serve would wait for three failures, and the router prefer this replica meanwhile, as it answers fastest.
            logging.getLogger("ray.serve").error("%s: its engine has died; see %s", self._engine.name, self._engine.log)
            os._exit(1)

    async def _generate(self, *arguments: Any) -> pa.RecordBatch:
        try:
            return await super()._generate(*arguments)
        except ServingError:
            self.check_health()
            raise

    async def __del__(self) -> None:
        await self.shutdown()


class MetaReplica:
    """A replica of the meta reward model, which scores one request's samples at a time."""

    def __init__(self, model_path: str, dtype: str, threads: int, judge_path: str, arguments: ServiceArguments):
        from actors.scalar_scorer import ScalarScorer

        name = f"meta-{serve.get_replica_context().replica_id.unique_id}"
        self._scorer = ScalarScorer(name, model_path, dtype, threads, log_folder(arguments), judge_path=judge_path)
        # A thread of its own, so that the event loop keeps answering health checks.
        self._thread = ThreadPoolExecutor(1)

    async def score(self, prompts: pa.RecordBatch, samples: pa.RecordBatch) -> list[float]:
        """Return the logit of each of the SAMPLES of PROMPTS."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._scorer.score, prompts, samples)


@serve.ingress()
class Ingress:
    """The HTTP server's app, in front of the judge replicas."""

    async def __init__(self, judge: DeploymentHandle, settings: Settings):  # type: ignore[misc]
        log_requests()
        self._judge, self._settings = ServedJudge(judge), settings
        await self._judge.learn_identity()

    def __serve_build_asgi_app__(self) -> FastAPI:
        self._app = create_app(self._judge, self._settings, self._judge.ready)
        return self._app

    async def drain(self, seconds: float) -> int:
        """Refuse further requests, and wait for those in progress; returns how many are left after `seconds`."""
        guard = self._app.state.guard
        guard.drain()
        deadline = asyncio.get_running_loop().time() + seconds
        while guard.in_progress and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(DRAIN_STEP_S)
        return int(guard.in_progress)


def log_folder(arguments: ServiceArguments) -> str:
    """Return the folder for the log files of this replica."""
    # Ray has no public name for its own log folder.
    folder = arguments.logs or Path(ray._private.worker._global_node.get_logs_dir_path()) / "rlsys"
    return str(folder / "logs")


def log_requests() -> None:
    """Let the lines of the service's loggers through to this process's output."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("rlsys.serving")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
