"""Rejective fine-tuning: in each round, sample with and without a hint, reject, and tune on the kept samples. Start at the top."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from transformers import AutoTokenizer

from actors.cluster.calls import LearnerGroup
from actors.cluster.groups import LearnerCluster
from actors.cluster.session import ray_session
from actors.loops.judge import EngineJudge, Judge, endpoint_teacher, running_judge, write_rows
from actors.loops.progress import ProgressReporter
from actors.loops.recovery import with_restarts
from actors.loops.stage import StageLoop
from rlsys.algorithms.rejection import judged_rows, write_sampled
from rlsys.config import schema as settings
from rlsys.config.checks import require_consistent_settings
from rlsys.config.schema import Config, ConfigError
from rlsys.data.accounts import TOO_LONG
from rlsys.data.batches import completion, heldout_rows
from rlsys.data.chain import LearnerBatch, LearnerRow, prompt_batch
from rlsys.data.instructions import instruction_examples
from rlsys.data.mixtures import data_report, open_mixture, without_files
from rlsys.data.readers import strict_rows
from rlsys.documents.runs import RftRound, RunSummary, TeacherUse
from rlsys.evaluation import heldout
from rlsys.io.metrics import MetricsLog
from rlsys.io.resumable import ResumableRows
from rlsys.io.run_folder import RunFolder, find_model, has_compatible_optimizer_state, write_parquet
from rlsys.judging.requests import JudgeRequest, RenderedRequest, judge_request, render_requests
from rlsys.prompts.rendering import Prompter
from rlsys.reporting.model_card import write_model_card
from rlsys.reporting.summary import summary_table
from rlsys.rewards.batch import judge_batch
from rlsys.system.terminal import print_text, stderr


def rejective_fine_tuning(config: Config, console: Console | None = None) -> RunSummary:
    """Run (or resume) all rounds.

    Raises:
        rlsys.config.schema.ConfigError, rlsys.data.readers.DataError: the config or the data are unusable.
        ActorFailed: an actor failed, died or timed out.
    """
    console = console or stderr()
    require_consistent_settings(config, "rft")
    with RunFolder(config) as folder:
        summary = folder.read(RunSummary)
        if summary is None:
            with ray_session(config.run), ProgressReporter(console, folder.path.name, folder.path, config.recovery.grace_s) as progress:
                summary = with_restarts(lambda _: run_rounds(folder, progress), config.recovery, progress)
            folder.write(summary)
        console.print(summary_table(summary))
        print_text(console, f"run folder: {folder.path}, the model is in model/, the samples in trajectories/")
        return summary


def run_rounds(folder: RunFolder, progress: ProgressReporter) -> RunSummary:
    """Resume what the folder holds, and run what is left of the rounds."""
    job = RftJob(folder.config, folder, progress)
    for number in range(1, folder.config.rft.rounds + 1):
        job.round(number)
    job.finish()
    return job.summary()


class RftJob:
    """One run's rounds. A round writes samples.jsonl, model/ and optimizer/ to RUN/round_N, and its table to RUN/trajectories."""

    def __init__(self, config: Config, folder: RunFolder, progress: ProgressReporter):
        self.config, self.folder, self.progress = config, folder, progress
        base = find_model(config.model.path)
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.prompter = Prompter.from_config(self.tokenizer, config.prompt)
        self.model = base
        self.source = open_mixture(config.data, "train", config.seed)
        self.heldout_source = open_mixture(config.data, "heldout", config.seed)
        self.heldout = heldout_rows(self.heldout_source, self.prompter, config.data.heldout_rows, config.prompt.max_tokens)
        for part in self.heldout_source.parts:
            progress.say(f"held-out rows: {part.name}, {part.account}")

    def round(self, number: int) -> None:
        """Sample with the previous round's model, reject, tune, save."""
        place = self.folder.path / f"round_{number}"
        if not (place / "model").is_dir():
            table = self._table(number)
            if not table.exists():
                self._sample(number, place)
                with self.progress.phase("reject"):
                    self._reject(number, place, table)
            self._tune(number, table, place)
        self.model = str(place / "model")

    # --- sampling ------------------------------------------------------------------------------------------------

    def _table(self, number: int) -> Path:
        return self.folder.path / "trajectories" / f"rft_round_{number}.parquet"

    def _asks(self, number: int) -> Iterator[JudgeRequest]:
        """Yield a round's requests, the same at every restart: each row without a hint, then with one."""
        rft, seed = self.config.rft, self.config.seed
        self.source = self.source.fresh()
        taken = 0
        while taken < number * rft.rows:
            for record in self.source.take(min(256, number * rft.rows - taken)):
                taken += 1
                if taken <= (number - 1) * rft.rows:
                    continue
                if rft.non_hinted:
                    yield judge_request(record, rft.samples, "rft", seed, number)
                if rft.hinted:
                    yield judge_request(record, 1, "rft hinted", seed, number, hinted=True)

    def _judge_config(self) -> Config:
        return self.config.model_copy(update={"model": self.config.model.model_copy(update={"path": self.model})})

    def _sample(self, number: int, place: Path) -> None:
        rft = self.config.rft
        evaluated = number > 1 or self.folder.heldout_path("base").exists()
        with ResumableRows(place / "samples.jsonl", {"round": number, "rows": rft.rows}) as file:
            taught = rft.teacher.url is not None
            if not evaluated or not (file.complete or taught):
                with running_judge(self._judge_config(), self.progress.console, logs=self.folder.logs) as judge:
                    if not evaluated:
                        self._evaluate(judge, "base")
                    if not (file.complete or taught):
                        self._write_samples(number, file, judge)
            if not file.complete:
                with endpoint_teacher(self.config, self.prompter, self.progress.console) as teacher:
                    self._write_samples(number, file, teacher)
                self.progress.say(f"round {number}: {self._teacher_use(number)}")

    def _write_samples(self, number: int, file: ResumableRows, judge: Judge) -> None:
        rft, title = self.config.rft, f"round {number}: sampling"
        with self.progress.phase("sample", f"{title} {rft.rows} rows"):
            total = rft.rows * (rft.non_hinted + rft.hinted)
            write_rows(file, total, self._asks(number), judge.rows(rft.temperature), self.progress.console, title)

    def _teacher_use(self, number: int) -> TeacherUse | None:
        """Count the tokens that the teacher of a round used; None without a teacher."""
        teacher = self.config.rft.teacher
        if teacher.model is None or teacher.url is None:
            return None
        rows = [row for _, row in strict_rows(self.folder.path / f"round_{number}" / "samples.jsonl", lines=True)]
        prompt_tokens, tokens = (sum(row[name] for row in rows) for name in ("prompt_tokens", "tokens"))
        return TeacherUse(model=teacher.model, prompt_tokens=prompt_tokens, tokens=tokens, cost=teacher.cost(prompt_tokens, tokens))

    def _evaluate(self, judge: EngineJudge, stage: str) -> None:
        """Score the held-out rows greedily, with the response orders of `rlsys train`."""
        prompts = prompt_batch([item.seeded(1, "heldout", self.config.seed) for item in self.heldout])
        with self.progress.phase("evaluate", f"scoring {len(self.heldout)} held-out rows ({stage})"):
            judged = judge_batch(prompts, judge.sample(prompts, 0.0), self.prompter.score_format)
            write_parquet(judged.table, self.folder.heldout_path(stage))
        self.progress.say(heldout.describe(stage, heldout.summarise(pq.read_table(self.folder.heldout_path(stage)))))

    # --- rejection -----------------------------------------------------------------------------------------------

    def _reject(self, number: int, place: Path, table: Path) -> None:
        """Write the table of all samples, each with the reason why it was kept or rejected."""
        asked = render_requests(self._asks(number), self.prompter, self.config.prompt.max_tokens)
        per_row = self.config.rft.non_hinted + self.config.rft.hinted
        unasked: Counter[int] = Counter()
        sources: dict[int, str] = {}

        def noted() -> Iterator[RenderedRequest]:
            for place, question in enumerate(asked):
                if question.skipped:
                    unasked[place // per_row] += 1
                    sources[place // per_row] = question.request.record.source
                yield question

        with ResumableRows(place / "samples.jsonl", {"round": number, "rows": self.config.rft.rows}) as file:
            score_format = self.prompter.score_format
            counts = write_sampled(table, judged_rows(noted(), file.rows(), number, per_row, score_format), score_format)
        self._account(number, [sources[row] for row, times in unasked.items() if times == per_row])
        reasons = ", ".join(f"{why} {count:,}" for why, count in sorted(counts.items(), key=lambda item: -item[1]))
        self.progress.say(f"round {number}: {sum(counts.values()):,} samples: {reasons}")

    def _account(self, number: int, too_long: list[str]) -> None:
        """Account for all rows read so far, after a complete pass over the requests of this round.

        Args:
            too_long: the source of each row of this round that was too long for every request.
        """
        before = (self.folder.read_json("data_report.json") or {}).get("too_long", {}) if number > 1 else {}
        for name, count in Counter(self.source.part_of(source).name for source in too_long).items():
            before[name] = before.get(name, 0) + count
        for part in self.source.parts:
            part.account.used -= before.get(part.name, 0)
            part.account.aside[TOO_LONG] += before.get(part.name, 0)
            self.progress.say(f"rows so far: {part.name}, {part.account}")
        self.folder.write_json("data_report.json", data_report(self.source, self.heldout_source) | {"too_long": before})

    # --- tuning --------------------------------------------------------------------------------------------------

    def _tune(self, number: int, table: Path, place: Path) -> None:
        config, rft = self.config, self.config.rft
        rows = self._learner_rows(number, table)
        batches = _batches(rows.num_rows, rft.batch_rows, rft.epochs, config.seed, number)
        longest = config.prompt.max_tokens + config.rollout.max_tokens
        with closing(LearnerCluster(config, self.model, self.folder.logs, rl=settings.Rl(beta=0.0), longest=longest)) as cluster:
            learners = cluster.learners
            earlier = sum(row["round"] < number for row in MetricsLog.read(self.folder.path))
            loop = StageLoop(f"round {number}, batch", self.folder, self.progress, learners, config.checkpoint, earlier)
            with self.progress.phase("tune", "starting learners"):
                cluster.start()
                if loop.resume() is None:
                    self._start(learners)

            def step(batch: int) -> None:
                with self.progress.phase("tune", f"round {number}: batch {batch} of {len(batches)}"):
                    metrics = learners.train_sft(rows.take(np.sort(batches[batch - 1])))
                loop.log({"round": number, **metrics})
                loop.say(f"{metrics['nll']:.3f} nats/token")
                loop.save_if_due()

            loop.run(len(batches), step)
            with self.progress.phase("checkpoint", "saving the model"):
                learners.save(place, self.folder.model_files)

    def _start(self, learners: LearnerGroup) -> None:
        """Begin a round, with the fp32 weights of the model's own training if they are there."""
        if has_compatible_optimizer_state(Path(self.model).parent, self.config, len(learners.actors)):
            learners.load(Path(self.model).parent)
        learners.start_stage(self.config.rft.lr, self.config.learner.warmup_steps)

    def _learner_rows(self, number: int, table: Path) -> LearnerBatch:
        """Return the kept samples, without hints, and the instruction data, ordered by group; a group is a prompt."""
        rft = self.config.rft
        kept = pq.read_table(table, columns=["group", "order", "text", "kept", "hinted"], filters=pc.field("kept"))
        if not kept.num_rows:
            raise ConfigError(
                f"round {number}: no sample was correct where others of its row were wrong, so there is nothing to train on; "
                f"{table} has the reason for each. Sample more rows (rft.rows), or start from a model that follows the output format."
            )
        # By index, not by id: ids may repeat in a file that is read in random order.
        per_row = rft.non_hinted + rft.hinted
        records = [one.record for one in islice(self._asks(number), 0, None, per_row)]
        groups: dict[tuple[int, tuple[int, ...]], int] = {}
        samples: Counter[int] = Counter()
        prompts: list[np.ndarray] = []
        rows: list[LearnerRow] = []

        def add(group: int, token_ids: list[int]) -> None:
            # Arrays of int32: lists of Python integers would take many times the memory.
            rows.append(LearnerRow(group, samples[group], np.array(token_ids, np.int32)))
            samples[group] += 1

        for each in kept.to_pylist():
            key = each["group"], tuple(each["order"])
            if key not in groups:
                groups[key] = len(prompts)
                prompts.append(np.array(self.prompter.tokens(records[each["group"]], each["order"]), np.int32))
            add(groups[key], completion(self.prompter.chat, each["text"]))
        if rft.instruction_data is not None:
            count = round(kept.num_rows * rft.instruction_share / (1 - rft.instruction_share))
            longest = self.config.prompt.max_tokens + self.config.rollout.max_tokens
            chat = self.prompter.chat
            extra, aside = instruction_examples(rft.instruction_data, count, chat, self.config.data, self.config.seed, longest)
            for example in extra:
                prompts.append(np.array(example.prompt_token_ids, np.int32))
                add(len(prompts) - 1, example.token_ids)
            dropped = ", ".join(f"{found:,} {name.replace('_', ' ')}" for name, found in aside.items() if found)
            dropped = f", set aside {dropped}" if dropped else ""
            self.progress.say(f"round {number}: {kept.num_rows:,} trajectories, {len(extra):,} rows of instruction data{dropped}")
        return LearnerBatch.of(prompts, sorted(rows, key=lambda row: row.group))

    # --- summary -------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Evaluate the last model and move it to its final place."""
        if not self.folder.heldout_path("rft").exists():
            with running_judge(self._judge_config(), self.progress.console, logs=self.folder.logs) as judge:
                self._evaluate(judge, "rft")
        for name in ("model", "optimizer"):
            source = Path(self.model).parent / name
            if source.is_dir() and not (self.folder.path / name).exists():
                os.replace(source, self.folder.path / name)
        write_model_card(self.folder.path, self.folder.path / "model")

    def summary(self) -> RunSummary:
        """Summarise the run."""
        tables = {stage: pq.read_table(self.folder.heldout_path(stage)) for stage in ("base", "rft")}
        rounds = []
        for number in range(1, self.config.rft.rounds + 1):
            sampled = pq.read_table(self._table(number), columns=["why", "hinted", "kept"])
            by_kind = {}
            for kind, flag in (("non_hinted", False), ("hinted", True)):
                whys = sampled.filter(pc.equal(sampled["hinted"], flag))["why"].to_pylist()
                by_kind[kind] = dict(Counter(whys))
            rounds.append(
                RftRound(samples=sampled.num_rows, kept=pc.sum(sampled["kept"]).as_py(), **by_kind, teacher=self._teacher_use(number))
            )
        return RunSummary(
            heldout={stage: heldout.summarise(table) for stage, table in tables.items()},
            baselines=heldout.baselines([item.record for item in self.heldout]),
            paired={"rft_minus_base": heldout.paired(tables["rft"], tables["base"])},
            rounds=rounds,
            seconds={name: round(seconds, 2) for name, seconds in self.progress.seconds.items()},
            rows=without_files(self.folder.read_json("data_report.json") or {}),
            model=self.config.model.path,
            run_dir=str(self.folder.path),
        )


def _batches(rows: int, size: int, epochs: int, *seed: int) -> list[np.ndarray]:
    """Return the row indices of every optimizer step; each epoch is a new permutation."""
    rng = np.random.default_rng(seed)
    order = [rng.permutation(rows) for _ in range(epochs)]
    return [one[start : start + size] for one in order for start in range(0, rows, size)]
