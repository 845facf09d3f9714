"""The judge of `rlsys.GRM(model)`: engines in this process's Ray, asked without a service between."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray.exceptions import RayError

from actors.cluster.calls import end_actors
from actors.cluster.machines import require_same_files
from actors.cluster.reservation import Reservation, cluster_machines
from actors.cluster.rollout_group import engine_names
from actors.cluster.session import ray_session
from actors.cluster.waiting import Pending, wait_for
from actors.judges import SCORER
from actors.serving.backend import serving_error
from actors.serving.judge import JudgeActor
from rlsys.config.schema import Config, ConfigError
from rlsys.io.run_folder import find_model
from rlsys.judging.setup import judge_config
from rlsys.serving.contract import ScoreRequest, ScoreResponse, ServingError
from rlsys.serving.service import ServiceArguments, service_config
from rlsys.system.placement import place_judges, weight_backend


@dataclass
class _Engine:
    actor: Any
    in_progress: int = 0


class LocalJudge:
    """Running engines, and a scorer if there is a meta reward model. The constructor starts them, and Ray if it does not run yet.

    Args:
        model: run folder, model folder or hub name.
        settings: overrides, KEY=VALUE; rollout.actors is the number of engines.
        meta_rm: run folder of `rlsys meta-rm`, or a model folder.

    Raises:
        ConfigError: the settings have mistakes; all of them are listed.
        ActorFailed: an engine did not start.
    """

    def __init__(self, model: str, settings: Sequence[str] = (), meta_rm: str | None = None):
        self._arguments = ServiceArguments(model=model, settings=list(settings), meta_rm=meta_rm)
        config, reward_model, problems = service_config(self._arguments)
        if problems:
            raise ConfigError(*problems)
        # A service has its number of engines from its arguments.
        config.rollout.actors = judge_config(model, self._arguments.seed, list(settings))[0].rollout.actors
        with ExitStack() as started:
            self._logs = Path(started.enter_context(TemporaryDirectory(prefix="rlsys-logs-")))
            started.enter_context(ray_session(config.run))
            self._engines = self._start(config, reward_model, started)
            self._started = started.pop_all()

    def _start(self, config: Config, reward_model: str | None, started: ExitStack) -> list[_Engine]:
        path, timeout_s = find_model(config.model.path), config.run.timeout_s("start")
        for model in filter(None, (path, reward_model)):
            require_same_files(model, None, timeout_s)
        placement = place_judges(config, cluster_machines(), scorer=reward_model is not None)
        reservation = Reservation(placement, timeout_s)
        started.callback(reservation.release)
        common: dict[str, Any] = {"log_dir": str(self._logs)}
        scorers = []
        if reward_model:
            from actors.scalar_scorer import ScalarScorer

            rest = {"model_path": reward_model, "dtype": config.model.dtype, "judge_path": path}
            scorers = [reservation.create(ScalarScorer, SCORER, name=SCORER, **rest, **common)]
        common |= {
            "arguments": self._arguments,
            "config": config,
            "meta_rm": reward_model,
            "weight_backend": weight_backend("auto", placement.gpus, colocated=True),
            "meta": scorers[0] if scorers else None,
        }
        names = engine_names(placement.count("rollout"))
        engines = [reservation.create(JudgeActor, name, name=name, gpus=reservation.gpu_ids(name), **common) for name in names]
        started.callback(end_actors, engines, scorers)
        wait_for("start", [Pending(engine.ready.remote(), name, "ready") for engine, name in zip(engines, names)], config.run)
        return [_Engine(engine) for engine in engines]

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Answer a request by the engine that has the fewest; see `rlsys.serving.contract.JudgeBackend`."""
        engine = min(self._engines, key=lambda engine: engine.in_progress)
        engine.in_progress += 1
        answer = engine.actor.score.remote(request)
        try:
            return await answer
        except asyncio.CancelledError:
            ray.cancel(answer)
            raise
        except RayError as error:
            known = serving_error(error)
            if isinstance(known, ServingError) and known.status == 503:
                raise ServingError(f"{self}: an engine has died. Close this GRM, and make another one.", 503) from error
            raise known from error
        finally:
            engine.in_progress -= 1

    async def close(self) -> None:
        """End the engines, and Ray if it was started here."""
        await asyncio.to_thread(self._started.close)

    def __repr__(self) -> str:
        return repr(self._arguments.model)
