"""Before anything starts: does the model, as it will train, say what the untouched model says?

A few tokens go through transformers' own forward, each row alone, and then through the policy (or the scalar model) with its packing, its
layers, its attention and its temperature. Values and a gradient are compared. No second copy of the weights exists: the untouched
model answers first, then the same module is made ready for training.

Up to `FLOOR` a difference is let pass. Beyond it, what rounding may explain is measured, not guessed: the untouched model answers once more
with the output of each of its innermost modules off by at most half a unit in the last place of its dtype, and the difference that this
makes, times `MARGIN`, is the tolerance. So deep models, large logits and routers near a tie get the room that they need.

In bfloat16 that room is up to half a nat, in which a small mistake would hide. So a model of up to `LARGE` weights is compared in
float32 first, to which its weights are widened for the moment and from which they come back bit by bit, and then once more, without a
gradient, in its own dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlsys.data.trajectories import LEARNER
from rlsys.models.backbone import Attention, Layers, RowTooLongError
from rlsys.models.fused_layers import unfuse_layers, wide_dtype
from rlsys.models.loading import ModelError
from rlsys.models.packing import MicroBatch, plan_micro_batches
from rlsys.models.policy import Policy
from rlsys.models.scalar import ScalarModel, text_ends
from rlsys.system.timing import PhaseTimer

MARGIN = 4.0
"""How many times the measured rounding noise an error may be: the fast paths round at other places, and more often."""
FLOOR = {torch.float32: 5e-4, torch.float64: 1e-6}
"""Nats, and share of a gradient, that are always allowed; of other dtypes `FLOOR_16`."""
FLOOR_16 = 0.25
LARGE = 2**31
"""Weights up to which a model of a narrower dtype is widened."""
PROMPT, COMPLETIONS = 7, (9, 7)
"""Tokens of the prompt that the rows share, and of each row's completion."""
LONGEST_WINDOW = 64
"""A model whose sliding window or chunk is at most this long is tried on rows that are longer; one that pools tokens, always."""
GRADIENT_ELEMENTS = 2**25
"""Weights whose gradient is compared; all of a model up to this size, else its vectors and its first matrices that fit."""


@dataclass(frozen=True)
class SelfCheck:
    """What was measured; errors are the largest ones."""

    logprob_error: float
    """Nats per token; of a scalar model, the score's own unit."""
    tolerance: float
    gradient_error: float | None
    """Distance of a weight's gradient from the untouched model's, as a share of its length; None: not asked for."""
    gradient_tolerance: float | None
    seconds: float

    @property
    def passed(self) -> bool:
        return self.logprob_error <= self.tolerance and (self.gradient_error is None or self.gradient_error <= self.gradient_tolerance)


def checked_policy(
    model: PreTrainedModel,
    packing: bool = True,
    layers: Layers = "fused",
    attention: Attention = "blocks",
    temperature: float = 1.0,
    checkpointing: bool = False,
    gradient: bool = True,
    longest: int = 0,
) -> tuple[Policy, SelfCheck]:
    """Make a policy of a causal language model, as `load_policy` does, and compare it with the untouched model.

    Args:
        model: as `from_pretrained` returned it, on the device on which to check; it becomes the policy's.
        temperature: of the log-probabilities, as in training.
        checkpointing: turn activation checkpointing on, and check with it.
        gradient: compare a gradient, too; without it the check costs a few short forward passes.
        longest: tokens of the longest row that will come; some models' positions are right up to a length only.

    Raises:
        ModelError: the model cannot be trained like this, or computes something else; the message says which setting works.
    """
    expected = partial(_expected_logprobs, temperature=temperature)
    checker = _Checker(model, longest, expected, lambda policy, part: policy(part, temperature).logprob)
    return checker.run(lambda packing, layers: Policy(model, packing, layers, attention), packing, layers, checkpointing, gradient)


def checked_scalar_model(
    model: PreTrainedModel,
    packing: bool = True,
    layers: Layers = "fused",
    attention: Attention = "blocks",
    checkpointing: bool = False,
    gradient: bool = True,
    longest: int = 0,
) -> tuple[ScalarModel, SelfCheck]:
    """The same for a sequence classifier of one output and the scores of a `ScalarModel`."""
    checker = _Checker(model, longest, _expected_score, lambda scorer, part: scorer(part), lambda part: part.sample[text_ends(part)])
    return checker.run(lambda packing, layers: ScalarModel(model, packing, layers, attention), packing, layers, checkpointing, gradient)


Answer = tuple[Tensor, list[Tensor]]
"""Values, row after row, and gradients of some weights (none when not asked for)."""


class _Checker:
    def __init__(
        self,
        model: PreTrainedModel,
        longest: int,
        expected: Callable[[PreTrainedModel, dict[str, Any]], Tensor],
        found: Callable[[nn.Module, MicroBatch], Tensor],
        rows_of: Callable[[MicroBatch], Tensor] = lambda part: part.sample,
    ) -> None:
        self.model, self.expected, self.found, self.rows_of = model, expected, found, rows_of
        self.longest, self.batch = longest, _rows(model)

    def run(
        self, build: Callable[[bool, Layers], nn.Module], packing: bool, layers: Layers, checkpointing: bool, gradient: bool
    ) -> tuple[Any, SelfCheck]:
        clock = PhaseTimer()
        with clock.phase("check"):
            if self.model.dtype.itemsize < 4 and sum(weight.numel() for weight in self.model.parameters()) <= LARGE:
                with _upcast(self.model):
                    _, result = self._check(build, packing, layers, checkpointing, gradient)
                wrapped, _ = self._check(build, packing, layers, checkpointing, gradient=False)
            else:
                wrapped, result = self._check(build, packing, layers, checkpointing, gradient)
        return wrapped, replace(result, seconds=clock.seconds["check"])

    def _check(
        self, build: Callable[[bool, Layers], nn.Module], packing: bool, layers: Layers, checkpointing: bool, gradient: bool
    ) -> tuple[Any, SelfCheck]:
        self.weights = _chosen(self.model) if gradient else []
        try:
            with self._reference_mode():
                self.wanted = self._answer(self._rows_wanted)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # it can be anything that a model does with text alone
            told = " ".join(str(error).split()) or type(error).__name__
            name = type(self.model).__name__
            raise ModelError(f"{name}: transformers itself cannot compute rows of text with it ({told}). Take another model.") from error
        wrapped, result, reason = self._try(build, packing, layers, checkpointing)
        if result and not result.passed:
            noise = self._noise()
            result = replace(result, tolerance=max(result.tolerance, MARGIN * noise.logprob_error))
            if noise.gradient_error is not None:
                result = replace(result, gradient_tolerance=max(result.gradient_tolerance, MARGIN * noise.gradient_error))
            wrapped, result, reason = self._try(build, packing, layers, checkpointing, result)
        if reason:
            raise ModelError(self._message(build, packing, layers, checkpointing, result, reason))
        return wrapped, result

    @contextmanager
    def _reference_mode(self) -> Iterator[None]:
        # Not PyTorch's fused attention, which has no place for some models' caps and sinks and leaves them out.
        used = self.model.config._attn_implementation
        unfuse_layers(self.model.eval())
        self.model.set_attn_implementation("eager")
        yield
        self.model.set_attn_implementation(used)

    def _noise(self) -> SelfCheck:
        with self._reference_mode(), _ulp_noise(self.model):
            return _compare(self._answer(self._rows_wanted), self.wanted)

    def _try(
        self,
        build: Callable[[bool, Layers], nn.Module],
        packing: bool,
        layers: Layers,
        checkpointing: bool,
        known: SelfCheck | None = None,
    ) -> tuple[nn.Module | None, SelfCheck | None, str]:
        """The wrapped model, the measurement, and why it cannot be used: empty if it can. `known` has tolerances that were measured."""
        try:
            wrapped = build(packing, layers)
            wrapped.check_length(self.longest)
            if checkpointing:
                wrapped.enable_activation_checkpointing()
            wrapped.train()
            found = self._answer(lambda: self._rows_found(wrapped, packing))
        except (torch.OutOfMemoryError, RowTooLongError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever building it, or its first pass, ends in
            return None, None, str(error).removeprefix(f"{type(self.model).__name__}: ") or type(error).__name__
        floor = FLOOR.get(self.model.dtype, FLOOR_16)
        of_gradient = (known.gradient_tolerance if known else floor) if self.weights else None
        result = replace(_compare(found, self.wanted), tolerance=known.tolerance if known else floor, gradient_tolerance=of_gradient)
        return wrapped, result, "" if result.passed else _difference(result)

    def _rows_wanted(self) -> list[Tensor]:
        return [self.expected(self.model, row) for row in self.batch.to_pylist()]

    def _rows_found(self, wrapped: nn.Module, packing: bool) -> list[Tensor]:
        values: list[Tensor] = [torch.empty(0)] * self.batch.num_rows
        device = next(self.model.parameters()).device
        for part in plan_micro_batches(self.batch, 1, 2**30, packing)[0]:
            part = part.to(device)
            answer, rows = self.found(wrapped, part), self.rows_of(part)
            for row in rows.unique().tolist():
                values[row] = answer[rows == row]
        return values

    def _answer(self, compute: Callable[[], list[Tensor]]) -> Answer:
        with torch.set_grad_enabled(bool(self.weights)):
            values = torch.cat(compute())
        gradients: list[Tensor] = []
        if self.weights:
            # Of a sum whose terms have weights of their own, so that no two rows can take each other's place.
            factor = torch.linspace(0.5, 1.5, len(values), device=values.device)
            found = torch.autograd.grad((values * factor).sum(), self.weights, allow_unused=True)
            gradients = [torch.zeros_like(w) if g is None else g for w, g in zip(self.weights, found, strict=True)]
        return values.detach(), gradients

    def _message(
        self,
        build: Callable[[bool, Layers], nn.Module],
        packing: bool,
        layers: Layers,
        checkpointing: bool,
        known: SelfCheck | None,
        reason: str,
    ) -> str:
        said = f"{type(self.model).__name__} with learner.packing={str(packing).lower()}, learner.layers={layers}: {reason}"
        for other_packing, other_layers in dict.fromkeys([(packing, "plain"), (False, layers), (False, "plain")]):
            if (other_packing, other_layers) == (packing, layers):
                continue
            if not self._try(build, other_packing, other_layers, checkpointing, known)[2]:
                changes = [f"learner.packing={str(other_packing).lower()}"] * (other_packing != packing)
                changes += [f"learner.layers={other_layers}"] * (other_layers != layers)
                return f"{said} Set {' and '.join(changes)}, which passes the same check."
        return f"{said} No other setting of learner.packing and learner.layers passes either: this model cannot be trained here."


def _difference(result: SelfCheck) -> str:
    text = (
        f"log-probabilities or scores differ from those of the untouched model, each row alone, by up to {result.logprob_error:.2g} "
        f"(rounding explains {result.tolerance:.2g})"
    )
    if result.gradient_error is not None:
        text += f", gradients by {result.gradient_error:.2g} of their length (rounding: {result.gradient_tolerance:.2g})"
    return text + "."


def _rows(model: PreTrainedModel) -> pa.RecordBatch:
    """Two rows of random tokens after one prompt, none of them special to the model."""
    config = model.config.get_text_config()
    special = [value for key, value in config.to_dict().items() if key.endswith("token_id") and value is not None]
    special = {id for value in special for id in (value if isinstance(value, list) else [value])}
    usable = torch.tensor([id for id in range(min(config.vocab_size, 2**15)) if id not in special])
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    windows = [window for window in windows if window and window <= LONGEST_WINDOW]
    beyond = max([*windows, *(getattr(config, "compress_rates", None) or {}).values()], default=0)
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> list[int]:
        return usable[torch.randint(len(usable), (count,), generator=generator)].tolist()

    prompt = draw(PROMPT + beyond)
    rows = [{"group": 0, "prompt_tokens": prompt, "tokens": draw(n), "rollout_logprobs": None, "advantage": 1.0} for n in COMPLETIONS]
    return pa.RecordBatch.from_pylist(rows, schema=LEARNER)


def _expected_logprobs(model: PreTrainedModel, row: dict[str, Any], temperature: float) -> Tensor:
    prompt, tokens = row["prompt_tokens"], row["tokens"]
    device = next(model.parameters()).device
    logits = model(input_ids=torch.tensor([prompt + tokens], device=device), use_cache=False).logits[0, len(prompt) - 1 : -1]
    full = torch.log_softmax(logits.to(wide_dtype(logits)) / temperature, dim=-1)
    return full[torch.arange(len(tokens)), torch.tensor(tokens)]


def _expected_score(model: PreTrainedModel, row: dict[str, Any]) -> Tensor:
    ids = torch.tensor([row["prompt_tokens"] + row["tokens"][:-1]], device=next(model.parameters()).device)
    logits = model(input_ids=ids, use_cache=False).logits[0]
    return logits.to(wide_dtype(logits))


def _chosen(model: PreTrainedModel) -> list[nn.Parameter]:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    chosen, room = [], GRADIENT_ELEMENTS
    for weight in sorted(weights, key=lambda weight: weight.ndim > 1):
        if weight.numel() <= room:
            chosen.append(weight)
            room -= weight.numel()
    return chosen


def _compare(found: Answer, wanted: Answer) -> SelfCheck:
    error = (found[0] - wanted[0]).abs().max().item()
    lengths = [gradient.norm().item() for gradient in wanted[1]]
    # Weights that hardly matter, a router's at a tie, say, are measured by those that do.
    least = 0.01 * max(lengths, default=0.0)
    shares = [
        (ours - theirs).norm().item() / max(length, least, 1e-30) for ours, theirs, length in zip(found[1], wanted[1], lengths, strict=True)
    ]
    of_gradient = max(shares, default=None)
    return SelfCheck(_finite(error), 0.0, None if of_gradient is None else _finite(of_gradient), None, 0.0)


def _finite(value: float) -> float:
    return value if value == value else torch.inf


@contextmanager
def _upcast(model: nn.Module) -> Iterator[None]:
    """Weights and buffers in float32; each keeps its identity, and its bits after that."""
    narrow = [(tensor, tensor.dtype) for tensor in [*model.parameters(), *model.buffers()] if tensor.is_floating_point()]
    narrow = [(tensor, dtype) for tensor, dtype in narrow if dtype.itemsize < 4]
    for tensor, _ in narrow:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in narrow:
            tensor.data = tensor.data.to(dtype)


@contextmanager
def _ulp_noise(model: nn.Module) -> Iterator[None]:
    """Every innermost module's output is off by up to half a unit in the last place, at random."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(0)

    def off(_: nn.Module, __: tuple, out: Any) -> Any:
        if not isinstance(out, Tensor) or not out.is_floating_point():
            return out
        noise = torch.rand(out.shape, generator=generator, device=out.device, dtype=wide_dtype(out)) * 2 - 1
        return (out * (1 + noise * torch.finfo(out.dtype).eps / 2)).to(out.dtype)

    handles = [module.register_forward_hook(off) for module in model.modules() if not list(module.children())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
