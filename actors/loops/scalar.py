"""Training of a scalar reward model: load the data, take the steps, score the held-out rows, report. Read `train_scalar` first."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pyarrow as pa
import ray
from rich.console import Console
from transformers import AutoTokenizer

from actors.cluster.calls import LearnerGroup
from actors.cluster.groups import LearnerCluster
from actors.cluster.session import ray_session
from actors.learner.scalar_learner import ScalarLearner
from actors.loops.progress import ProgressReporter
from actors.loops.recovery import with_restarts
from actors.loops.stage import StageLoop
from rlsys.config.checks import require_consistent_settings
from rlsys.config.schema import Config
from rlsys.data.chain import LearnerBatch
from rlsys.data.scalar_data import ScalarData, batches, describe, load_scalar_data
from rlsys.documents.scalar import DataCounts, Heldout, ScalarReport
from rlsys.evaluation import calibration
from rlsys.io.metrics import MetricsLog
from rlsys.io.run_folder import RunFolder, find_model, write_parquet
from rlsys.models.scalar import Group, scalar_batch
from rlsys.reporting.page.calibration import reliability
from rlsys.reporting.page.drawing import render
from rlsys.system.terminal import print_text, stderr

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
        config = folder.config
        report = folder.read(ScalarReport)
        if report is not None:
            print_text(console, f"{folder.path} holds this run, complete; choose another run.dir for a new one.")
        else:
            with ray_session(config.run), ProgressReporter(console, folder.path.name, folder.path, config.recovery.grace_s) as progress:
                base, data = open_data(config, progress)
                report = with_restarts(lambda _: run_job(config, folder, progress, base, data), config.recovery, progress)
            render(reliability(report, TITLES[objective]).draw, "calibration", folder.path / "calibration.png")
            folder.write(report)
        console.print(calibration.table(report.heldout, TITLES[objective]))
        print_text(console, f"run folder: {folder.path}, the model in model/, the picture in calibration.png")
        return report


def run_job(config: Config, folder: RunFolder, progress: ProgressReporter, base: str, data: ScalarData) -> ScalarReport:
    """Start the learners, resume what the folder holds, and take the steps that are left."""
    objective, longest = config.meta_rm.objective, config.meta_rm.max_tokens
    with closing(LearnerCluster(config, base, folder.logs, ScalarLearner, objective=objective, longest=longest)) as cluster:
        with progress.phase("start", "starting learners"):
            folder.write_json("actors.json", cluster.start())
        job = ScalarJob(config, folder, progress, data, cluster.learners)
        job.train()
        return job.report()


def open_data(config: Config, progress: ProgressReporter) -> tuple[str, ScalarData]:
    """Return the base model and the rows, and report how many there are."""
    with progress.phase("start", "preparing model and data"):
        base = find_model(config.model.path)
        data = load_scalar_data(config, AutoTokenizer.from_pretrained(base))
    for name, groups in (("train", data.train), ("held-out", data.heldout)):
        size = describe(groups)
        progress.say(f"{name}: {size.texts:,} texts of {size.rows:,} rows, {size.positive:.1%} with label 1")
    progress.say("rows read: " + ", ".join(f"{name} {count:,}" for name, count in data.account.items()))
    return base, data


class ScalarJob:
    """One run: its learner ranks, data and steps."""

    def __init__(self, config: Config, folder: RunFolder, progress: ProgressReporter, data: ScalarData, learners: LearnerGroup):
        self.config, self.settings, self.folder, self.progress = config, config.meta_rm, folder, progress
        self.data, self.learners = data, learners
        self.steps = batches(data.train, self.settings.batch_texts, self.settings.epochs, config.seed)
        self.loop = StageLoop("step", folder, progress, learners, config.checkpoint)

    def train(self) -> None:
        """Take all steps that are left."""
        self.learners.start_stage(self.settings.lr, self.config.learner.warmup_steps)
        self.learners.decay_over(len(self.steps))
        self.loop.resume()
        self.loop.run(len(self.steps), self._step)

    def _step(self, number: int) -> None:
        groups = [self.data.train[i] for i in self.steps[number - 1]]
        with self.progress.phase("train", f"step {number} of {len(self.steps)}"):
            metrics = self.learners.train(ray.put(self._batch(groups)))
        metrics["row_tokens"] = describe(groups).tokens
        evaluated = self.loop.is_due(self.settings.eval_every)
        if evaluated:
            heldout = self._judge(self._score())
            measures = ("auc", "accuracy", "pairwise_accuracy", "log_loss")
            metrics |= {f"heldout_{name}": found.value for name in measures if (found := getattr(heldout, name)) is not None}
        metrics = self.loop.log(metrics)
        loss = f"loss {metrics['loss']:.3f}" + (f" (held-out {metrics['heldout_log_loss']:.3f})" if evaluated else "")
        text = f"{loss}, accuracy {metrics['accuracy']:.1%}, {metrics['row_tokens'] / metrics['seconds/step']:.0f} tokens/s"
        self.loop.say(text, always=evaluated)
        self.loop.save_if_due()

    def _batch(self, groups: list[Group]) -> LearnerBatch:
        return scalar_batch(groups, None if self.settings.objective == "bt" else self.config.learner.token_budget)

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
