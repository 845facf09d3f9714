"""Training of a scalar reward model: load the data, take the steps, score the held-out rows, report. Read `train_scalar` first."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from rich.console import Console

from actors.cluster.calls import LearnerGroup
from actors.cluster.groups import LearnerCluster
from actors.cluster.session import ray_session
from actors.learner.scalar_learner import ScalarLearner
from actors.loops.progress import ProgressReporter, eta
from rlsys.config.checks import require_consistent_settings
from rlsys.config.schema import Config
from rlsys.data.chain import LearnerBatch
from rlsys.data.scalar_data import batches, describe, load_scalar_data
from rlsys.documents.scalar import DataCounts, Heldout, ScalarReport
from rlsys.evaluation import calibration
from rlsys.io.metrics import MetricsLog
from rlsys.io.run_folder import RunFolder, find_model, write_parquet
from rlsys.models.scalar import Group, scalar_batch
from rlsys.system.terminal import print_text, stderr

EVENTS = {"bce": "the critique is correct", "bt": "the first response is the better one"}
"""The event whose probability is sigmoid(score), or for bt the sigmoid of a difference of scores."""
TITLES = {"bce": "Meta reward model on held-out critiques", "bt": "Bradley-Terry reward model on held-out pairs"}


def train_scalar(config: Config, console: Console | None = None) -> ScalarReport:
    """Run (or resume) the whole job (docs/meta-rm.md).

    Raises:
        rlsys.config.schema.ConfigError, rlsys.data.readers.DataError: the config or the data are unusable.
        ActorFailed: a rank failed, died or timed out.
    """
    console = console or stderr()
    objective = config.meta_rm.objective
    require_consistent_settings(config, "meta-rm")
    with RunFolder(config) as folder:
        report = folder.read(ScalarReport)
        if report is not None:
            print_text(console, f"{folder.path} holds this run, complete; choose another run.dir for a new one.")
        else:
            with (
                ray_session(config.run),
                ProgressReporter(console, folder.path.name, folder.path) as progress,
                ScalarJob(config, folder, progress) as job,
            ):
                job.start()
                job.train()
                report = job.report()
            calibration.plot(report.heldout, folder.path / "calibration.png", TITLES[objective], EVENTS[objective])
            folder.write(report)
        console.print(calibration.table(report.heldout, TITLES[objective]))
        print_text(console, f"run folder: {folder.path}, the model in model/, the picture in calibration.png")
        return report


class ScalarJob:
    """One run: its learner ranks, data and metrics."""

    def __init__(self, config: Config, folder: RunFolder, progress: ProgressReporter):
        self.config, self.settings, self.folder, self.progress = config, config.meta_rm, folder, progress
        self._cluster: LearnerCluster | None = None
        self._log: MetricsLog | None = None
        self.step = 0

    def __enter__(self) -> ScalarJob:
        return self

    def __exit__(self, *_: object) -> None:
        if self._log is not None:
            self._log.close()
        if self._cluster is not None:
            self._cluster.close()

    @property
    def learners(self) -> LearnerGroup:
        """The learner ranks, once started."""
        if self._cluster is None:
            raise RuntimeError("the job has no learners yet: call start() first.")
        return self._cluster.learners

    def start(self) -> None:
        """Open model and data, start the ranks, and restore the latest state of an unfinished run."""
        config = self.config
        with self.progress.phase("start", "preparing model and data"):
            base = find_model(config.model.path)
            from transformers import AutoTokenizer

            self.data = load_scalar_data(config, AutoTokenizer.from_pretrained(base))
            self.steps = batches(self.data.train, self.settings.batch_texts, self.settings.epochs, config.seed)
        for name, groups in (("train", self.data.train), ("held-out", self.data.heldout)):
            size = describe(groups)
            self.progress.say(f"{name}: {size.texts:,} texts of {size.rows:,} rows, {size.positive:.1%} with label 1")
        self.progress.say("rows read: " + ", ".join(f"{name} {count:,}" for name, count in self.data.account.items()))
        with self.progress.phase("start", "starting learners"):
            arguments = {"objective": config.meta_rm.objective, "longest": config.meta_rm.max_tokens}
            self._cluster = LearnerCluster(config, base, self.folder.logs, ScalarLearner, **arguments)
            self.folder.write_json("actors.json", self._cluster.start())
            self.learners.start_stage(self.settings.lr, config.learner.warmup_steps)
            self.learners.decay_over(len(self.steps))
        resume = self.folder.latest_state()
        if resume is not None:
            path, state = resume
            self.learners.load(path)
            self.step = state["step"]
            for name, seconds in state["seconds"].items():
                self.progress.seconds[name] += seconds
            self.progress.say(f"resumed after step {self.step} from {path}")
        self._log = MetricsLog(self.folder.path, self.step)

    def train(self) -> None:
        """Take all remaining steps."""
        total, first, began = len(self.steps), self.step, time.monotonic()
        while self.step < total:
            self.step += 1
            groups = [self.data.train[i] for i in self.steps[self.step - 1]]
            with self.progress.phase("train", f"step {self.step} of {total}"):
                metrics = self.learners.train(ray.put(self._batch(groups)))
            metrics["row_tokens"] = describe(groups).tokens
            if self.settings.eval_every and self.step % self.settings.eval_every == 0 and self.step < total:
                heldout = self._judge(self._score())
                measures = ("auc", "accuracy", "pairwise_accuracy", "log_loss")
                metrics |= {f"heldout_{name}": found.value for name in measures if (found := getattr(heldout, name)) is not None}
            assert self._log is not None
            self._log.write(self.step, metrics)
            self.progress.gauges(metrics)
            self._say(metrics, total, (time.monotonic() - began) / (self.step - first))
            self._checkpoint(total)

    def _batch(self, groups: list[Group]) -> LearnerBatch:
        return scalar_batch(groups, None if self.settings.objective == "bt" else self.config.learner.token_budget)

    def _say(self, metrics: dict[str, Any], total: int, pace: float) -> None:
        judged = "heldout_log_loss" in metrics
        if not (judged or self.step % max(1, total // 20) == 0 or self.step == total or metrics["skipped"]):
            return
        heldout = f" (held-out {metrics['heldout_log_loss']:.3f})" if judged else ""
        note = f" (update skipped: {metrics['skip_reason']})" if metrics["skipped"] else ""
        self.progress.say(
            f"step {self.step}/{total}: loss {metrics['loss']:.3f}{heldout}, accuracy {metrics['accuracy']:.1%}, "
            f"{metrics['row_tokens'] / pace:.0f} tokens/s, ETA {eta(self.step, total, pace)}{note}"
        )

    def _checkpoint(self, total: int) -> None:
        every = self.config.checkpoint.every
        if self.step < total and every and self.step % every == 0:
            with self.progress.phase("checkpoint", f"step {self.step}: saving"):
                self.learners.save(self.folder.begin_checkpoint(self.step))
                state = {"step": self.step, "seconds": dict(self.progress.seconds)}
                self.folder.commit_checkpoint(self.step, state, self.config.checkpoint.keep)

    def _score(self) -> np.ndarray:
        """Score the held-out texts, in order."""
        groups = self.data.heldout
        scores: list[float] = []
        for start in range(0, len(groups), self.settings.batch_texts):
            part = groups[start : start + self.settings.batch_texts]
            with self.progress.phase("evaluate", f"scoring held-out rows, {start} of {len(groups)} done"):
                scores += self.learners.score(ray.put(self._batch(part)))
        return np.array(scores)

    def _judge(self, scores: np.ndarray) -> Heldout:
        labels = [label for group in self.data.heldout for label in group.labels]
        numbers: dict[tuple[str | None, str], int] = {}
        rows = [numbers.setdefault(group.row, len(numbers)) for group in self.data.heldout for _ in group.texts]
        judge = calibration.summarise_pairs if self.settings.objective == "bt" else calibration.summarise
        return judge(scores.tolist(), labels, rows)

    def report(self) -> ScalarReport:
        """Save the model and the held-out scores, and summarise the run."""
        with self.progress.phase("checkpoint", "saving the model"):
            self.learners.save_model(self.folder.path / "model")
        scores = self._score()
        heldout = [(group.id, group.source, label) for group in self.data.heldout for label in group.labels]
        ids, sources, labels = zip(*heldout)
        columns = {"prompt_id": ids, "source": pa.array(sources, pa.string()), "label": labels, "score": scores}
        write_parquet(pa.table(columns), self.folder.path / "heldout_scores.parquet")
        steps = MetricsLog.read(self.folder.path)
        data = DataCounts(train=describe(self.data.train), heldout=describe(self.data.heldout), account=self.data.account)
        return ScalarReport(
            objective=self.settings.objective,
            heldout=self._judge(scores),
            data=data,
            steps=len(self.steps),
            encoded_share=sum(row["encoded_tokens"] for row in steps) / sum(row["row_tokens"] for row in steps),
            seconds={name: round(seconds, 2) for name, seconds in self.progress.seconds.items()},
            model=self.config.model.path,
            run_dir=str(self.folder.path),
        )
