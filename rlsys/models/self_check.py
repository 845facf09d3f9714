"""Load-time check that the model, as it will train, agrees with transformers' reference implementation.

A few tokens run through transformers' own forward, one row at a time, and then through the policy (or the scalar model) with the
configured packing, layers, attention and temperature. Values and a gradient are compared. No second copy of the weights is made: the
reference runs first, then the same module is prepared for training.

Differences up to `FLOOR` are accepted. For larger ones the tolerance is measured: the reference runs again with the output of each leaf
module perturbed by up to half a unit in the last place of its dtype, and the resulting difference times `MARGIN` is the tolerance. Deep
models, large logits and routers near a tie thus get the tolerance that they need.

In bfloat16 this tolerance is up to half a nat, which would hide small mistakes. Models of up to `LARGE` weights are therefore compared in
float32 first (their weights are upcast temporarily and restored bit for bit) and then, without a gradient, in their own dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlsys.data.chain import LearnerBatch, LearnerRow
from rlsys.models.backbone import Attention, Backbone, Layers, RowTooLongError
from rlsys.models.fused_layers import unfuse_layers, wide_dtype
from rlsys.models.loading import ModelError
from rlsys.models.packing import MicroBatch, plan_micro_batches
from rlsys.models.policy import Policy
from rlsys.models.scalar import ScalarModel, text_ends
from rlsys.system.timing import PhaseTimer

MARGIN = 4.0
"""Tolerance as a multiple of the measured rounding noise: the fast paths round in other places, and more often."""
FLOOR = {torch.float32: 5e-4, torch.float64: 1e-6}
"""Difference, in nats or relative to a gradient's norm, that is always accepted; `FLOOR_16` for other dtypes."""
FLOOR_16 = 0.25
LARGE = 2**31
"""Number of weights up to which a model of a 16-bit dtype is also checked in float32."""
PROMPT, COMPLETIONS = 7, (9, 7)
"""Tokens of the shared prompt and of each row's completion."""
LONGEST_WINDOW = 64
"""Models with a sliding window or chunk of at most this length are checked on longer rows; models that pool tokens, always."""
GRADIENT_ELEMENTS = 2**25
"""Number of weights whose gradient is compared: all of a model up to this size, otherwise its vectors and the first matrices that fit."""


@dataclass(frozen=True)
class SelfCheck:
    """Measured errors (maxima) and their tolerances."""

    logprob_error: float
    """Nats per token; for a scalar model, in units of the score."""
    tolerance: float
    gradient_error: float | None
    """Distance between a weight's gradient and the reference, relative to the norm of the latter; None: not compared."""
    gradient_tolerance: float | None
    seconds: float

    @property
    def passed(self) -> bool:
        return self.logprob_error <= self.tolerance and (
            self.gradient_error is None or self.gradient_error <= (self.gradient_tolerance or 0)
        )


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
    """Build a policy from a causal language model, as `load_policy` does, and compare it with the reference implementation.

    Args:
        model: as returned by `from_pretrained`, on the device to check on; the policy takes ownership.
        temperature: sampling temperature of the log-probabilities, as in training.
        checkpointing: enable activation checkpointing, and check with it.
        gradient: also compare a gradient; without it the check costs a few short forward passes.
        longest: length in tokens of the longest row to expect; some models' positions are correct only up to a certain length.

    Raises:
        ModelError: the model cannot be trained with these settings, or its values differ; the message names a setting that works.
    """
    checker = _Checker(
        model,
        build=lambda packing, layers: Policy(model, packing, layers, attention),
        expected=partial(_expected_logprobs, temperature=temperature),
        actual=lambda policy, part: policy(part, temperature).logprob,
        rows_of=lambda part: part.sample,
        longest=longest,
    )
    return checker.run(_Setting(packing, layers, checkpointing), gradient)


def checked_scalar_model(
    model: PreTrainedModel,
    packing: bool = True,
    layers: Layers = "fused",
    attention: Attention = "blocks",
    checkpointing: bool = False,
    gradient: bool = True,
    longest: int = 0,
) -> tuple[ScalarModel, SelfCheck]:
    """Like `checked_policy`, for a sequence classifier with one output and the scores of a `ScalarModel`.

    Args:
        gradient: also compare a gradient; without it the check costs a few short forward passes.
    """
    checker = _Checker(
        model,
        build=lambda packing, layers: ScalarModel(model, packing, layers, attention),
        expected=_expected_score,
        actual=lambda scorer, part: scorer(part),
        rows_of=lambda part: part.sample[text_ends(part)],
        longest=longest,
    )
    return checker.run(_Setting(packing, layers, checkpointing), gradient)


class _Setting(NamedTuple):
    packing: bool
    layers: Layers
    checkpointing: bool


class _Outputs(NamedTuple):
    values: Tensor
    """Of all rows, concatenated."""
    gradients: list[Tensor]
    """Of the compared weights; empty without a gradient check."""


class _Errors(NamedTuple):
    values: float
    gradient: float | None


class _Attempt(NamedTuple):
    wrapped: Any
    """The policy or scalar model; None if it could not be built or run."""
    result: SelfCheck | None
    failure: str
    """Why it cannot be used; empty if it can."""


class _Checker:
    def __init__(
        self,
        model: PreTrainedModel,
        build: Callable[[bool, Layers], Backbone],
        expected: Callable[[PreTrainedModel, dict[str, Any]], Tensor],
        actual: Callable[[nn.Module, MicroBatch], Tensor],
        rows_of: Callable[[MicroBatch], Tensor],
        longest: int,
    ) -> None:
        """
        Args:
            expected: reference values of one row.
            actual: values of a micro-batch, computed by what `build` returns.
            rows_of: row of the batch that each of these values belongs to.
        """
        self.model, self.build, self.longest = model, build, longest
        self.expected, self.actual, self.rows_of = expected, actual, rows_of
        self.name, self.batch = type(model).__name__, _rows(model)
        self.weights: list[nn.Parameter] = []

    def run(self, setting: _Setting, gradient: bool = True) -> tuple[Any, SelfCheck]:
        timer = PhaseTimer()
        with timer.phase("check"):
            if self.model.dtype.itemsize < 4 and sum(weight.numel() for weight in self.model.parameters()) <= LARGE:
                with _upcast(self.model):
                    _, result = self._check(setting, gradient)
                wrapped, _ = self._check(setting, gradient=False)
            else:
                wrapped, result = self._check(setting, gradient)
        return wrapped, replace(result, seconds=timer.seconds["check"])

    def _check(self, setting: _Setting, gradient: bool) -> tuple[Any, SelfCheck]:
        self.weights = _compared_weights(self.model) if gradient else []
        try:
            with self._reference_mode():
                self.reference = self._outputs(self._reference_values)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # model code may fail in any way on text alone
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ModelError(
                f"{self.name}: transformers itself cannot compute rows of text with it ({reason}). Take another model."
            ) from error
        floor = FLOOR.get(self.model.dtype, FLOOR_16)
        tolerance = _Errors(floor, floor if gradient else None)
        attempt = self._try(setting, tolerance)
        if attempt.result and not attempt.result.passed:
            noise = self._rounding_noise()
            tolerance = _Errors(
                max(floor, MARGIN * noise.values),
                tolerance.gradient if noise.gradient is None else max(floor, MARGIN * noise.gradient),
            )
            attempt = self._try(setting, tolerance)
        if attempt.failure or attempt.result is None:
            raise ModelError(self._message(setting, tolerance, attempt.failure))
        return attempt.wrapped, attempt.result

    @contextmanager
    def _reference_mode(self) -> Iterator[None]:
        """Run the model as transformers implements it, with eager attention: fused attention ignores logit caps and sinks."""
        used = self.model.config._attn_implementation
        unfuse_layers(self.model.eval())
        self.model.set_attn_implementation("eager")
        yield
        self.model.set_attn_implementation(used)

    def _rounding_noise(self) -> _Errors:
        with self._reference_mode(), _ulp_noise(self.model):
            return _compare(self._outputs(self._reference_values), self.reference)

    def _try(self, setting: _Setting, tolerance: _Errors) -> _Attempt:
        try:
            wrapped = self.build(setting.packing, setting.layers)
            wrapped.check_length(self.longest)
            if setting.checkpointing:
                wrapped.enable_activation_checkpointing()
            wrapped.train()
            outputs = self._outputs(lambda: self._actual_values(wrapped, setting.packing))
        except (torch.OutOfMemoryError, RowTooLongError):
            raise
        except Exception as error:  # noqa: BLE001 - building it, or its first pass, may fail in any way
            return _Attempt(None, None, str(error).removeprefix(f"{self.name}: ") or type(error).__name__)
        errors = _compare(outputs, self.reference)
        result = SelfCheck(errors.values, tolerance.values, errors.gradient, tolerance.gradient, seconds=0.0)
        return _Attempt(wrapped, result, "" if result.passed else _difference(result))

    def _reference_values(self) -> list[Tensor]:
        return [self.expected(self.model, row) for row in self.batch.to_pylist()]

    def _actual_values(self, wrapped: nn.Module, packing: bool) -> list[Tensor]:
        values: list[Tensor] = [torch.empty(0)] * self.batch.num_rows
        device = next(self.model.parameters()).device
        for part in plan_micro_batches(self.batch, 1, 2**30, packing)[0]:
            part = part.to(device)
            found, rows = self.actual(wrapped, part), self.rows_of(part)
            for row in rows.unique().tolist():
                values[row] = found[rows == row]
        return values

    def _outputs(self, compute: Callable[[], list[Tensor]]) -> _Outputs:
        with torch.set_grad_enabled(bool(self.weights)):
            values = torch.cat(compute())
        gradients: list[Tensor] = []
        if self.weights:
            # Distinct factors, so that swapping two rows changes the gradient.
            factor = torch.linspace(0.5, 1.5, len(values), device=values.device)
            found = torch.autograd.grad((values * factor).sum(), self.weights, allow_unused=True)
            gradients = [torch.zeros_like(w) if g is None else g for w, g in zip(self.weights, found, strict=True)]
        return _Outputs(values.detach(), gradients)

    def _message(self, setting: _Setting, tolerance: _Errors, failure: str) -> str:
        text = f"{self.name} with learner.packing={str(setting.packing).lower()}, learner.layers={setting.layers}: {failure}"
        layers: Layers = "plain"
        alternatives = (setting._replace(layers=layers), setting._replace(packing=False), setting._replace(packing=False, layers=layers))
        for other in dict.fromkeys(alternatives):
            if other != setting and not self._try(other, tolerance).failure:
                changes = [f"learner.packing={str(other.packing).lower()}"] * (other.packing != setting.packing)
                changes += [f"learner.layers={other.layers}"] * (other.layers != setting.layers)
                return f"{text} Set {' and '.join(changes)}, which passes the same check."
        return f"{text} No other setting of learner.packing and learner.layers passes either: this model cannot be trained here."


def _difference(result: SelfCheck) -> str:
    text = (
        f"log-probabilities or scores differ from the reference implementation, each row alone, by up to {result.logprob_error:.2g} "
        f"(rounding explains {result.tolerance:.2g})"
    )
    if result.gradient_error is not None:
        text += f", gradients by {result.gradient_error:.2g} of their norm (rounding: {result.gradient_tolerance:.2g})"
    return text + "."


def _rows(model: PreTrainedModel) -> LearnerBatch:
    """Build two rows of random tokens, none of them special tokens, after one prompt."""
    config = model.config.get_text_config()
    configured = [value for key, value in config.to_dict().items() if key.endswith("token_id") and value is not None]
    special = {token for value in configured for token in (value if isinstance(value, list) else [value])}
    usable = torch.tensor([token for token in range(min(config.vocab_size, 2**15)) if token not in special])
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    lengths = [window for window in windows if window and window <= LONGEST_WINDOW]
    extra = max([*lengths, *(getattr(config, "compress_rates", None) or {}).values()], default=0)
    generator = torch.Generator().manual_seed(0)

    def sample(count: int) -> list[int]:
        tokens: list[int] = usable[torch.randint(len(usable), (count,), generator=generator)].tolist()
        return tokens

    prompt = sample(PROMPT + extra)
    return LearnerBatch.of([prompt], [LearnerRow(0, i, sample(n)) for i, n in enumerate(COMPLETIONS)])


def _expected_logprobs(model: PreTrainedModel, row: dict[str, Any], temperature: float) -> Tensor:
    prompt, tokens = row["prompt_token_ids"], row["token_ids"]
    device = next(model.parameters()).device
    logits = model(input_ids=torch.tensor([prompt + tokens], device=device), use_cache=False).logits[0, len(prompt) - 1 : -1]
    full = torch.log_softmax(logits.to(wide_dtype(logits)) / temperature, dim=-1)
    return full[torch.arange(len(tokens)), torch.tensor(tokens)]


def _expected_score(model: PreTrainedModel, row: dict[str, Any]) -> Tensor:
    ids = torch.tensor([row["prompt_token_ids"] + row["token_ids"][:-1]], device=next(model.parameters()).device)
    logits = model(input_ids=ids, use_cache=False).logits[0]
    return logits.to(wide_dtype(logits))


def _compared_weights(model: PreTrainedModel) -> list[nn.Parameter]:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    selected, room = [], GRADIENT_ELEMENTS
    for weight in sorted(weights, key=lambda weight: weight.ndim > 1):
        if weight.numel() <= room:
            selected.append(weight)
            room -= weight.numel()
    return selected


def _compare(actual: _Outputs, reference: _Outputs) -> _Errors:
    error = (actual.values - reference.values).abs().max().item()
    norms = [gradient.norm().item() for gradient in reference.gradients]
    # Weights with a negligible gradient, such as a router's at a tie, are measured relative to the largest one.
    least = 0.01 * max(norms, default=0.0)
    shares = [
        (ours - theirs).norm().item() / max(norm, least, 1e-30)
        for ours, theirs, norm in zip(actual.gradients, reference.gradients, norms, strict=True)
    ]
    return _Errors(_nan_to_inf(error), _nan_to_inf(max(shares)) if shares else None)


def _nan_to_inf(value: float) -> float:
    return torch.inf if math.isnan(value) else value


@contextmanager
def _upcast(model: nn.Module) -> Iterator[None]:
    """Convert weights and buffers to float32 in place, and restore their original bits afterwards."""
    tensors = [tensor for tensor in [*model.parameters(), *model.buffers()] if tensor.is_floating_point()]
    narrow = [(tensor, tensor.dtype) for tensor in tensors if tensor.dtype.itemsize < 4]
    for tensor, _ in narrow:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in narrow:
            tensor.data = tensor.data.to(dtype)


@contextmanager
def _ulp_noise(model: nn.Module) -> Iterator[None]:
    """Perturb every leaf module's output randomly by up to half a unit in the last place."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(0)

    def perturb(_: nn.Module, __: tuple[Tensor, ...], out: Any) -> Any:
        if not isinstance(out, Tensor) or not out.is_floating_point():
            return out
        noise = torch.rand(out.shape, generator=generator, device=out.device, dtype=wide_dtype(out)) * 2 - 1
        return (out * (1 + noise * torch.finfo(out.dtype).eps / 2)).to(out.dtype)

    handles = [module.register_forward_hook(perturb) for module in model.modules() if not list(module.children())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
