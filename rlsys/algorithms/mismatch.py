"""The live guard: does the engine that samples still compute the model that is trained?

The trainer recomputes the log-probability of every sampled token. Rounding makes the two differ by a few hundredths of a nat at most in
bfloat16, and hardly at all in float32; a model that one of them computes wrong, or weights that did not arrive, by tenths to whole nats.
An importance weight hides that from the loss, not from what is learned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlsys.config.schema import Config

DRIFT = 0.2
"""Nats that an update may move a token's log-probability on average: how far a sample of older weights may be off for that alone. By
Pinsker's inequality a divergence of 0.02 nats, several times that of an ordinary step (docs/models.md)."""

WHERE_TO_LOOK = (
    "the model family (docs/models.md says which are computed right here; the engine may compute another thing); its rope scaling "
    "(longrope, dynamic and yarn are done differently in places); model.dtype and quantized checkpoints; the tokenizer and chat template, "
    "if files of the model's folder were changed by hand; the engine's kernels (rollout.enforce_eager=true takes the plain ones); and "
    "its weights (weights.verify=true compares them after every transfer)"
)


class MismatchError(RuntimeError):
    """Trainer and engine do not compute the same model; the message has the figures, the setting, and where to look."""


@dataclass
class MismatchGuard:
    """Told the mismatch of each step in turn; stops the run once it was too large in `steps` steps in a row."""

    limit: float | None
    """Largest mean |trainer - engine| log-probability per token, in nats, that is no fault; None: anything goes."""
    steps: int
    setting: str
    """Where `limit` is set."""
    slack: float = 0.0
    """What is allowed besides, in nats."""
    over: int = 0
    """Steps in a row that were too large."""

    @classmethod
    def from_config(cls, config: Config) -> MismatchGuard:
        """For a run. With top_p below 1 the engine's probabilities are larger by up to 1 / top_p, as they are of the nucleus alone."""
        setting = f"mismatch_{config.model.dtype}"
        return cls(getattr(config.rl, setting), config.rl.mismatch_steps, f"rl.{setting}", -math.log(config.rollout.top_p))

    def check(self, step: int, mismatch: float | None, lag: int = 0) -> str | None:
        """Judge one step.

        Args:
            mismatch: mean over the step's tokens, in nats; None where nothing was trained, which says nothing.
            lag: weight versions that its oldest sample was behind.

        Returns:
            a warning, at the first step in a row that is too large; None otherwise.

        Raises:
            MismatchError: it was too large, or not a number, in `steps` steps in a row.
        """
        if self.limit is None or mismatch is None:
            return None
        allowed = self.limit + self.slack + lag * DRIFT
        if mismatch <= allowed:
            self.over = 0
            return None
        self.over += 1
        told = f"trainer and engine differ by {mismatch:.3g} nats a token, {self.setting} allows {allowed:.3g}"
        if self.over >= self.steps:
            raise MismatchError(
                f"step {step}: {told}, for {self.over} step(s) in a row: they do not compute the same model, and the run would train on "
                f"noise. Look at: {WHERE_TO_LOOK}."
            )
        return f"step {step}: {told}; the run stops after {self.steps} such steps in a row" if self.over == 1 else None
