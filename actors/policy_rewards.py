"""Rewards of `rlsys policy`: the judge's engines and the Bradley-Terry scorer beside the policy's actors.

A batch's path: `begin` starts a thread; each part of the samples that the policy's engines complete goes to the judge at once; `judge`
waits for the rest, adds checks, Bradley-Terry scores and further rewards, and gives the rewards to the reward actor.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pyarrow as pa
import ray
from transformers import AutoTokenizer

from actors.cluster.machines import require_same_files
from actors.cluster.replacement import Recoveries
from actors.cluster.reservation import Reservation, cluster_machines
from actors.cluster.reward_client import RewardCall, RewardClient
from actors.cluster.waiting import ActorFailed, Pending, fetch, wait_for
from actors.judges import Judges, Sampling
from rlsys.config.schema import Config, ConfigError, Run
from rlsys.data.chain import PromptItem, Sample
from rlsys.data.records import Record
from rlsys.io.files import write_text_atomically
from rlsys.io.run_folder import find_model
from rlsys.judging.requests import JudgeRequest, JudgeResult
from rlsys.judging.voting import Strategy, find_strategy
from rlsys.policy.batch import MeasuredGroup, Rewarder, judgement_rows
from rlsys.policy.groups import SampledGroup
from rlsys.policy.judge import pool_config
from rlsys.prompts.rendering import Prompter
from rlsys.system.beside import BT, judge_actors, place_beside
from rlsys.system.placement import Placement


@dataclass
class PolicyJudge:
    """The running judge."""

    judges: Judges
    prompter: Prompter
    strategy: Strategy
    config: Config
    """Of its engines; `config.judge` are the settings of the run."""

    def answer(self, requests: Iterator[JudgeRequest]) -> Iterator[JudgeResult]:
        """Yield the results of `requests`, in order."""
        sampling = Sampling(self.config.judge.temperature, self.config.rollout.top_p, self.config.rollout.max_tokens)
        return self.judges.answer(requests, self.prompter, sampling, self.config.prompt.max_tokens)


class Judging:
    """The groups of a batch on their way through the judge, in a thread, while the policy still samples.

    Args:
        records: by group.
        step: a fresh one gives the groups fresh orders and seeds.
    """

    def __init__(self, judge: PolicyJudge, threads: ThreadPoolExecutor, records: dict[int, Record], seed: int, step: int):
        self.judge, self.threads, self.records, self.key = judge, threads, records, ("policy", seed, step)
        self._parts: SimpleQueue[ray.ObjectRef | None] = SimpleQueue()
        self.sampled: dict[int, SampledGroup] = {}
        self.results: dict[int, list[JudgeResult]] = defaultdict(list)
        self._running: Future[None] | None = None

    def add(self, part: ray.ObjectRef) -> None:
        """Judge the groups of a part (SAMPLES)."""
        self._parts.put(part)
        # Not earlier: the policy's engines may be busy with an evaluation for long, and the thread's waits are bounded.
        if self._running is None:
            self._running = self.threads.submit(self._run)

    def end(self) -> None:
        """Let the thread end once all parts that were added are judged."""
        self._parts.put(None)

    def finish(self) -> None:
        """Wait until all parts that were added are judged; then `sampled` and `results` are complete.

        Raises:
            ActorFailed: an engine of the judge failed, died or timed out.
        """
        self.end()
        if self._running is not None:
            self._running.result()

    def _run(self) -> None:
        asked: deque[int] = deque()
        for result in self.judge.answer(self._requests(asked)):
            self.results[asked.popleft()].append(result)

    def _requests(self, asked: deque[int]) -> Iterator[JudgeRequest]:
        run = self.judge.config.run
        while True:
            try:
                # A policy's engine that fails meanwhile is replaced, which takes a start more.
                part = self._parts.get(timeout=(limit_s := run.timeout_s("start") + run.timeout_s("sample")))
            except Empty:
                raise ActorFailed(f"judge: no samples of the policy within {limit_s:.0f} s.", recoverable=True) from None
            if part is None:
                return
            for group, samples in by_group([fetch(Pending(part, "rollout", "sample"), run.timeout_s("sample"))]).items():
                settings = self.judge.config.judge
                sampled = SampledGroup.of(self.records[group], [sample.text for sample in samples], settings, *self.key)
                self.sampled[group] = sampled
                for request in sampled.requests(settings.k, *self.key):
                    asked.append(group)
                    yield request


@dataclass
class _Batch:
    """A batch that was announced."""

    records: dict[int, Record]
    judging: Judging | None
    heldout: bool


class PolicyRewards(RewardClient):
    """Rewards samples by a judge, checks or a Bradley-Terry model; measures all that are there, and trains on one (`policy.reward`)."""

    def __init__(self, client: RewardClient, config: Config, judge: PolicyJudge | None, bt: Any = None):
        super().__init__(client.actor, config.run)
        self.pulse, self.replacements = client.pulse, client.replacements
        if (create := client.create) is not None:

            def install() -> Any:
                client.actor = create()  # by which the job ends it
                return client.actor

            self.create = install
        self.seed, self.policy_judge, self.bt = config.seed, judge, bt
        self.rewarder = Rewarder(config.policy, config.judge, judge.strategy if judge else None)
        self._batches: dict[str, _Batch] = {}
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="judging")
        self._judgements: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def close(self) -> None:
        """Let the thread of an unfinished batch end."""
        for batch in self._batches.values():
            if batch.judging:
                batch.judging.end()
        self._threads.shutdown(wait=False)

    def describe(self) -> str:
        """Name what is trained on and what else is measured."""
        policy, judge = self.rewarder.policy, self.rewarder.judge
        present = {"gold": "checks"}
        if self.policy_judge:
            present["judge"] = f"judge {judge.model} with k={judge.k}, {judge.strategy}, {judge.reward}"
        if self.bt:
            present["bt"] = f"Bradley-Terry model {policy.bt}"
        measured = [text for name, text in present.items() if name != policy.reward]
        return f"{present[policy.reward]}" + (f"; measured only: {', '.join(measured)}" if measured else "")

    def begin(
        self, key: str, step: int, items: Sequence[PromptItem], prompts: pa.RecordBatch, heldout: bool = False
    ) -> Callable[[ray.ObjectRef], None] | None:
        records = dict(zip(prompts["group"].to_pylist(), (item.record for item in items), strict=True))
        judging = None if heldout or self.policy_judge is None else Judging(self.policy_judge, self._threads, records, self.seed, step)
        self._batches[key] = _Batch(records, judging, heldout)
        return None if judging is None else judging.add

    def judge(self, key: str, step: int, prompts: pa.RecordBatch, samples: Sequence[ray.ObjectRef], **options: Any) -> dict[str, Any]:
        batch = self._batches.pop(key)
        groups = self._measured(batch, prompts, samples)
        given, figures = self.rewarder.evaluate(groups) if batch.heldout else self.rewarder.train(groups)
        self._judgements[key] += judgement_rows(groups)
        return super().judge(key, step, prompts, samples, given=given, **options) | figures

    def begin_writing(self, key: str, path: Path, trained: pa.Table | None = None) -> RewardCall:
        """Write the judgements, too, to judgements/ beside the folder of `path`."""
        if rows := self._judgements.pop(key, []):
            file = path.parent.parent / "judgements" / f"{path.stem}.jsonl"
            file.parent.mkdir(exist_ok=True)
            write_text_atomically(file, "".join(json.dumps(row) + "\n" for row in rows))
        return super().begin_writing(key, path, trained)

    def _measured(self, batch: _Batch, prompts: pa.RecordBatch, parts: Sequence[ray.ObjectRef]) -> list[MeasuredGroup]:
        """Wait for the judge, and return the groups of a batch."""
        scoring = [Pending(self.bt.score.remote(prompts, part), BT, "score") for part in parts] if self.bt else []
        if batch.judging:
            batch.judging.finish()
        scores = [wait_for("sample", [call], self.run)[0] for call in scoring]
        tables = [fetch(Pending(part, "rollout", "sample"), self.run.timeout_s("sample")) for part in parts]
        bt: dict[int, list[float]] = defaultdict(list)
        for table, own in zip(tables, scores):
            for group, score in zip(table["group"].to_pylist(), own, strict=True):
                bt[group].append(score)
        judging = batch.judging
        return [
            MeasuredGroup(
                batch.records[group],
                samples,
                bt.get(group),
                judging.sampled[group] if judging else None,
                judging.results[group] if judging else [],
            )
            for group, samples in by_group(tables).items()
        ]


def by_group(tables: Sequence[pa.RecordBatch]) -> dict[int, list[Sample]]:
    """Return the samples of each group of SAMPLES, in order."""
    groups: dict[int, list[Sample]] = defaultdict(list)
    for table in tables:
        for row in table.to_pylist():
            groups[row["group"]].append(Sample(**row))
    return groups


@contextmanager
def policy_rewards(
    config: Config, client: RewardClient, placement: Placement, policy_model: str, logs: Path, recoveries: Recoveries | None = None
) -> Iterator[PolicyRewards]:
    """Start the judge and the Bradley-Terry scorer that the config names; they end with the block.

    Args:
        client: of the reward actor, which it starts and ends.
        recoveries: as of `Judges`.
        placement: of the policy's engines and learners.
        policy_model: folder or hub name of the policy, whose tokens the Bradley-Terry model scores.
    """
    with ExitStack() as running:
        taken = [placement]
        judge = None
        if config.judge.model is not None:
            judge = running.enter_context(running_pool(config, taken, logs, recoveries))
        bt = running.enter_context(running_scorer(config, taken, policy_model, logs)) if config.policy.bt is not None else None
        yield running.enter_context(closing(PolicyRewards(client, config, judge, bt)))


@contextmanager
def running_pool(config: Config, taken: list[Placement], logs: Path, recoveries: Recoveries | None = None) -> Iterator[PolicyJudge]:
    """Start the judge's engines, and its meta reward model if there is one; adds their placement to `taken`."""
    settings = config.judge
    pool = pool_config(config)
    model = find_model(pool.model.path)
    meta_rm = None if settings.meta_rm is None else find_model(settings.meta_rm)
    prompter = Prompter.from_config(AutoTokenizer.from_pretrained(model), pool.prompt)
    placed = place_beside(judge_actors(config), cluster_machines(), taken)
    taken.append(placed)
    with closing(Judges(pool, model, logs, meta_rm, placed, "judge", recoveries)) as judges:
        judges.start()
        yield PolicyJudge(judges, prompter, find_strategy(settings.strategy), pool)


@contextmanager
def running_scorer(config: Config, taken: list[Placement], policy_model: str, logs: Path) -> Iterator[Any]:
    """Start the Bradley-Terry scorer; adds its placement to `taken`.

    Raises:
        ConfigError: the model was trained for something else.
    """
    from actors.scalar_scorer import ScalarScorer

    assert config.policy.bt is not None
    run: Run = config.run
    model = find_model(config.policy.bt)
    require_same_files(model, None, run.timeout_s("start"))
    placed = place_beside({BT: None}, cluster_machines(), taken)
    taken.append(placed)
    reservation = Reservation(placed, run.timeout_s("start"))
    arguments = {"model_path": model, "dtype": config.model.dtype, "log_dir": str(logs), "judge_path": policy_model}
    scorer = reservation.create(ScalarScorer, BT, name=BT, **arguments)
    try:
        found = wait_for("start", [Pending(scorer.ready.remote(), BT, "ready")], run)[0]
        if found["objective"] not in (None, "bt"):
            raise ConfigError(f"policy.bt={config.policy.bt}: trained with meta_rm.objective={found['objective']}, expected bt.")
        yield scorer
    finally:
        ray.kill(scorer)
        reservation.release()
