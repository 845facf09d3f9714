"""The algorithm, top to bottom: evaluate, cold start, then GRPO steps, each of them sample -> judge -> train -> send weights.

Everything that takes long happens in the actors; this driver decides what comes next. Read `train` first.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow.parquet as pq
import ray
from rich.console import Console

from actors.cluster.calls import Actors
from actors.cluster.groups import Cluster
from actors.cluster.session import ray_session
from actors.cluster.waiting import Pending
from actors.loops.admission import admit
from actors.loops.progress import Watch, eta
from rlsys.algorithms.mismatch import MismatchGuard
from rlsys.config.checks import require_consistent_settings
from rlsys.config.schema import Config
from rlsys.data.accounts import TOO_LONG
from rlsys.data.batches import (
    Feed,
    LearnerRow,
    cold_start_rows,
    group_batch,
    heldout_rows,
    learner_batch,
    prompt_completion_rows,
    requests_for,
)
from rlsys.data.exclusion import read_exclusion
from rlsys.data.mixtures import data_report, open_mixture, without_files
from rlsys.evaluation import heldout
from rlsys.evaluation.advice import at_the_end, failures_in_words, on_equal_rewards, on_nothing_parsed
from rlsys.io.metrics import MetricsLog
from rlsys.io.run_folder import RunFolder, find_model, has_compatible_optimizer_state
from rlsys.prompts.rendering import Prompter
from rlsys.reporting.summary import summary_table
from rlsys.system.terminal import print_text, stderr
from rlsys.system.timing import PhaseTimer


def train(config: Config, console: Console | None = None, stages: tuple[str, ...] = ("sft", "rl")) -> dict[str, Any]:
    """Run (or resume) the whole job; returns what summary.json holds.

    Raises:
        rlsys.config.schema.ConfigError, rlsys.data.readers.DataError: something in the config or the data cannot be used.
        ActorFailed: a remote part failed, died or did not answer in time.
    """
    console = console or stderr()
    require_consistent_settings(config, "train" if "rl" in stages else "sft")
    with RunFolder(config) as folder:
        done = folder.read_json("summary.json")
        if done is not None and done["rl_steps"] >= (config.rl.steps if "rl" in stages else 0):
            console.print(summary_table(done))
            print_text(console, f"{folder.path} holds this run, complete; choose another run.dir for a new one.")
            return done
        with ray_session(config.run), Watch(console, folder.path.name) as watch, Job(config, folder, watch) as job:
            job.start()
            job.look_at_base(job.evaluate("base"), taught="sft" in stages and config.sft.rows > 0)
            if "sft" in stages and config.sft.rows:
                job.cold_start()
                job.evaluate("cold_start")
            if "rl" in stages:
                job.reinforce()
                result = job.evaluate("rl")
                if folder.is_best(result["reward"]):
                    folder.set_best(job.step, result["reward"])
            summary = job.summary()
        folder.write_json("summary.json", summary)
        console.print(summary_table(summary))
        if "rl" in stages and (advice := at_the_end(summary["heldout"]["rl"])):
            print_text(console, advice, "yellow")
        print_text(console, f"run folder: {folder.path}")
        return summary


@dataclass
class Batch:
    """What one step trains on: a slot is charged when its prompts are admitted, and freed when it was trained on."""

    step: int
    learner: ray.ObjectRef
    """LEARNER schema."""
    counts: dict[str, Any]
    sampler_state: dict[str, Any]
    seconds: dict[str, float]
    """By part: draw, generate, judge."""


class Job:
    """One run's actors, data and clocks."""

    def __init__(self, config: Config, folder: RunFolder, watch: Watch):
        self.config, self.folder, self.watch = config, folder, watch
        self.cluster: Actors | None = None
        self.log: MetricsLog | None = None
        self.version = 0
        self.guard = MismatchGuard.of(config)
        # Engines generate one batch at a time, and one that is evaluated on has no other beside it.
        self.engines = Lock()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        if self.log is not None:
            self.log.close()
        if self.cluster is not None:
            self.cluster.close()

    # --- bringing it up ------------------------------------------------------------------------------------------

    def prepare(self) -> str:
        """Model and data; returns the folder of the model that everything starts from."""
        config = self.config
        base = find_model(config.model.path)
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(base)
        prompter = Prompter.of(self.tokenizer, config.prompt)
        source = open_mixture(config.data, "train", config.seed)
        excluded = read_exclusion(config.data.exclude, source)
        self.feed = Feed(source, prompter, config.prompt.max_tokens, excluded.rows)
        self.heldout_source = open_mixture(config.data, "heldout", config.seed)
        self.heldout = heldout_rows(self.heldout_source, prompter, config.data.heldout_rows, config.prompt.max_tokens)
        self._write_data_report()
        for part in source.parts:
            self.watch.say(f"training rows: {part.name}, {len(part.rows):,} rows, checked when drawn; data_report.json accounts for them")
        for part in self.heldout_source.parts:
            self.watch.say(f"held-out rows: {part.name}, {part.account}")
        if config.data.exclude is not None:
            self.watch.say(str(excluded))
        return base

    def start(self) -> None:
        """Model, data, actors; and, where the folder holds an unfinished run, its latest state."""
        config = self.config
        with self.watch.phase("start", "preparing model and data"):
            base = self.prepare()
        resume = self.folder.latest_state()
        cold_started = self.folder.cold_start_state()
        model = str(self.folder.cold_start / "model") if cold_started is not None else base
        with self.watch.phase("start", "starting rollout engines and learners"):
            max_tokens = max(config.rollout.max_tokens, config.eval.max_tokens or 0)
            longest, score_format = config.prompt.max_tokens + max_tokens, self.feed.prompter.score_format
            cluster = self.cluster = Cluster(config, model, longest, self.folder.logs, score_format)
            told = cluster.start()
        placement = cluster.placement
        self.watch.say(
            f"{config.rollout.actors} rollout engine(s) with {placement.rollout_threads} thread(s), {config.learner.ranks} learner rank(s) "
            f"with {placement.learner_threads}, ZeRO-{config.learner.zero_stage}, weights by {cluster.backend}; "
            f"{'taking turns' if placement.colocated else 'side by side'}; ready after {self.watch.seconds['start']:.0f} s"
        )
        self.folder.write_json("actors.json", told)
        if config.rollout.top_p < 1:
            self.watch.warn("rollout.top_p is below 1: the importance correction between engine and trainer is not exact")
        self.step = 0
        if resume is not None:
            path, state = resume
            # The reference is the policy as RL found it: the model the learners were just built from.
            self.cluster.learn("snapshot_reference")
            self.cluster.learn("load", str(path))
            self.step, self.version = state["step"], state["version"] - 1
            self.feed.source.load_state_dict(state["sampler"])
            for name, seconds in state["seconds"].items():
                self.watch.seconds[name] = self.watch.seconds.get(name, 0.0) + seconds
            self._sync()
            self.watch.say(f"resumed after step {self.step} from {path}")
        elif cold_started is not None:
            # The optimizer's fp32 weights are finer than the saved model's.
            self.cluster.learn("load", str(self.folder.cold_start))
            self.feed.source.load_state_dict(cold_started["sampler"])
            self._sync()
        elif has_compatible_optimizer_state(Path(base).parent, config.learner, config.model.dtype):
            self.cluster.learn("load", str(Path(base).parent))
            self.watch.say(f"went on from the fp32 weights that lie beside {base}")
        self.log = MetricsLog(self.folder.path, self.step)

    def _write_data_report(self) -> None:
        """What became of all rows that were read so far."""
        self.folder.write_json("data_report.json", data_report(self.feed.source, self.heldout_source))

    # --- evaluation ----------------------------------------------------------------------------------------------

    def evaluate(self, stage: str) -> dict[str, Any]:
        """Score the held-out rows with the engines' present weights; a resumed run finds what came before RL already scored."""
        config, path = self.config, self.folder.heldout_path(stage)
        if not (stage in ("base", "cold_start") and path.exists()):
            with self.watch.phase("evaluate", f"scoring {len(self.heldout)} held-out rows ({stage})"):
                groups = group_batch(self.heldout)
                max_tokens = config.eval.max_tokens or config.rollout.max_tokens
                requests = requests_for(groups, config.eval.samples, "heldout", config.seed)
                samples = self.cluster.sample(requests, config.eval.temperature, config.rollout.top_p, max_tokens)
                self.cluster.judge(stage, self.step, groups, samples)
                self.cluster.write_trajectories(stage, path)
        result = heldout.summarise(pq.read_table(path))
        self.watch.say(heldout.sentence(stage, result))
        return result

    def look_at_base(self, result: dict[str, Any], taught: bool) -> None:
        """Say what a base model that parses nothing needs, unless it is taught next."""
        if advice := on_nothing_parsed(result, taught):
            self.watch.warn(advice)

    # --- cold start ----------------------------------------------------------------------------------------------

    def cold_start(self) -> None:
        """Supervised fine-tuning on the teacher's trajectories that are correct (docs/method.md, section 3)."""
        if self.folder.cold_start_state() is not None:
            return
        config = self.config.sft
        with self.watch.phase("cold start", "writing the teacher's trajectories"):
            rows, counts = self._cold_start_rows()
        batches = [rows[i : i + config.batch_rows] for _ in range(config.epochs) for i in range(0, len(rows), config.batch_rows)]
        self.cluster.sleep()
        self.cluster.learn("start_stage", config.lr, self.config.learner.warmup_steps)
        began = time.monotonic()
        curve = []
        for number, batch in enumerate(batches, start=1):
            with self.watch.phase("cold start", f"cold start: batch {number} of {len(batches)}"):
                metrics = self.cluster.learn("train_sft", learner_batch(batch))
            curve.append(metrics)
            pace = (time.monotonic() - began) / number
            if number % max(1, len(batches) // 10) == 0 or number == len(batches):
                self.watch.say(
                    f"cold start {number}/{len(batches)}: {metrics['nll']:.3f} nats/token, "
                    f"{metrics['encoded_tokens'] / pace:.0f} tokens/s, ETA {eta(number, len(batches), pace)}"
                )
        with self.watch.phase("checkpoint", "saving the cold start"):
            self.cluster.learn("save", str(self.folder.cold_start))
            self.folder.write_json("cold_start.json", {**counts, "sampler": self.feed.source.state_dict(), "batches": curve})
        self._sync()

    def _cold_start_rows(self) -> tuple[list[LearnerRow], dict[str, Any]]:
        config = self.config.sft
        if config.data is not None:
            rows = prompt_completion_rows(config.data, config.rows, self.feed.prompter.chat)
            return rows, {"kept": len(rows), "dropped": 0, "teacher": str(config.data)}
        drawn = self.feed.take(config.rows, self.config.seed)
        rows, counts = cold_start_rows(drawn, self.feed.prompter)
        self.watch.say(f"cold start on {counts['kept']} trajectories of the programmatic teacher, {counts['dropped']} dropped as incorrect")
        return rows, {**counts, "teacher": "programmatic"}

    # --- RL ------------------------------------------------------------------------------------------------------

    def reinforce(self) -> None:
        """GRPO: the steps of docs/method.md, section 4. With staleness 0 they follow each other; above, `admit` lets the next batches be
        collected while one is trained on.
        """
        config, rl = self.config, self.config.rl
        if self.step == 0:
            self.cluster.learn("snapshot_reference")
            self.cluster.learn("start_stage", config.learner.lr, config.learner.warmup_steps)
        if config.learner.lr_decay == "linear":
            self.cluster.learn("decay_over", rl.steps * rl.updates_per_batch)
        pace: deque[float] = deque(maxlen=5)
        began, before = time.monotonic(), Counter(self.watch.seconds)
        with closing(admit(self._collect, self.step + 1, rl.steps, rl.staleness)) as batches:
            while self.step < rl.steps:
                with self.watch.phase("wait for samples", f"step {self.step + 1}: generating"):
                    batch = next(batches)
                self._refuse_stale(batch)
                with self.watch.phase("train", f"step {batch.step}: training"):
                    trained, writing = self._train(batch)
                with self.watch.phase("send weights", f"step {batch.step}: sending weights"):
                    self._sync()
                with self.watch.phase("write trajectories"):
                    self.cluster.finish(writing)
                self.step = batch.step
                # Everything since the last report: what that one and its checkpoint took, too.
                now, after = time.monotonic(), Counter(self.watch.seconds)
                pace.append(now - began)
                self._report(batch, trained, _whole(now - began, after - before), sum(pace) / len(pace))
                began, before = now, after
                # The samples were compared with the weights before this step's.
                warning = self.guard.look(batch.step, trained.get("mismatch"), self.version - 1 - batch.counts["oldest_version"])
                if warning:
                    self.watch.warn(warning)
                self._checkpoint(batch)

    def _collect(self, step: int) -> Batch:
        """Sample and judge one batch. Groups of equal reward teach nothing; they are refilled by fresh prompts if asked."""
        config, rl = self.config, self.config.rl
        key = f"step {step}"
        rounds: list[dict[str, Any]] = []
        clock = PhaseTimer()
        missing, first_group = rl.prompts_per_step, 0
        for _ in range(1 + (rl.refill_rounds if rl.refill else 0)):
            with clock.phase("draw"):
                groups = group_batch(self.feed.take(missing, config.seed), first_group)
                requests = requests_for(groups, rl.group_size, "train", config.seed, step)
            with self.engines, clock.phase("generate"):
                samples = self.cluster.sample(requests, config.rollout.temperature, config.rollout.top_p, config.rollout.max_tokens)
            with clock.phase("judge"):
                counts = self.cluster.judge(key, step, groups, samples, want=missing, equal=rl.equal_groups == "train")
            rounds.append(counts)
            first_group += missing
            missing -= counts["groups_trained"]
            if missing == 0:
                break
        with clock.phase("judge"):
            learner = self.cluster.hand_over(key)
        self._write_data_report()
        return Batch(step, learner, _add_counts(rounds), self.feed.source.state_dict(), dict(clock.seconds))

    def _refuse_stale(self, batch: Batch) -> None:
        """The admission above cannot let an older sample through; this holds it to that."""
        lag = self.version - batch.counts["oldest_version"]
        if lag > self.config.rl.staleness:
            raise RuntimeError(f"step {batch.step}: a sample is {lag} weight versions old, rl.staleness allows {self.config.rl.staleness}.")

    def _train(self, batch: Batch) -> tuple[dict[str, Any], Pending]:
        """One GRPO update on all ranks, engines asleep. Where no group has unequal rewards there is nothing to train on (rl.equal_groups).

        Returns:
            the update's metrics; and the writing of the step's trajectories, under way.
        """
        key, path = f"step {batch.step}", self.folder.path / "trajectories" / f"step_{batch.step:06d}.parquet"
        if batch.counts["groups_trained"] == 0:
            return {"skipped": 1, "skip_reason": "all groups of equal reward"}, self.cluster.begin_writing(key, path)
        self.cluster.sleep()
        total_samples = None if self.config.rl.equal_groups == "drop" else batch.counts["samples"]
        result = self.cluster.learn("train_grpo", batch.learner, self.config.rollout.temperature, total_samples)
        return result["metrics"], self.cluster.begin_writing(key, path, result["samples"])

    def _sync(self) -> None:
        """The learners' weights to every engine, under a new version number. What put engines to sleep ends with this: it wakes them.

        A batch that is being generated is finished first; with rollout.in_flight_updates its requests go on under the new weights.
        """
        self.version += 1
        with nullcontext() if self.config.rollout.in_flight_updates else self.engines:
            self.cluster.send_weights(self.version)

    def _report(self, batch: Batch, trained: dict[str, Any], seconds: dict[str, float], pace: float) -> None:
        """One line to the log, the dashboard and the screen.

        `seconds/step` is the sum of wait_for_samples, train, send_weights, write_trajectories, checkpoint, evaluate and other.
        draw, generate and judge are those of the batch: what the wait consists of when nothing overlaps.
        """
        counts = batch.counts
        seconds = {**seconds, **batch.seconds}
        reward = counts["reward_sum"] / counts["samples"]
        metrics = {
            "reward": reward,
            "accuracy": (reward + 1) / 2,
            "groups_equal_share": 1 - counts["groups_unequal"] / counts["groups"],
            "tokens_per_sample": counts["tokens"] / counts["samples"],
            "parse_failure_share": sum(counts["parse_failures"].values()) / counts["samples"],
            **{name: value for name, value in counts.items() if name not in ("parse_failures", "reward_sum", "sources")},
            **{f"parse_failures/{reason}": count for reason, count in counts["parse_failures"].items()},
            **trained,
            **{f"seconds/{name}": value for name, value in seconds.items()},
            "generated_tokens_per_s": counts["tokens"] / seconds["generate"],
            "weight_version": self.version,
            "prompts_too_long": self.feed.source.account.aside[TOO_LONG],
            **self.feed.source.metrics(counts["sources"]),
        }
        self.log.write(batch.step, metrics)
        self.watch.gauges(metrics)
        told = f"KL {trained['kl']:.4f}, entropy {trained['entropy']:.2f}, " if trained.get("kl") is not None else ""
        note = f" (update skipped: {trained.get('skip_reason')})" if trained.get("skipped") else ""
        self.watch.say(
            f"step {batch.step}/{self.config.rl.steps}: reward {reward:+.3f}, {told}"
            f"{counts['groups_unequal']}/{counts['groups']} groups unequal, {metrics['generated_tokens_per_s']:.0f} tokens/s, "
            f"generate {seconds['generate']:.1f} s, train {seconds['train']:.1f} s, send {seconds['send_weights']:.1f} s, "
            f"ETA {eta(batch.step, self.config.rl.steps, pace)}{note}{self._set_aside(batch)}"
        )
        if batch.step == 1 and counts["groups_unequal"] == 0:
            failed = sum(counts["parse_failures"].values())
            self.watch.warn(on_equal_rewards(reward, failed, counts["samples"], counts["truncated"]))

    def _set_aside(self, batch: Batch) -> str:
        """What was not parsed in the step, and rows that were too long so far; nothing where there is nothing."""
        counts, too_long = batch.counts, self.feed.source.account.aside[TOO_LONG]
        limit, told = self.config.rollout.max_tokens, ""
        if counts["parse_failures"]:  # a text that was cut off is one of them
            told = failures_in_words(counts["parse_failures"], counts["samples"], counts["truncated"], limit)
        rows = f"{too_long:,} rows longer than prompt.max_tokens so far" if too_long else ""
        return "".join(f"; {part}" for part in (told, rows) if part)

    def _checkpoint(self, batch: Batch) -> None:
        """Every so many steps, at the end, and whenever a held-out evaluation in between is the best so far."""
        config, step = self.config, batch.step
        last = step == config.rl.steps
        best = False
        if config.rl.eval_every and step % config.rl.eval_every == 0 and not last:
            with self.engines:
                result = self.evaluate(f"step_{step:06d}")
            best = self.folder.is_best(result["reward"])
        if not (last or best or (config.checkpoint.every and step % config.checkpoint.every == 0)):
            return
        with self.watch.phase("checkpoint", f"step {step}: saving"):
            self.cluster.learn("save", str(self.folder.begin_checkpoint(step)))
            state = {"step": step, "version": self.version, "sampler": batch.sampler_state, "seconds": self.watch.seconds}
            if best:
                self.folder.set_best(step, result["reward"])
            self.folder.commit_checkpoint(step, state, config.checkpoint.keep)

    # --- the end -------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """What summary.json holds."""
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
        return {
            "heldout": {stage: heldout.summarise(table) for stage, table in tables.items()},
            "baselines": heldout.baselines([drawn.record for drawn in self.heldout]),
            "paired": {f"{after}_minus_{before}": heldout.paired(tables[after], tables[before]) for after, before in pairs},
            "seconds": {name: round(seconds, 2) for name, seconds in self.watch.seconds.items()},
            "rl_steps": self.step,
            "teacher": (self.folder.cold_start_state() or {}).get("teacher"),
            "rows": without_files(data_report(self.feed.source, self.heldout_source)),
            "model": self.config.model.path,
            "run_dir": str(self.folder.path),
        }


def _whole(elapsed: float, phases: Counter[str]) -> dict[str, float]:
    """Seconds of a step by phase, `other` being what no phase accounts for."""
    named = {name.replace(" ", "_"): value for name, value in phases.items()}
    return {**named, "other": elapsed - sum(named.values()), "step": elapsed}


def _add_counts(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    apart = ("parse_failures", "oldest_version", "sources")
    total = {name: sum(counts[name] for counts in rounds) for name in rounds[0] if name not in apart}
    total["sources"] = [one for counts in rounds for one in counts["sources"]]
    total["parse_failures"] = dict(sum((Counter(counts["parse_failures"]) for counts in rounds), Counter()))
    total["oldest_version"] = min(counts["oldest_version"] for counts in rounds)
    return total
