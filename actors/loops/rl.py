"""The algorithm, top to bottom: evaluate, cold start, then GRPO steps, each of them sample -> judge -> train -> send weights.

The actors do the heavy work; this driver sequences it. Read `train` first.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from contextlib import closing, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console

from actors.cluster.calls import Actors
from actors.cluster.groups import Cluster
from actors.cluster.session import ray_session
from actors.cluster.waiting import Pending
from actors.loops.admission import admit
from actors.loops.progress import ProgressReporter, eta
from actors.loops.rl_step import TrainingBatch, add_counts, phase_seconds, set_aside_note, step_line, step_metrics
from rlsys.algorithms.mismatch import MismatchGuard
from rlsys.config.checks import require_consistent_settings
from rlsys.config.schema import Config
from rlsys.data.accounts import TOO_LONG
from rlsys.data.batches import (
    Feed,
    cold_start_examples,
    heldout_rows,
    prompt_completion_examples,
)
from rlsys.data.chain import LearnerBatch, SupervisedExample, prompt_batch
from rlsys.data.exclusion import read_exclusion
from rlsys.data.mixtures import data_report, open_mixture, without_files
from rlsys.documents.runs import RunSummary, Stage
from rlsys.evaluation import heldout
from rlsys.evaluation.advice import advise_at_end, advise_if_nothing_parsed, advise_on_equal_rewards
from rlsys.io.metrics import MetricsLog
from rlsys.io.run_folder import RunFolder, find_model, has_compatible_optimizer_state
from rlsys.prompts.rendering import Prompter
from rlsys.reporting.summary import summary_table
from rlsys.system.terminal import print_text, stderr
from rlsys.system.timing import PhaseTimer


def train(config: Config, console: Console | None = None, stages: tuple[str, ...] = ("sft", "rl")) -> RunSummary:
    """Run (or resume) the whole job.

    Raises:
        rlsys.config.schema.ConfigError, rlsys.data.readers.DataError: the config or the data are unusable.
        ActorFailed: an actor failed, died or timed out.
    """
    console = console or stderr()
    require_consistent_settings(config, "train" if "rl" in stages else "sft")
    with RunFolder(config) as folder:
        finished = folder.read(RunSummary)
        if finished is not None and finished.rl_steps >= (config.rl.steps if "rl" in stages else 0):
            console.print(summary_table(finished))
            print_text(console, f"{folder.path} holds this run, complete; choose another run.dir for a new one.")
            return finished
        with (
            ray_session(config.run),
            ProgressReporter(console, folder.path.name, folder.path) as progress,
            Job(config, folder, progress) as job,
        ):
            job.start()
            job.warn_if_nothing_parsed(job.evaluate("base"), taught="sft" in stages and config.sft.rows > 0)
            if "sft" in stages and config.sft.rows:
                job.cold_start()
                job.evaluate("cold_start")
            if "rl" in stages:
                job.reinforce()
                result = job.evaluate("rl")
                if folder.is_best(result.reward):
                    folder.set_best(job.step, result.reward)
            summary = job.summary()
        folder.write(summary)
        console.print(summary_table(summary))
        if "rl" in stages and (advice := advise_at_end(summary.heldout["rl"])):
            print_text(console, advice, "yellow")
        print_text(console, f"run folder: {folder.path}")
        return summary


class Job:
    """One run: its actors, data, and the weight version of its engines."""

    def __init__(self, config: Config, folder: RunFolder, progress: ProgressReporter):
        self.config, self.folder, self.progress = config, folder, progress
        self._actors: Actors | None = None
        self._log: MetricsLog | None = None
        self.step = self.version = 0
        self.guard = MismatchGuard.from_config(config)
        # Engines generate one batch at a time; an evaluation counts as one.
        self.engines = Lock()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        if self._log is not None:
            self._log.close()
        if self._actors is not None:
            self._actors.close()

    @property
    def cluster(self) -> Actors:
        """The actors, once started."""
        if self._actors is None:
            raise RuntimeError("the job has no actors yet: call start() first.")
        return self._actors

    @property
    def log(self) -> MetricsLog:
        """The run's metrics, once started."""
        if self._log is None:
            raise RuntimeError("the job has no metrics log yet: call start() first.")
        return self._log

    # --- start ------------------------------------------------------------------------------------------

    def prepare(self) -> str:
        """Open model and data; returns the folder of the base model."""
        config = self.config
        base = find_model(config.model.path)
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(base)
        prompter = Prompter.from_config(self.tokenizer, config.prompt)
        source = open_mixture(config.data, "train", config.seed)
        excluded = read_exclusion(config.data.exclude, source)
        self.feed = Feed(source, prompter, config.prompt.max_tokens, excluded.rows)
        self.heldout_source = open_mixture(config.data, "heldout", config.seed)
        self.heldout = heldout_rows(self.heldout_source, prompter, config.data.heldout_rows, config.prompt.max_tokens)
        self._write_data_report()
        for part in source.parts:
            self.progress.say(f"training rows: {part.name}, {len(part.rows):,} rows, checked when read; data_report.json accounts for them")
        for part in self.heldout_source.parts:
            self.progress.say(f"held-out rows: {part.name}, {part.account}")
        if config.data.exclude is not None:
            self.progress.say(str(excluded))
        return base

    def start(self) -> None:
        """Open model and data, start the actors, and restore the latest state of an unfinished run."""
        config = self.config
        with self.progress.phase("start", "preparing model and data"):
            base = self.prepare()
        resume = self.folder.latest_state()
        cold_started = self.folder.cold_start_state()
        model = str(self.folder.cold_start / "model") if cold_started is not None else base
        with self.progress.phase("start", "starting rollout engines and learners"):
            max_tokens = max(config.rollout.max_tokens, config.eval.max_tokens or 0)
            longest, score_format = config.prompt.max_tokens + max_tokens, self.feed.prompter.score_format
            cluster = self._actors = Cluster(config, model, longest, self.folder.logs, score_format)
            descriptions = cluster.start()
        placement = cluster.placement
        self.progress.say(
            f"{config.rollout.actors} rollout engine(s) with {placement.rollout_threads} thread(s), {config.learner.ranks} learner rank(s) "
            f"with {placement.learner_threads}, ZeRO-{config.learner.zero_stage}, weights by {cluster.backend}; "
            f"{'taking turns' if placement.colocated else 'side by side'}; ready after {self.progress.seconds['start']:.0f} s"
        )
        self.folder.write_json("actors.json", descriptions)
        if config.rollout.top_p < 1:
            self.progress.warn("rollout.top_p is below 1: the importance correction between engine and trainer is not exact")
        if resume is not None:
            path, state = resume
            # The reference is the policy at the start of RL: the model the learners were just built from.
            self.cluster.learners.snapshot_reference()
            self.cluster.learners.load(path)
            self.step, self.version = state["step"], state["version"] - 1
            self.feed.source.load_state_dict(state["sampler"])
            for name, seconds in state["seconds"].items():
                self.progress.seconds[name] = self.progress.seconds.get(name, 0.0) + seconds
            self._send_weights()
            self.progress.say(f"resumed after step {self.step} from {path}")
        elif cold_started is not None:
            # The optimizer's fp32 weights are more precise than the saved model's.
            self.cluster.learners.load(self.folder.cold_start)
            self.feed.source.load_state_dict(cold_started["sampler"])
            self._send_weights()
        elif has_compatible_optimizer_state(Path(base).parent, config.learner, config.model.dtype):
            self.cluster.learners.load(Path(base).parent)
            self.progress.say(f"continued from the fp32 weights next to {base}")
        self._log = MetricsLog(self.folder.path, self.step)

    def _write_data_report(self) -> None:
        """Account for every row read so far."""
        self.folder.write_json("data_report.json", data_report(self.feed.source, self.heldout_source))

    # --- evaluation ----------------------------------------------------------------------------------------------

    def evaluate(self, stage: str) -> Stage:
        """Score the held-out rows with the engines' current weights; a resumed run reuses the scores from before RL."""
        config, path = self.config, self.folder.heldout_path(stage)
        if not (stage in ("base", "cold_start") and path.exists()):
            with self.progress.phase("evaluate", f"scoring {len(self.heldout)} held-out rows ({stage})"):
                prompts = prompt_batch([item.seeded(config.eval.samples, "heldout", config.seed) for item in self.heldout])
                max_tokens = config.eval.max_tokens or config.rollout.max_tokens
                samples = self.cluster.sample(prompts, config.eval.temperature, config.rollout.top_p, max_tokens)
                self.cluster.judge(stage, self.step, prompts, samples)
                self.cluster.write_trajectories(stage, path)
        result = heldout.summarise(pq.read_table(path))
        self.progress.say(heldout.describe(stage, result))
        return result

    def warn_if_nothing_parsed(self, result: Stage, taught: bool) -> None:
        """Advise on a base model none of whose outputs parsed, unless a cold start follows."""
        if advice := advise_if_nothing_parsed(result, taught):
            self.progress.warn(advice)

    # --- cold start ----------------------------------------------------------------------------------------------

    def cold_start(self) -> None:
        """Fine-tune on the teacher's correct trajectories (docs/method.md, section 3)."""
        if self.folder.cold_start_state() is not None:
            return
        config = self.config.sft
        with self.progress.phase("cold start", "writing the teacher's trajectories"):
            examples, counts = self._cold_start_examples()
        batches = [examples[i : i + config.batch_rows] for _ in range(config.epochs) for i in range(0, len(examples), config.batch_rows)]
        self.cluster.sleep()
        self.cluster.learners.start_stage(config.lr, self.config.learner.warmup_steps)
        began = time.monotonic()
        curve = []
        for number, batch in enumerate(batches, start=1):
            with self.progress.phase("cold start", f"cold start: batch {number} of {len(batches)}"):
                metrics = self.cluster.learners.train_sft(LearnerBatch.supervised(batch))
            curve.append(metrics)
            pace = (time.monotonic() - began) / number
            if number % max(1, len(batches) // 10) == 0 or number == len(batches):
                self.progress.say(
                    f"cold start {number}/{len(batches)}: {metrics['nll']:.3f} nats/token, "
                    f"{metrics['encoded_tokens'] / pace:.0f} tokens/s, ETA {eta(number, len(batches), pace)}"
                )
        with self.progress.phase("checkpoint", "saving the cold start"):
            self.cluster.learners.save(self.folder.cold_start)
            self.folder.write_json("cold_start.json", {**counts, "sampler": self.feed.source.state_dict(), "batches": curve})
        self._send_weights()

    def _cold_start_examples(self) -> tuple[list[SupervisedExample], dict[str, Any]]:
        config = self.config.sft
        if config.data is not None:
            examples = prompt_completion_examples(config.data, config.rows, self.feed.prompter.chat)
            return examples, {"kept": len(examples), "dropped": 0, "teacher": str(config.data)}
        prompts = self.feed.take(config.rows, self.config.seed)
        examples, counts = cold_start_examples(prompts, self.feed.prompter)
        kept, dropped = counts["kept"], counts["dropped"]
        self.progress.say(f"cold start on {kept} trajectories of the programmatic teacher, {dropped} dropped as incorrect")
        return examples, {**counts, "teacher": "programmatic"}

    # --- RL ------------------------------------------------------------------------------------------------------

    def reinforce(self) -> None:
        """Run the GRPO steps (docs/method.md, section 4). With rl.staleness above 0, `admit` collects the next batches during training."""
        config, rl = self.config, self.config.rl
        if self.step == 0:
            self.cluster.learners.snapshot_reference()
            self.cluster.learners.start_stage(config.learner.lr, config.learner.warmup_steps)
        if config.learner.lr_decay == "linear":
            self.cluster.learners.decay_over(rl.steps * rl.updates_per_batch)
        pace: deque[float] = deque(maxlen=5)
        began, before = time.monotonic(), Counter(self.progress.seconds)
        with closing(admit(self._collect, self.step + 1, rl.steps, rl.staleness)) as batches:
            while self.step < rl.steps:
                with self.progress.phase("wait for samples", f"step {self.step + 1}: generating"):
                    batch = next(batches)
                lag = self._checked_lag(batch)
                with self.progress.phase("train", f"step {batch.step}: training"):
                    metrics, writing = self._train(batch)
                with self.progress.phase("send weights", f"step {batch.step}: sending weights"):
                    # Where nothing was trained, the engines are awake and have these weights already.
                    if batch.trainable:
                        self._send_weights()
                with self.progress.phase("write trajectories"):
                    self.cluster.finish(writing)
                self.step = batch.step
                # Everything since the last report, including the time of that report and its checkpoint.
                now, after = time.monotonic(), Counter(self.progress.seconds)
                pace.append(now - began)
                self._report(batch, metrics, phase_seconds(now - began, after - before), sum(pace) / len(pace))
                began, before = now, after
                warning = self.guard.check(batch.step, metrics.get("mismatch"), lag)
                if warning:
                    self.progress.warn(warning)
                self._checkpoint(batch)

    def _collect(self, step: int) -> TrainingBatch:
        """Sample and judge one batch; groups of equal reward are replaced by fresh prompts if rl.refill is set."""
        config, rl = self.config, self.config.rl
        key = f"step {step}"
        rounds: list[dict[str, Any]] = []
        clock = PhaseTimer()
        missing, first_group = rl.prompts_per_step, 0
        for _ in range(1 + (rl.refill_rounds if rl.refill else 0)):
            with clock.phase("draw"):
                items = self.feed.take(missing, config.seed)
                prompts = prompt_batch([item.seeded(rl.group_size, "train", config.seed, step) for item in items], first_group)
            with self.engines, clock.phase("generate"):
                samples = self.cluster.sample(prompts, config.rollout.temperature, config.rollout.top_p, config.rollout.max_tokens)
            with clock.phase("judge"):
                counts = self.cluster.judge(key, step, prompts, samples, want=missing, equal=rl.equal_groups == "train")
            rounds.append(counts)
            first_group += missing
            missing -= counts["groups_trained"]
            if missing == 0:
                break
        with clock.phase("judge"):
            learner = self.cluster.pop_learner_batch(key)
        self._write_data_report()
        return TrainingBatch(step, learner, add_counts(rounds), self.feed.source.state_dict(), dict(clock.seconds))

    def _checked_lag(self, batch: TrainingBatch) -> int:
        """Return how many weight versions the oldest sample is behind. `admit` bounds that; this verifies the bound."""
        lag = self.version - batch.counts["oldest_version"]
        if lag > self.config.rl.staleness:
            raise RuntimeError(f"step {batch.step}: a sample is {lag} weight versions old, rl.staleness allows {self.config.rl.staleness}.")
        return lag

    def _train(self, batch: TrainingBatch) -> tuple[dict[str, Any], Pending]:
        """Run one GRPO update on all ranks while the engines sleep. Without a group to train on (rl.equal_groups), nothing happens.

        Returns:
            the update's metrics, and the pending call that writes the step's trajectories.
        """
        key, path = f"step {batch.step}", self.folder.path / "trajectories" / f"step_{batch.step:06d}.parquet"
        if not batch.trainable:
            return {"skipped": 1, "skip_reason": "all groups of equal reward"}, self.cluster.begin_writing(key, path)
        self.cluster.sleep()
        total_samples = None if self.config.rl.equal_groups == "drop" else batch.counts["samples"]
        result = self.cluster.learners.train_grpo(batch.learner, self.config.rollout.temperature, total_samples)
        return result["metrics"], self.cluster.begin_writing(key, path, result["samples"])

    def _send_weights(self) -> None:
        """Send the learners' weights to every engine under a new version number, which also wakes sleeping engines.

        A batch in generation is finished first; with rollout.in_flight_updates its requests continue under the new weights.
        """
        self.version += 1
        with nullcontext() if self.config.rollout.in_flight_updates else self.engines:
            self.cluster.send_weights(self.version)

    def _report(self, batch: TrainingBatch, update: dict[str, Any], seconds: dict[str, float], pace: float) -> None:
        """Report a step to the log, the dashboard and the screen. `pace`: seconds per step, for the ETA."""
        source, steps = self.feed.source, self.config.rl.steps
        metrics = step_metrics(batch, update, seconds) | {
            "weight_version": self.version,
            "prompts_too_long": source.account.aside[TOO_LONG],
            **source.metrics(batch.counts["sources"]),
        }
        self.log.write(batch.step, metrics)
        self.progress.gauges(metrics)
        line = step_line(batch, update, metrics, steps, eta(batch.step, steps, pace))
        self.progress.say(line + set_aside_note(batch, metrics["prompts_too_long"], self.config.rollout.max_tokens))
        counts = batch.counts
        if batch.step == 1 and counts["groups_unequal"] == 0:
            failed = sum(counts["parse_failures"].values())
            self.progress.warn(advise_on_equal_rewards(metrics["reward"], failed, counts["samples"], counts["truncated"]))

    def _checkpoint(self, batch: TrainingBatch) -> None:
        """Save every checkpoint.every steps, at the end, and after a held-out evaluation that is the best so far."""
        config, step = self.config, batch.step
        last = step == config.rl.steps
        best = False
        if config.rl.eval_every and step % config.rl.eval_every == 0 and not last:
            with self.engines:
                result = self.evaluate(f"step_{step:06d}")
            best = self.folder.is_best(result.reward)
        if not (last or best or (config.checkpoint.every and step % config.checkpoint.every == 0)):
            return
        with self.progress.phase("checkpoint", f"step {step}: saving"):
            self.cluster.learners.save(self.folder.begin_checkpoint(step))
            state = {"step": step, "version": self.version, "sampler": batch.sampler_state, "seconds": self.progress.seconds}
            if best:
                self.folder.set_best(step, result.reward)
            self.folder.commit_checkpoint(step, state, config.checkpoint.keep)

    # --- summary -------------------------------------------------------------------------------------------------

    def summary(self) -> RunSummary:
        """Summarise the run so far."""
        tables = {
            stage: pq.read_table(self.folder.heldout_path(stage))
            for stage in ("base", "cold_start", "rl")
            if self.folder.heldout_path(stage).exists()
        }
        pairs = [
            (after, before)
            for after, before in (("rl", "base"), ("rl", "cold_start"), ("cold_start", "base"))
            if {after, before} <= tables.keys()
        ]
        return RunSummary(
            heldout={stage: heldout.summarise(table) for stage, table in tables.items()},
            baselines=heldout.baselines([item.record for item in self.heldout]),
            paired={f"{after}_minus_{before}": heldout.paired(tables[after], tables[before]) for after, before in pairs},
            seconds={name: round(seconds, 2) for name, seconds in self.progress.seconds.items()},
            rl_steps=self.step,
            teacher=(self.folder.cold_start_state() or {}).get("teacher"),
            rows=without_files(data_report(self.feed.source, self.heldout_source)),
            model=self.config.model.path,
            run_dir=str(self.folder.path),
        )
