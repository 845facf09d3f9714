"""Run-time check that the inference engine and the trainer compute the same model.

The trainer recomputes the log-probability of every sampled token. Rounding explains differences of at most a few hundredths of a nat in
bfloat16, and far less in float32. An incorrectly computed model or missing weight updates cause differences of tenths to whole nats;
importance weights hide those from the loss, but not from what the policy learns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlsys.config.schema import Config

DRIFT = 0.2
"""Allowance in nats for each weight version that a sample lags behind: the mean change of a token's log-probability by one update. By
Pinsker's inequality it corresponds to a divergence of 0.02 nats, several times that of an ordinary step (docs/models.md)."""

CAUSES = (
    "the model family (docs/models.md lists those that the trainer supports; the engine may compute another model); its RoPE scaling "
    "(implementations of longrope, dynamic and yarn differ); model.dtype and quantized checkpoints; the tokenizer and chat template, "
    "if files in the model's folder were edited by hand; the engine's kernels (rollout.enforce_eager=true selects the plain ones); and "
    "its weights (weights.verify=true compares them after every transfer)"
)


class MismatchError(RuntimeError):
    """Trainer and engine do not compute the same model. The message has the figures, the setting, and what to check."""


@dataclass
class MismatchGuard:
    """Stops the run once the mismatch between trainer and engine was too large in `steps` consecutive steps."""

    limit: float | None
    """Largest acceptable mean |trainer - engine| log-probability per token, in nats; None means no limit."""
    steps: int
    setting: str
    """Config key of `limit`."""
    slack: float = 0.0
    """Additional allowance, in nats."""
    over: int = 0
    """Current number of consecutive steps over the limit."""

    @classmethod
    def from_config(cls, config: Config) -> MismatchGuard:
        """Create the guard of a run.

        With top_p below 1 the engine normalises over the nucleus alone, which raises its probabilities by a factor of up to 1 / top_p.
        """
        setting = f"mismatch_{config.model.dtype}"
        return cls(getattr(config.rl, setting), config.rl.mismatch_steps, f"rl.{setting}", -math.log(config.rollout.top_p))

    def check(self, step: int, mismatch: float | None, lag: int = 0) -> str | None:
        """Check the mismatch of one step.

        Args:
            mismatch: mean over the step's tokens, in nats; None if nothing was trained, in which case the step is ignored.
            lag: weight versions by which its oldest sample lags behind.

        Returns:
            a warning at the first of consecutive steps over the limit; otherwise None.

        Raises:
            MismatchError: the mismatch was too large, or NaN, in `steps` consecutive steps.
        """
        if self.limit is None or mismatch is None:
            return None
        allowed = self.limit + self.slack + lag * DRIFT
        if mismatch <= allowed:
            self.over = 0
            return None
        self.over += 1
        message = f"trainer and engine differ by {mismatch:.3g} nats per token, {self.setting} allows {allowed:.3g}"
        if self.over >= self.steps:
            raise MismatchError(
                f"step {step}: {message}, for {self.over} consecutive step(s): they do not compute the same model, and the run would train "
                f"on noise. Check {CAUSES}."
            )
        return f"step {step}: {message}; the run stops after {self.steps} consecutive such steps" if self.over == 1 else None
