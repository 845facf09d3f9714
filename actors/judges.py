"""Judging many records with many samples each: engines sample and scorers score their samples concurrently, as one bounded stream.

Only a window of rows is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from actors.cluster.groups import ReservedActors, cluster_size, weight_backend
from actors.cluster.waiting import Pending, fetch
from rlsys.config.schema import Config
from rlsys.data.chain import prompt_batch
from rlsys.judging.requests import JudgeRequest, JudgeResult, RenderedRequest, collect_results, render_requests
from rlsys.prompts.rendering import Prompter

AHEAD = 4
"""Shares queued per scorer before the engines wait for it."""


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


class Judges(ReservedActors):
    """Engines with the weights of `model_path`, and `scorers` scorers if there is a meta reward model.

    Without GPUs a scorer gets a quarter of a machine's cores, at least one, and the engines the rest.
    """

    def __init__(self, config: Config, model_path: str, logs: Path, meta_rm: str | None = None, scorers: int = 1):
        cpus, gpus, nodes = cluster_size()
        engines = config.rollout.actors
        cores = max(1, cpus // nodes)
        scorers = scorers if meta_rm else 0
        scorer_threads = max(1, cores // 4)
        threads = config.rollout.cpus or max(1, (cores - min(scorers, 1) * scorer_threads) // -(-engines // nodes))
        share = 0.5 if gpus < engines * config.rollout.tensor_parallel + scorers else 1.0
        engine, scorer = ({"CPU": 1.0, "GPU": share} if gpus else {"CPU": float(each)} for each in (threads, scorer_threads))
        if gpus and config.rollout.tensor_parallel > 1:
            engine["GPU"] = float(config.rollout.tensor_parallel)
        # If there are more actors than cores, they share cores: a larger reservation would never be granted.
        scale = min(1.0, cpus / (engines * engine["CPU"] + scorers * scorer["CPU"]))
        engine, scorer = ({**each, "CPU": int(100 * scale * each["CPU"]) / 100} for each in (engine, scorer))
        super().__init__(config, [engine] * engines + [scorer] * scorers)
        longest = config.prompt.max_tokens + config.rollout.max_tokens
        backend = weight_backend(config.weights.backend, gpus, colocated=True)
        self.add_rollouts(model_path, longest, backend, engine, threads, logs, first_bundle=0)
        from actors.scalar_scorer import ScalarScorer  # takes seconds, while the engines are already starting

        self.scorer_names = [f"scorer-{i}" for i in range(scorers)]
        self.scorers = [
            ray.remote(ScalarScorer)
            .options(name=name, **self.reservation.options(scorer, engines + i))
            .remote(
                name=name,
                model_path=meta_rm,
                dtype=config.model.dtype,
                threads=scorer_threads,
                log_dir=str(logs),
                judge_path=model_path,
            )
            for i, name in enumerate(self.scorer_names)
        ]

    def start(self) -> dict[str, Any]:
        """Start all actors concurrently; returns their self-descriptions, by name."""
        named = [*zip(self.rollouts, self.rollout_names), *zip(self.scorers, self.scorer_names)]
        descriptions = self.bring_up([Pending(actor.ready.remote(), name, "ready") for actor, name in named])
        return {name: description for (_, name), description in zip(named, descriptions)}

    def close(self) -> None:
        for scorer in self.scorers:
            ray.kill(scorer)
        super().close()

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
        for number, samples in self.stream(admitted(), sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.min_tokens):
            share = shares[number]
            share.samples = samples
            if self.scorers:
                scorer = number % len(self.scorers)
                call = self.scorers[scorer].score.remote(share.prompts, samples)
                share.scoring = Pending(call, self.scorer_names[scorer], "score")
            behind = sum(one.scoring is not None for one in shares.values()) - AHEAD * len(self.scorers)
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
            if 4 * size >= self.max_num_seqs:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _answers(self, share: _Share, prompter: Prompter) -> list[JudgeResult]:
        meta_rewards = self.finish(share.scoring) if share.scoring else None
        samples = fetch(Pending(share.samples, "rollout", "sample"), self.timeout_s)
        return collect_results(share.questions, samples, meta_rewards, prompter.score_format)


def _is_scored(share: _Share) -> bool:
    return share.scoring is None or bool(ray.wait([share.scoring.ref], timeout=0)[0])
