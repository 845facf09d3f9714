"""Judging many records with many samples each: engines sample and a scorer scores their samples concurrently, as one bounded stream.

Only a window of rows is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from actors.cluster.calls import end_actors
from actors.cluster.groups import Reservation, bring_up, cluster_size, create_rollouts, weight_backend
from actors.cluster.machines import require_same_files
from actors.cluster.waiting import Pending, fetch, wait
from rlsys.config.schema import Config
from rlsys.data.chain import prompt_batch
from rlsys.judging.requests import JudgeRequest, JudgeResult, RenderedRequest, collect_results, render_requests
from rlsys.prompts.rendering import Prompter

AHEAD = 4
"""Shares queued for the scorer before the engines wait for it."""
SCORER = "scorer-0"


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters."""

    temperature: float
    top_p: float
    max_tokens: int
    min_tokens: int = 0


@dataclass
class _Share:
    """Rows that are sent together."""

    questions: list[RenderedRequest]
    prompts: pa.RecordBatch
    """PROMPTS that the questions ask."""
    samples: ray.ObjectRef | None = None
    """None until they are sampled."""
    scoring: Pending | None = None


class Judges:
    """Engines with the weights of `model_path`, and a scorer if there is a meta reward model.

    Without GPUs the scorer gets a quarter of a machine's cores, at least one, and the engines the rest.
    """

    def __init__(self, config: Config, model_path: str, logs: Path, meta_rm: str | None = None):
        for model in filter(None, (model_path, meta_rm)):
            require_same_files(model, None, config.run.actor_timeout_s)
        cpus, gpus, nodes = cluster_size()
        engines = config.rollout.actors
        cores = max(1, cpus // nodes)
        scorers = int(meta_rm is not None)
        scorer_threads = max(1, cores // 4)
        threads = config.rollout.cpus or max(1, (cores - scorers * scorer_threads) // -(-engines // nodes))
        share = 0.5 if gpus < engines * config.rollout.tensor_parallel + scorers else 1.0
        engine, scorer = ({"CPU": 1.0, "GPU": share} if gpus else {"CPU": float(each)} for each in (threads, scorer_threads))
        if gpus and config.rollout.tensor_parallel > 1:
            engine["GPU"] = float(config.rollout.tensor_parallel)
        # If there are more actors than cores, they share cores: a larger reservation would never be granted.
        scale = min(1.0, cpus / (engines * engine["CPU"] + scorers * scorer["CPU"]))
        engine, scorer = ({**each, "CPU": int(100 * scale * each["CPU"]) / 100} for each in (engine, scorer))
        reserved = self.reservation = Reservation([engine] * engines + [scorer] * scorers, config.run.actor_timeout_s)
        longest = config.prompt.max_tokens + config.rollout.max_tokens
        backend = weight_backend(config.weights.backend, gpus, colocated=True)
        sleeps = bool(config.rollout.sleep)
        self.rollouts = create_rollouts(config, model_path, longest, backend, reserved, engine, threads, logs, 0, sleeps)
        self.scorer: Any = None
        if meta_rm is not None:
            from actors.scalar_scorer import ScalarScorer  # takes seconds, while the engines are already starting

            options = reserved.options(scorer, engines)
            self.scorer = (
                ray.remote(ScalarScorer)
                .options(name=SCORER, **options)
                .remote(
                    name=SCORER,
                    model_path=meta_rm,
                    dtype=config.model.dtype,
                    threads=scorer_threads,
                    log_dir=str(logs),
                    judge_path=model_path,
                )
            )

    def start(self) -> dict[str, Any]:
        """Start all actors concurrently; returns their self-descriptions, by name."""
        calls = [*self.rollouts.ready(), *([Pending(self.scorer.ready.remote(), SCORER, "ready")] if self.scorer else [])]
        return {call.actor: found for call, found in zip(calls, bring_up(self.rollouts, calls), strict=True)}

    def close(self) -> None:
        """Let the engines shut down in order, briefly; kill what does not answer."""
        end_actors(self.rollouts.actors, [self.scorer] if self.scorer else [])
        self.reservation.release()

    def answer(self, asks: Iterable[JudgeRequest], prompter: Prompter, sampling: Sampling, max_prompt_tokens: int) -> Iterator[JudgeResult]:
        """The answers to `asks`, in order, each as soon as it and all earlier ones are complete.

        Raises:
            ActorFailed: an engine or scorer failed, died or timed out.
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
                share.scoring = Pending(self.scorer.score.remote(share.prompts, samples), SCORER, "score")
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

    def _answers(self, share: _Share, prompter: Prompter) -> list[JudgeResult]:
        meta_rewards = wait([share.scoring], self.rollouts.timeout_s)[0] if share.scoring else None
        samples = fetch(Pending(share.samples, "rollout", "sample"), self.rollouts.timeout_s)
        return collect_results(share.questions, samples, meta_rewards, prompter.score_format)


def _is_scored(share: _Share) -> bool:
    return share.scoring is None or bool(ray.wait([share.scoring.ref], timeout=0)[0])
