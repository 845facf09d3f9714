"""Measure which models are computed correctly: the zoo, packed and plain, against transformers' own forward of each row alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlsys.data.chain import LearnerBatch, LearnerRow
from rlsys.models.loading import ModelError
from rlsys.models.packing import plan_micro_batches
from rlsys.models.self_check import checked_policy
from rlsys.models.zoo import FAMILIES, VOCABULARY, Family, build

TEMPERATURE = 0.8
"""Not 1, so that applying a cap and the temperature in the wrong order is detected."""
LONGEST = 40
"""Maximum length in tokens of the rows of `rows`."""
TOLERANCE = 1e-3
"""Largest error in float32 that counts as correct: nats for a log-probability, relative to the norm for a gradient."""

Verdict = Literal["packed", "plain", "refused", "WRONG", "CRASH"]
"""packed: correct with learner.packing=true. plain: refused with it, correct with learner.packing=false. refused: with both. WRONG:
accepted with one of them, but different from transformers. CRASH: an error without an explanation or advice."""


@dataclass(frozen=True)
class Outcome:
    """Result for one setting of learner.packing."""

    error: float | None = None
    """Largest difference of a log-probability, in nats; None: not computed."""
    gradient: float | None = None
    """Norm of the gradient's difference, relative to the gradient's norm."""
    refused: str | None = None
    """Message of the refusal."""
    crashed: str | None = None
    """Message of any other error."""

    @property
    def correct(self) -> bool:
        return self.error is not None and self.error <= TOLERANCE and self.gradient is not None and self.gradient <= TOLERANCE


@dataclass(frozen=True)
class FamilyResult:
    """Results for one member of the zoo."""

    family: str
    architecture: str
    """Name of its class in transformers."""
    packed: Outcome
    plain: Outcome

    @property
    def verdict(self) -> Verdict:
        outcomes = (self.packed, self.plain)
        if any(outcome.error is not None and not outcome.correct for outcome in outcomes):
            return "WRONG"
        if any(outcome.crashed for outcome in outcomes):
            return "CRASH"
        return "packed" if self.packed.correct else "plain" if self.plain.correct else "refused"

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible form."""
        return {"verdict": self.verdict, **asdict(self)}


def measure_all(families: Iterable[Family] = FAMILIES) -> Iterator[FamilyResult]:
    """Measure families lazily, in order."""
    return map(measure, families)


def measure(family: Family) -> FamilyResult:
    """Build a policy from the family's tiny model as a learner does, self-check included, and compare it with transformers."""
    try:
        model = build(family)
        # PyTorch's fused attention ignores caps on scores.
        model.set_attn_implementation("eager")
        expected = reference(model, rows())
    except Exception as error:  # noqa: BLE001 - any error becomes a row of the table
        outcome = Outcome(crashed=f"transformers itself: {_one_line(error)}")
        return FamilyResult(family.name, family.model_type, outcome, outcome)
    packed, plain = (_measure(build(family), packing, *expected) for packing in (True, False))
    return FamilyResult(family.name, type(model).__name__, packed, plain)


def rows() -> LearnerBatch:
    """Build rows of about 30 tokens: two groups and a single row, with a common prompt prefix and unequal completions."""
    generator = np.random.default_rng(0)

    def tokens(count: int) -> list[int]:
        found: list[int] = generator.integers(3, VOCABULARY, count).tolist()
        return found

    shared = tokens(11)
    groups = [(shared + tokens(9), (5, 14, 9)), (shared + tokens(3), (12, 7)), (shared + tokens(14), (10,))]
    completions = [
        LearnerRow(number, sample, tokens(length), advantage=generator.normal())
        for number, (_, lengths) in enumerate(groups)
        for sample, length in enumerate(lengths)
    ]
    return LearnerBatch.of([prompt for prompt, _ in groups], completions)


def reference(model: PreTrainedModel, batch: LearnerBatch) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Compute log-probabilities of each row's completion by the model's own forward on that row alone.

    Returns:
        One tensor of log-probabilities per row, and the gradient of their sum weighted by advantages.
    """
    found = []
    model.zero_grad()
    for row in batch.to_pylist():
        prompt, completion = row["prompt_token_ids"], torch.tensor(row["token_ids"])
        logits = model(input_ids=torch.tensor([prompt + row["token_ids"]])[:, :-1], use_cache=False).logits[0, len(prompt) - 1 :]
        logprobs = torch.log_softmax(logits.double() / TEMPERATURE, dim=-1)[torch.arange(len(completion)), completion]
        (row["advantage"] * logprobs.sum()).backward()
        found.append(logprobs.detach())
    return found, _gradients(model)


def _measure(model: PreTrainedModel, packing: bool, expected: Sequence[Tensor], gradients: dict[str, Tensor]) -> Outcome:
    try:
        policy, _ = checked_policy(model, packing, temperature=TEMPERATURE, longest=LONGEST)
    except ModelError as refusal:
        return Outcome(refused=_one_line(refusal))
    except Exception as failure:  # noqa: BLE001 - any error becomes a row of the table
        return Outcome(crashed=f"at load: {_one_line(failure)}")
    error = 0.0
    try:
        for part in plan_micro_batches(rows(), 1, 256, packing)[0]:
            logprob = policy(part, temperature=TEMPERATURE).logprob
            (logprob * part.advantage).sum().backward()
            for row in part.sample.unique().tolist():
                error = max(error, (logprob.detach()[part.sample == row] - expected[row]).abs().max().item())
    except ModelError as refusal:
        return Outcome(refused=_one_line(refusal))
    except Exception as failure:  # noqa: BLE001
        return Outcome(crashed=f"in a step: {_one_line(failure)}")
    return Outcome(error=error, gradient=_difference(_gradients(policy.model), gradients))


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def _difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Return the norm of the difference relative to the norm of `theirs`; missing gradients count as zero."""
    differences = {name: gradient.double() for name, gradient in theirs.items()}
    for name, gradient in ours.items():
        differences[name] = differences.get(name, torch.zeros((), dtype=torch.float64)) - gradient.double()
    return math.sqrt(_squared_norm(differences) / _squared_norm(theirs))


def _squared_norm(gradients: dict[str, Tensor]) -> float:
    return math.fsum(gradient.double().square().sum().item() for gradient in gradients.values())


def _one_line(error: Exception) -> str:
    return f"{'' if isinstance(error, ValueError) else type(error).__name__ + ': '}{' '.join(str(error).split())}"
