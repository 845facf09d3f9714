"""The algorithm, top to bottom: evaluate, cold start, then GRPO steps, each of them sample -> judge -> train -> send weights.

The actors do the heavy work; this driver sequences it. Read `train` first. A judge is trained by the rules of the method (`rlsys train`),
any other policy by a judge (`rlsys policy`): the two differ in their prompts and in `Actors.reward` alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console

from actors.cluster.calls import Actors
from actors.cluster.groups import Cluster
from actors.cluster.reward_client import RewardCall
from actors.cluster.session import ray_session
from actors.loops.admission import admit
from actors.loops.progress import ProgressReporter
from actors.loops.recovery import Recoveries, with_restarts
from actors.loops.rl_data import RunData, open_data
from actors.loops.rl_step import TrainingBatch, add_counts, set_aside_note, step_line, step_metrics
from actors.loops.stage import StageLoop
from actors.policy_rewards import policy_rewards
from rlsys.algorithms.mismatch import MismatchGuard
from rlsys.algorithms.watchdog import StepWatchdog
from rlsys.config.checks import require_consistent_settings
from rlsys.config.schema import Config
from rlsys.data.accounts import TOO_LONG
from rlsys.data.batches import cold_start_examples, prompt_completion_examples
from rlsys.data.chain import LearnerBatch, SupervisedExample, prompt_batch
from rlsys.data.mixtures import without_files
from rlsys.documents.runs import RunBaselines, RunSummary, Stage
from rlsys.evaluation import heldout
from rlsys.evaluation.advice import EQUAL_POLICY_REWARDS, advise_at_end, advise_if_nothing_parsed, advise_on_equal_rewards
from rlsys.io.run_folder import RunFolder, has_compatible_optimizer_state
from rlsys.reporting.model_card import write_model_card
from rlsys.reporting.summary import summary_table
from rlsys.system.terminal import print_text, stderr
from rlsys.system.timing import PhaseTimer


def train(config: Config, console: Console | None = None, stages: tuple[str, ...] = ("sft", "rl"), policy: bool = False) -> RunSummary:
    """Run (or resume) the whole job.

    Args:
        policy: train a policy by a judge, instead of a judge by the rules.

    Raises:
        rlsys.config.schema.ConfigError, rlsys.data.readers.DataError: the config or the data are unusable.
        ActorFailed: an actor failed, died or timed out.
    """
    console = console or stderr()
    require_consistent_settings(config, "policy" if policy else "train" if "rl" in stages else "sft")
    with RunFolder(config, judge=not policy) as folder:
        config = folder.config
        finished = folder.read(RunSummary)
        if finished is not None and finished.rl_steps >= (config.rl.steps if "rl" in stages else 0):
            console.print(summary_table(finished))
            print_text(console, f"{folder.path} holds this run, complete; choose another run.dir for a new one.")
            return finished
        with ray_session(config.run), ProgressReporter(console, folder.path.name, folder.path, config.recovery.grace_s) as progress:
            if folder.restored:
                progress.say(f"{folder.restored} files of this run came from {config.run.copy_to}")
            summary = with_restarts(
                lambda recoveries: run_stages(config, folder, progress, recoveries, stages, policy), config.recovery, progress
            )
        folder.write(summary)
        console.print(summary_table(summary))
        if "rl" in stages and not policy and (advice := advise_at_end(summary.heldout["rl"])):
            print_text(console, advice, "yellow")
        print_text(console, f"run folder: {folder.path}")
        return summary


def run_stages(
    config: Config, folder: RunFolder, progress: ProgressReporter, recoveries: Recoveries, stages: tuple[str, ...], policy: bool = False
) -> RunSummary:
    """Start the actors, resume what the folder holds, and run what is left of the stages."""
    folder.require_intact_cold_start()
    data = open_data(config, folder, progress, policy)
    with running_actors(config, folder, progress, recoveries, data) as actors:
        job = Job(config, folder, progress, data, actors)
        job.resume()
        taught = "sft" in stages and config.sft.rows > 0
        base = job.evaluate("base")
        if base and (advice := advise_if_nothing_parsed(base, taught)):
            progress.warn(advice)
        if taught:
            job.cold_start()
            job.evaluate("cold_start")
            write_model_card(folder.path, folder.cold_start / "model")
        if "rl" in stages:
            job.reinforce()
            result = job.evaluate("rl")
            if result and folder.is_best(result.reward):
                folder.set_best(job.loop.step, result.reward)
            write_model_card(folder.path, folder.checkpoint_path(job.loop.step) / "model")
        return job.summary()


@contextmanager
def running_actors(
    config: Config, folder: RunFolder, progress: ProgressReporter, recoveries: Recoveries, data: RunData
) -> Iterator[Actors]:
    """Start the actors with the base model, or with that of the cold start once there is one; end them with the block."""
    model = str(folder.cold_start / "model") if folder.cold_start_state() is not None else data.base
    longest = config.prompt.max_tokens + max(config.rollout.max_tokens, config.eval.max_tokens or 0)
    with progress.phase("start", "starting rollout engines and learners"):
        cluster = Cluster(config, model, longest, folder.logs, data.feed.prompter.score_format, recoveries)
    with closing(cluster):
        with progress.phase("start", "starting rollout engines and learners"):
            folder.write_json("actors.json", cluster.start())
        placement = cluster.placement
        progress.say(
            f"{placement.count('rollout')} rollout engine(s) with {placement.threads('rollout-0')} thread(s), "
            f"{placement.count('learner')} learner rank(s) with {placement.threads('learner-0')}, "
            f"ZeRO-{config.learner.zero_stage}, weights by {cluster.backend}; "
            f"{'taking turns' if placement.colocated else 'side by side'}; ready after {progress.seconds['start']:.0f} s"
        )
        if config.rollout.top_p < 1:
            progress.warn("rollout.top_p is below 1: the importance correction between engine and trainer is not exact")
        if not data.is_policy:
            yield cluster.actors
            return
        with ExitStack() as running:
            with progress.phase("start", "starting the judge"):
                client = cluster.actors.reward
                rewards = running.enter_context(policy_rewards(config, client, placement, model, folder.logs, recoveries))
            progress.say(f"rewards: {rewards.describe()}; ready after {progress.seconds['start']:.0f} s")
            yield replace(cluster.actors, reward=rewards)


class Job:
    """One run: its actors, data, and the weight version of its engines."""

    def __init__(self, config: Config, folder: RunFolder, progress: ProgressReporter, data: RunData, actors: Actors):
        self.config, self.folder, self.progress, self.data, self.actors = config, folder, progress, data, actors
        self.loop = StageLoop("step", folder, progress, actors.learners, config.checkpoint)
        self.version = 0
        self.collected = self.taken = 0  # steps whose batch was sampled, or given to the learners
        self.guard = MismatchGuard.from_config(config)
        self.watchdog = StepWatchdog(config.watchdog)
        # Engines generate one batch at a time; an evaluation counts as one.
        self.engines = Lock()

    def resume(self) -> None:
        """Restore the latest state of an unfinished run; a new one continues from the fp32 weights of its base model, if any."""
        learners, folder, source = self.actors.learners, self.folder, self.data.feed.source
        if folder.checkpoints() or folder.cold_start_state() is not None:
            self.actors.rollouts.sleep()  # Learners take the memory; the weights sent below wake the engines.
        if folder.checkpoints():
            # The reference is the policy at the start of RL: the model the learners were just built from.
            learners.snapshot_reference()
        if (state := self.loop.resume()) is not None:
            self.version = state["version"] - 1
            source.load_state_dict(state["sampler"])
            self._send_weights()
        elif (cold_started := folder.cold_start_state()) is not None:
            # The optimizer's fp32 weights are more precise than the saved model's.
            learners.load(folder.cold_start)
            source.load_state_dict(cold_started["sampler"])
            self._send_weights()
        elif has_compatible_optimizer_state(Path(self.data.base).parent, self.config, len(learners.actors)):
            learners.load(Path(self.data.base).parent)
            self.progress.say(f"continued from the fp32 weights next to {self.data.base}")

    # --- evaluation ----------------------------------------------------------------------------------------------

    def evaluate(self, stage: str) -> Stage | None:
        """Score the held-out rows, if there are any, with the engines' current weights; a resumed run reuses the scores from before RL."""
        config, path = self.config, self.folder.heldout_path(stage)
        if not self.data.heldout:
            return None
        if not (stage in ("base", "cold_start") and path.exists()):
            with self.progress.phase("evaluate", f"scoring {len(self.data.heldout)} held-out rows ({stage})"):
                prompts = prompt_batch([item.seeded(config.eval.samples, "heldout", config.seed) for item in self.data.heldout])
                max_tokens = config.eval.max_tokens or config.rollout.max_tokens
                self.actors.reward.begin(stage, self.loop.step, self.data.heldout, prompts, heldout=True)
                samples = self.actors.rollouts.sample(prompts, config.eval.temperature, config.rollout.top_p, max_tokens)
                self.actors.reward.judge(stage, self.loop.step, prompts, samples)
                self.actors.reward.write_trajectories(stage, path)
        result = heldout.read(path)
        self.progress.say(heldout.describe(stage, result))
        return result

    # --- cold start ----------------------------------------------------------------------------------------------

    def cold_start(self) -> None:
        """Fine-tune on the teacher's correct trajectories (docs/method.md, section 3)."""
        if self.folder.cold_start_state() is not None:
            return
        config = self.config.sft
        with self.progress.phase("cold start", "writing the teacher's trajectories"):
            examples, counts = self._cold_start_examples()
        batches = [examples[i : i + config.batch_rows] for _ in range(config.epochs) for i in range(0, len(examples), config.batch_rows)]
        self.actors.rollouts.sleep()
        self.actors.learners.start_stage(config.lr, self.config.learner.warmup_steps)
        loop = StageLoop("cold start", self.folder, self.progress, self.actors.learners, self.config.checkpoint)
        curve: list[dict[str, Any]] = []

        def step(number: int) -> None:
            with self.progress.phase("cold start", f"cold start: batch {number} of {len(batches)}"):
                curve.append(self.actors.learners.train_sft(LearnerBatch.supervised(batches[number - 1])))
            metrics = loop.log(curve[-1])
            loop.say(f"{metrics['nll']:.3f} nats/token, {metrics['encoded_tokens'] / metrics['seconds/step']:.0f} tokens/s")

        loop.run(len(batches), step, logged=False)
        with self.progress.phase("checkpoint", "saving the cold start"):
            self.actors.learners.save(self.folder.cold_start, self.folder.model_files)
            self.folder.commit_cold_start({**counts, "sampler": self.data.feed.source.state_dict(), "batches": curve})
            self.folder.update_copy()
        self._send_weights()

    def _cold_start_examples(self) -> tuple[list[SupervisedExample], dict[str, Any]]:
        config = self.config.sft
        if config.data is not None:
            examples = prompt_completion_examples(config.data, config.rows, self.data.feed.prompter.chat)
            return examples, {"kept": len(examples), "dropped": 0, "teacher": str(config.data)}
        prompts = self.data.feed.take(config.rows, self.config.seed)
        examples, counts = cold_start_examples(prompts, self.data.feed.prompter)
        kept, dropped = counts["kept"], counts["dropped"]
        self.progress.say(f"cold start on {kept} trajectories of the programmatic teacher, {dropped} dropped as incorrect")
        return examples, {**counts, "teacher": "programmatic"}

    # --- RL ------------------------------------------------------------------------------------------------------

    def reinforce(self) -> None:
        """Run the GRPO steps (docs/method.md, section 4). With rl.staleness above 0, `admit` collects the next batches during training."""
        config, rl = self.config, self.config.rl
        if self.loop.step == 0:
            self.actors.learners.snapshot_reference()
            self.actors.learners.start_stage(config.learner.lr, config.learner.warmup_steps)
        if config.learner.lr_decay == "linear":
            self.actors.learners.decay_over(rl.steps * rl.updates_per_batch)
        self.collected = self.taken = self.loop.step
        with closing(admit(self._collect, self.loop.step + 1, rl.steps, rl.staleness)) as batches:
            self.loop.run(rl.steps, lambda step: self._step(step, batches))

    def _step(self, step: int, batches: Iterator[TrainingBatch]) -> None:
        """Take the step's batch, train on it, send the weights, report, and save a checkpoint if one is due."""
        with self.progress.phase("wait for samples", f"step {step}: generating"):
            batch = next(batches)
        self.taken = step
        self._count_waiting()
        lag = self._checked_lag(batch)
        with self.progress.phase("train", f"step {step}: training"):
            update, writing = self._train(batch)
        with self.progress.phase("send weights", f"step {step}: sending weights"):
            # Where nothing was trained, the engines are awake and have these weights already.
            update["weight_bytes"] = self._send_weights() if batch.trainable else 0
        with self.progress.phase("write trajectories"):
            self.actors.reward.finish(writing)
        metrics = self._report(batch, update)
        warnings = [self.guard.check(step, update.get("mismatch"), lag), *self.watchdog.check(step, metrics)]
        for warning in filter(None, warnings):
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
                items = self.data.feed.take(missing, config.seed)
                prompts = prompt_batch([item.seeded(rl.group_size, "train", config.seed, step) for item in items], first_group)
            watch = self.actors.reward.begin(key, step, items, prompts)
            with self.engines, clock.phase("generate"):
                rollout = config.rollout
                samples = self.actors.rollouts.sample(prompts, rollout.temperature, rollout.top_p, rollout.max_tokens, watch=watch)
            with clock.phase("judge"):
                counts = self.actors.reward.judge(key, step, prompts, samples, want=missing, equal=rl.equal_groups == "train")
            rounds.append(counts)
            first_group += missing
            missing -= counts["groups_trained"]
            if missing == 0:
                break
        with clock.phase("judge"):
            learner = self.actors.reward.pop_learner_batch(key)
        self.folder.write_json("data_report.json", self.data.report())
        self.collected = step
        self._count_waiting()
        return TrainingBatch(step, learner, add_counts(rounds), self.data.feed.source.state_dict(), dict(clock.seconds))

    def _count_waiting(self) -> None:
        self.progress.metrics.set("batches_waiting", self.collected - self.taken)

    def _checked_lag(self, batch: TrainingBatch) -> int:
        """Return how many weight versions the oldest sample is behind. `admit` bounds that; this verifies the bound."""
        lag = self.version - batch.counts["oldest_version"]
        if lag > self.config.rl.staleness:
            raise RuntimeError(f"step {batch.step}: a sample is {lag} weight versions old, rl.staleness allows {self.config.rl.staleness}.")
        return lag

    def _train(self, batch: TrainingBatch) -> tuple[dict[str, Any], RewardCall]:
        """Run one GRPO update on all ranks while the engines sleep. Without a group to train on (rl.equal_groups), nothing happens.

        Returns:
            the update's metrics, and the pending call that writes the step's trajectories.
        """
        key, path = f"step {batch.step}", self.folder.path / "trajectories" / f"step_{batch.step:06d}.parquet"
        if not batch.trainable:
            return {"skipped": 1, "skip_reason": "all groups of equal reward"}, self.actors.reward.begin_writing(key, path)
        self.actors.rollouts.sleep()
        total_samples = None if self.config.rl.equal_groups == "drop" else batch.counts["samples"]
        result = self.actors.learners.train_grpo(batch.learner, self.config.rollout.temperature, total_samples)
        return result["metrics"], self.actors.reward.begin_writing(key, path, result["samples"])

    def _send_weights(self) -> int:
        """Send the learners' weights to every engine under a new version number, which also wakes sleeping engines; returns their bytes.

        A batch in generation is finished first; with rollout.in_flight_updates its requests continue under the new weights.
        """
        self.version += 1
        with nullcontext() if self.config.rollout.in_flight_updates else self.engines:
            sent: int = self.actors.send_weights(self.version)["bytes"]
        return sent

    def _report(self, batch: TrainingBatch, update: dict[str, Any]) -> dict[str, Any]:
        """Report a step to the log, the dashboard and the screen; returns its metrics."""
        source, counts = self.data.feed.source, batch.counts
        too_long = source.account.aside[TOO_LONG]
        figures = {"weight_version": self.version, "prompts_too_long": too_long, **source.metrics(counts["sources"])}
        metrics = self.loop.log(step_metrics(batch, update) | figures)
        note = set_aside_note(batch, too_long, self.config.rollout.max_tokens)
        self.loop.say(step_line(batch, update, metrics), note, always=True)
        if batch.step == 1 and counts["groups_unequal"] == 0:
            failed = sum(counts["parse_failures"].values())
            told = (metrics["reward"], failed, counts["samples"], counts["truncated"])
            self.progress.warn(EQUAL_POLICY_REWARDS if self.data.is_policy else advise_on_equal_rewards(*told))
        return metrics

    def _checkpoint(self, batch: TrainingBatch) -> None:
        """Save every checkpoint.every steps, at the end, and after a held-out evaluation that is the best so far."""
        best = None
        if self.loop.is_due(self.config.rl.eval_every):
            with self.engines:
                result = self.evaluate(f"step_{batch.step:06d}")
            best = result.reward if result and self.folder.is_best(result.reward) else None
        if best is not None or self.loop.is_last or self.loop.must_save:
            self.loop.save(version=self.version, sampler=batch.sampler_state)
            write_model_card(self.folder.path, self.folder.checkpoint_path(batch.step) / "model")
        if best is not None:
            self.folder.set_best(batch.step, best)

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
            baselines=RunBaselines() if self.data.is_policy else heldout.baselines([item.record for item in self.data.heldout]),
            paired={f"{after}_minus_{before}": heldout.paired(tables[after], tables[before]) for after, before in pairs},
            seconds={name: round(seconds, 2) for name, seconds in self.progress.seconds.items()},
            rl_steps=self.loop.step,
            teacher=(self.folder.cold_start_state() or {}).get("teacher"),
            rows=without_files(self.data.report()),
            model=self.config.model.path,
            run_dir=str(self.folder.path),
        )
