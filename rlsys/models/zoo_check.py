"""Which models this project computes right: the zoo, packed and plain, against transformers' own forward of each row alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlsys.data.trajectories import LEARNER
from rlsys.models.loading import ModelError
from rlsys.models.packing import plan_micro_batches
from rlsys.models.self_check import checked_policy
from rlsys.models.zoo import FAMILIES, VOCABULARY, Family, build

TEMPERATURE = 0.8
"""Of the comparison: not 1, so that a cap and a temperature in the wrong order show."""
LONGEST = 40
"""Tokens; no row of `rows` is longer."""
TOLERANCE = 1e-3
"""Nats that a log-probability, and share that a gradient, may be off in float32 and still count as right."""

Verdict = Literal["packed", "plain", "refused", "WRONG", "CRASH"]
"""packed: right with learner.packing=true. plain: refused there, right with learner.packing=false. refused: by both. WRONG: accepted by
one of them, and not what transformers computes. CRASH: an error that says neither what is wrong nor what to do."""


@dataclass(frozen=True)
class Outcome:
    """What came of one way to compute a model."""

    error: float | None = None
    """Largest difference of a log-probability, in nats; None: it was not computed."""
    gradient: float | None = None
    """Norm of the difference of the gradient, as a share of the gradient's norm."""
    refused: str | None = None
    """What the project said instead."""
    crashed: str | None = None
    """What came instead of an answer or a refusal."""

    @property
    def right(self) -> bool:
        return self.error is not None and self.error <= TOLERANCE and self.gradient is not None and self.gradient <= TOLERANCE


@dataclass(frozen=True)
class FamilyResult:
    """One member of the zoo."""

    family: str
    architecture: str
    """Of transformers."""
    packed: Outcome
    plain: Outcome

    @property
    def verdict(self) -> Verdict:
        ways = (self.packed, self.plain)
        if any(way.error is not None and not way.right for way in ways):
            return "WRONG"
        if any(way.crashed for way in ways):
            return "CRASH"
        return "packed" if self.packed.right else "plain" if self.plain.right else "refused"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"verdict": self.verdict, **asdict(self)}


def measure_all(families: Iterable[Family] = FAMILIES) -> Iterator[FamilyResult]:
    """One after the other."""
    return map(measure, families)


def measure(family: Family) -> FamilyResult:
    """Make a policy of the family's tiny model as a learner does, self-check included, and compare it with the untouched model."""
    try:
        model = build(family)
        # Its fused attention leaves out caps of scores.
        model.set_attn_implementation("eager")
        wanted = reference(model, rows())
    except Exception as error:  # noqa: BLE001 - whatever it is, it becomes a row of the table
        way = Outcome(crashed=f"transformers itself: {_one_line(error)}")
        return FamilyResult(family.name, family.model_type, way, way)
    ways = [_measure(build(family), packing, *wanted) for packing in (True, False)]
    return FamilyResult(family.name, type(model).__name__, *ways)


def rows() -> pa.RecordBatch:
    """LEARNER rows: two groups and a single row whose prompts begin alike, completions of unequal lengths; some 30 tokens each."""
    draw = np.random.default_rng(0)

    def tokens(count: int) -> list[int]:
        return draw.integers(3, VOCABULARY, count).tolist()

    shared = tokens(11)
    groups = [(shared + tokens(9), (5, 14, 9)), (shared + tokens(3), (12, 7)), (shared + tokens(14), (10,))]
    table = [
        {"group": number, "prompt_tokens": prompt, "tokens": tokens(length), "rollout_logprobs": None, "advantage": draw.normal()}
        for number, (prompt, lengths) in enumerate(groups)
        for length in lengths
    ]
    return pa.RecordBatch.from_pylist(table, schema=LEARNER)


def reference(model: PreTrainedModel, batch: pa.RecordBatch) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Log-probabilities of each row's completion by the model's own forward of that row alone, and the gradient of their sum, weighted by
    the row's advantage.
    """
    found = []
    model.zero_grad()
    for row in batch.to_pylist():
        prompt, completion = row["prompt_tokens"], torch.tensor(row["tokens"])
        logits = model(input_ids=torch.tensor([prompt + row["tokens"]])[:, :-1], use_cache=False).logits[0, len(prompt) - 1 :]
        logprobs = torch.log_softmax(logits.double() / TEMPERATURE, dim=-1)[torch.arange(len(completion)), completion]
        (row["advantage"] * logprobs.sum()).backward()
        found.append(logprobs.detach())
    return found, _gradients(model)


def _measure(model: PreTrainedModel, packing: bool, wanted: Sequence[Tensor], gradients: dict[str, Tensor]) -> Outcome:
    try:
        policy, _ = checked_policy(model, packing, temperature=TEMPERATURE, longest=LONGEST)
    except ModelError as error:
        return Outcome(refused=_one_line(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, it becomes a row of the table
        return Outcome(crashed=f"at load: {_one_line(error)}")
    error = 0.0
    try:
        for part in plan_micro_batches(rows(), 1, 256, packing)[0]:
            logprob = policy(part, temperature=TEMPERATURE).logprob
            (logprob * part.advantage).sum().backward()
            for row in part.sample.unique().tolist():
                error = max(error, (logprob.detach()[part.sample == row] - wanted[row]).abs().max().item())
    except ModelError as refusal:
        return Outcome(refused=_one_line(refusal))
    except Exception as failure:  # noqa: BLE001
        return Outcome(crashed=f"in a step: {_one_line(failure)}")
    return Outcome(error=error, gradient=_difference(_gradients(policy.model), gradients))


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def _difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Norm of the difference as a share of the norm of `theirs`; a parameter without a gradient has a zero one."""
    squares = [
        (ours[name] - theirs[name] if ours.keys() & theirs.keys() >= {name} else ours.get(name, theirs.get(name))).double().square().sum()
        for name in ours.keys() | theirs.keys()
    ]
    whole = sum(gradient.double().square().sum() for gradient in theirs.values())
    return float((sum(squares) / whole).sqrt())


def _one_line(error: Exception) -> str:
    return f"{'' if isinstance(error, ValueError) else type(error).__name__ + ': '}{' '.join(str(error).split())}"
