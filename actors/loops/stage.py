"""The loop of a training stage: resuming, timing, metrics, progress lines and checkpoints. Each job supplies its step."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import closing, nullcontext
from typing import Any

from actors.cluster.calls import LearnerGroup
from actors.loops.progress import ProgressReporter, eta
from rlsys.config.schema import Checkpoint
from rlsys.io.metrics import MetricsLog
from rlsys.io.run_folder import RunFolder

LINES = 10
"""Progress lines of a stage that does not print every step."""
PACE_STEPS = 10
"""Latest steps whose mean duration gives the ETA."""


class StageLoop:
    """Runs the steps of one training stage; `run` calls the job's step function, which computes a step and then calls

        log(metrics)    once: writes metrics.jsonl, the trackers and the dashboard, with the seconds of each phase
        say(text)       prints the step's line, with its number and the ETA
        save(state)     writes a checkpoint, from which `resume` continues

    Args:
        title: what a step is called in progress lines, for example "step".
        checkpoint: when to save and how many checkpoints to keep.
        before: steps of earlier stages in the same folder; metrics and checkpoints are numbered from `before` + 1.
    """

    def __init__(
        self, title: str, folder: RunFolder, progress: ProgressReporter, learners: LearnerGroup, checkpoint: Checkpoint, before: int = 0
    ):
        self.title, self.folder, self.progress, self.learners = title, folder, progress, learners
        self.checkpoint, self.before = checkpoint, before
        self.step = self.total = 0
        self._durations: deque[float] = deque(maxlen=PACE_STEPS)
        self._skipped = ""

    @property
    def is_last(self) -> bool:
        return self.step == self.total

    @property
    def must_save(self) -> bool:
        """Whether a checkpoint is due after this step: every checkpoint.every steps, or as the run is about to stop."""
        return self.is_due(self.checkpoint.every) or self.progress.stop.requested is not None

    def is_due(self, every: int) -> bool:
        """Whether this step is one of every `every` steps (0: none), and not the last."""
        return every > 0 and self.step % every == 0 and not self.is_last

    def resume(self) -> dict[str, Any] | None:
        """Load the stage's newest checkpoint into the learners and return its state; None if there is no checkpoint."""
        latest = self.folder.latest_state(self.progress.warn)
        if latest is None or latest[1]["step"] <= self.before:
            return None
        path, state = latest
        self.learners.load(path)
        self.step = state["step"] - self.before
        for name, seconds in state["seconds"].items():
            self.progress.seconds[name] += seconds
        self.progress.say(f"resumed after {self.title} {self.step} from {path}")
        return state

    def run(self, total: int, step: Callable[[int], None], logged: bool = True) -> None:
        """Call `step(number)` for each of the steps up to `total` that are left. `logged`: whether `log` writes to the run's metrics."""
        self.total = total
        self._began, self._phases = time.monotonic(), Counter(self.progress.seconds)
        self._log = MetricsLog(self.folder.path, self.before + self.step, self.folder.config) if logged else None
        with closing(self._log) if self._log is not None else nullcontext(), self.progress.stop.steps():
            while self.step < total:
                self.step += 1
                step(self.step)
                if logged:
                    self.folder.update_copy()
                # Unlogged stages have no checkpoints of their own.
                self.progress.stop.raise_if_requested(f"{self.title} {self.step}" if logged else "nothing of this stage")

    def log(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Write the step's metrics; returns them with the seconds since the last call, by phase.

        `seconds/other` is the time outside of every phase; that of the last step's line and checkpoint counts for this step.
        """
        now, phases = time.monotonic(), Counter(self.progress.seconds)
        elapsed, spent = now - self._began, phases - self._phases
        self._began, self._phases = now, phases
        self._durations.append(elapsed)
        seconds = {name.replace(" ", "_"): value for name, value in spent.items()} | {"other": elapsed - spent.total(), "step": elapsed}
        metrics = metrics | {f"seconds/{name}": value for name, value in seconds.items()}
        self._skipped = f" (update skipped: {metrics['skip_reason']})" if metrics.get("skipped") else ""
        if self._log is not None:
            self._log.write(self.before + self.step, metrics)
            self.progress.metrics.update(metrics)
        return metrics

    def say(self, text: str, note: str = "", always: bool = False) -> None:
        """Print the line of a step: of about `LINES` in all, of skipped updates, and of every step that asks for it by `always`."""
        if always or self._skipped or self.is_last or self.step % max(1, self.total // LINES) == 0:
            left = eta(self.step, self.total, sum(self._durations) / len(self._durations))
            self.progress.say(f"{self.title} {self.step}/{self.total}: {text}, ETA {left}{self._skipped}{note}")

    def save_if_due(self, **state: Any) -> None:
        """Save if a checkpoint is due; the weights after the last step are saved by the job, as its result."""
        if self.must_save:
            self.save(**state)

    def save(self, **state: Any) -> None:
        """Save the learners with `state`, which `resume` returns."""
        number = self.before + self.step
        with self.progress.phase("checkpoint", f"{self.title} {self.step}: saving"):
            try:
                self.learners.save(self.folder.begin_checkpoint(number), self.folder.model_files)
                state = {"step": number, "seconds": dict(self.progress.seconds), **state}
                self.folder.commit_checkpoint(number, state, self.checkpoint.keep, self.checkpoint.optimizer)
            except BaseException:
                self.folder.discard_checkpoint(number)
                raise
