"""Judging many records with many samples each: engines sample and a scorer scores their samples concurrently, as one bounded stream.

Only a window of rows is in memory at a time. An engine or a scorer that is lost is replaced while the stream goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from actors.cluster.groups import bring_up, create_rollouts, end_engines
from actors.cluster.heartbeats import Pulse
from actors.cluster.machines import require_same_files
from actors.cluster.replacement import Recoveries, Replacements
from actors.cluster.reservation import Reservation, cluster_machines
from actors.cluster.waiting import ActorFailed, Pending, fetch, wait_for
from rlsys.config.schema import Config
from rlsys.data.chain import prompt_batch
from rlsys.judging.requests import JudgeRequest, JudgeResult, RenderedRequest, Sampling, collect_results, render_requests
from rlsys.prompts.rendering import Prompter
from rlsys.system.placement import Placement, place_judges, weight_backend

AHEAD = 4
"""Shares queued for the scorer before the engines wait for it."""
SCORER = "scorer-0"


@dataclass
class _Share:
    """Rows that are sent together."""

    questions: list[RenderedRequest]
    prompts: pa.RecordBatch
    """PROMPTS that the questions ask."""
    samples: ray.ObjectRef | None = None
    """None until they are sampled."""
    scoring: Pending | None = None
    scorer: Any = None
    """The one that scores them."""


class Judges:
    """Engines with the weights of `model_path`, and a scorer if there is a meta reward model.

    Args:
        placement: of engines that are called KIND-0, ...; None: alone in the cluster (`rlsys.system.placement.place_judges`).
        recoveries: lets an engine or the scorer be replaced alone; None: the first failure ends the stream.
    """

    def __init__(
        self,
        config: Config,
        model_path: str,
        logs: Path,
        meta_rm: str | None = None,
        placement: Placement | None = None,
        kind: str = "rollout",
        recoveries: Recoveries | None = None,
    ):
        for model in filter(None, (model_path, meta_rm)):
            require_same_files(model, None, config.run.timeout_s("start"))
        self.placement = placement or place_judges(config, cluster_machines(), scorer=meta_rm is not None)
        self.reservation = Reservation(self.placement, config.run.timeout_s("start"))
        longest = config.prompt.max_tokens + config.rollout.max_tokens
        backend = weight_backend("auto", self.placement.gpus, colocated=True)
        self.rollouts = create_rollouts(config, model_path, longest, backend, self.reservation, logs, kind=kind)
        self.scorer: Any = None
        self.pulse = Pulse(config.recovery.heartbeat_s)
        self.recoveries = recoveries
        self.replacements: Replacements | None = None
        self._scorer_arguments = {"model_path": meta_rm, "dtype": config.model.dtype, "log_dir": str(logs), "judge_path": model_path}

    def start(self) -> dict[str, Any]:
        """Start all actors; returns their self-descriptions, by name."""
        calls = self.rollouts.ready()
        # vLLM measures the free memory of a GPU while it starts, which the scorer may not change meanwhile.
        found = bring_up(self.rollouts, calls) if self.placement.gpus else {}
        if SCORER in self.placement.slots:
            self._create_scorer()
            calls.append(Pending(self.scorer.ready.remote(), SCORER, "ready"))
        found |= bring_up(self.rollouts, [call for call in calls if call.actor not in found])
        self.pulse.watch(self.rollouts.engines | ({SCORER: self.scorer} if self.scorer else {}))
        self.rollouts.pulse = self.pulse
        # A scorer on an engine's GPU would change its free memory while a new engine starts.
        if self.recoveries is not None and not (self.placement.gpus and self.scorer):
            nodes = {name: self.placement.machines[slot.machine].node_id for name, slot in self.placement.slots.items()}
            self.replacements = Replacements(self.recoveries, self.pulse, nodes)
            self.rollouts.replace_by(self.replacements)
        return found

    def close(self) -> None:
        """Let the engines shut down in order, briefly; kill what does not answer."""
        if self.replacements is not None:
            self.replacements.close()
        self.pulse.close()
        end_engines(self.rollouts, others=[self.scorer] if self.scorer else [])
        self.reservation.release()

    def _create_scorer(self) -> None:
        from actors.scalar_scorer import ScalarScorer  # takes seconds, while the engines are already starting

        self.scorer = self.reservation.create(ScalarScorer, SCORER, name=SCORER, **self._scorer_arguments)

    def answer(self, asks: Iterable[JudgeRequest], prompter: Prompter, sampling: Sampling, max_prompt_tokens: int) -> Iterator[JudgeResult]:
        """The answers to `asks`, in order, each as soon as it and all earlier ones are complete.

        Raises:
            ActorFailed: an engine or the scorer failed, died or timed out, and could not be replaced.
        """
        shares: dict[int, _Share] = {}

        def admitted() -> Iterator[pa.RecordBatch]:
            for number, batch in enumerate(self._batches(render_requests(asks, prompter, max_prompt_tokens))):
                shares[number] = _Share(batch, prompt_batch([prompt for one in batch for prompt in one.asked]))
                yield shares[number].prompts

        oldest = 0
        for number, samples in self.rollouts.stream(
            admitted(), sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.min_tokens
        ):
            share = shares[number]
            share.samples = samples
            if self.scorer:
                self._score(share)
            behind = sum(one.scoring is not None for one in shares.values()) - AHEAD
            while oldest in shares and shares[oldest].samples is not None and (behind > 0 or _is_scored(shares[oldest])):
                yield from self._answers(shares.pop(oldest), prompter)
                oldest, behind = oldest + 1, behind - 1
        for number in sorted(shares):
            yield from self._answers(shares.pop(number), prompter)

    def _batches(self, asked: Iterable[RenderedRequest]) -> Iterator[list[RenderedRequest]]:
        """Questions in shares, about four of which fill an engine."""
        batch: list[RenderedRequest] = []
        size = 0
        for question in asked:
            batch.append(question)
            size += 0 if question.skipped else len(question.request.orders)
            if 4 * size >= self.rollouts.max_num_seqs:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _score(self, share: _Share) -> None:
        share.scorer = self.scorer
        share.scoring = Pending(self.scorer.score.remote(share.prompts, share.samples), SCORER, "score")

    def _answers(self, share: _Share, prompter: Prompter) -> list[JudgeResult]:
        run, meta_rewards = self.rollouts.run, None
        while share.scoring is not None and meta_rewards is None:
            try:
                meta_rewards = wait_for("sample", [share.scoring], run, self.pulse.of([SCORER]))[0]
            except ActorFailed as failure:
                if share.scorer is self.scorer:
                    self._replace_scorer(failure)
                self._score(share)
        samples = fetch(Pending(share.samples, "rollout", "sample"), run.timeout_s("sample"))
        return collect_results(share.questions, samples, meta_rewards, prompter.score_format)

    def _replace_scorer(self, failure: ActorFailed) -> None:
        """Start a new scorer; the samples that the old one had are scored again.

        Raises:
            ActorFailed: it cannot be replaced alone.
        """
        if self.replacements is None:
            raise failure
        self.replacements.replace(SCORER, self.scorer, failure, "a new one starts, and gets its samples again", self._create_scorer)
        self.replacements.await_new(SCORER, self.scorer, self.rollouts.run)
        self.replacements.recoveries.say(f"{SCORER} is back")


def _is_scored(share: _Share) -> bool:
    return share.scoring is None or bool(ray.wait([share.scoring.ref], timeout=0)[0])
