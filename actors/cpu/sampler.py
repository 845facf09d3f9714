"""Token sampling of CPU engines: by inverting the cumulative distribution, with one uniform random number per token.

vLLM generates noise for every vocabulary entry and takes the argmax of noise plus logit. On a CPU that noise is a large part of the
time of decoding many sequences (`rlsys bench rollout --samples 64`); cumulative sums over the vocabulary are far cheaper, and exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SampledTokens = tuple[list[int], list[float], list[float]]
"""Tokens, their log-probabilities, and the self-certainties of the distributions they were sampled from (0 where that is off)."""
BLOCK = 256
"""Vocabulary entries per block whose probabilities are summed first: two short searches instead of a long one."""
ROWS = 16
"""Rows processed at a time, so that their probabilities stay in the CPU cache."""


def sample_tokens(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """Sample one token per row, token v with probability exp(logprobs[row, v]).

    Args:
        logprobs: float32 [B, V], normalised; -inf for tokens that must not be sampled.
        uniforms: float64 [B] in [0, 1); they determine the tokens.
    Returns:
        int64 [B].
    """
    vocabulary = logprobs.shape[1]
    blocks = -(-vocabulary // BLOCK)
    buffer = logprobs.new_zeros(min(ROWS, len(logprobs)), blocks * BLOCK)
    tokens = []
    for rows, uniform in zip(logprobs.split(ROWS), uniforms[:, None].split(ROWS)):
        probabilities = buffer[: len(rows)]
        torch.exp(rows, out=probabilities[:, :vocabulary])
        probabilities = probabilities.view(len(rows), blocks, BLOCK)
        block, rest = _invert(probabilities.sum(dim=-1), uniform, of_total=True)
        inside = probabilities[torch.arange(len(rows)), block[:, 0]]
        tokens.append((block * BLOCK + _invert(inside, rest)[0])[:, 0])
    return torch.cat(tokens)


def _invert(weights: Tensor, target: Tensor, of_total: bool = False) -> tuple[Tensor, Tensor]:
    """Return, per row of weights [B, N] >= 0, the first index whose cumulative sum exceeds target [B, 1], and the remainder there.

    `of_total`: target is a fraction of the sum. An index of weight zero is never returned: a target that rounding has raised to the sum
    is kept just below it.
    """
    sums = weights.cumsum(dim=-1, dtype=torch.float64)
    total = sums[:, -1:]
    target = torch.minimum(target * total if of_total else target, torch.nextafter(total, torch.zeros_like(total)))
    index = torch.searchsorted(sums, target, right=True)
    before = sums.gather(1, index) - weights.gather(1, index)
    return index, (target - before).clamp_(min=0)


def sample(logits: Tensor, generators: dict[int, torch.Generator]) -> tuple[Tensor, Tensor]:
    """Sample from logits [B, V]; returns tokens (int64 [B]) and log-probabilities (float32 [B, V]). `generators`: those of seeded rows."""
    logprobs = logits.log_softmax(dim=-1, dtype=torch.float32)
    uniforms = torch.rand(len(logits), dtype=torch.float64)
    for row, generator in generators.items():
        uniforms[row] = torch.rand((), dtype=torch.float64, generator=generator)
    return sample_tokens(logprobs, uniforms), logprobs


def self_certainty(logits: Tensor) -> Tensor:
    """Return the self-certainty of logits [B, V]: KL divergence from the uniform distribution, -1/V sum_v ln(V p_v), in nats; float [B].

    Eq. 8 of arXiv 2502.18581, for one token. Masked entries (-inf) are left out.
    """
    allowed = logits > -torch.inf
    count = allowed.sum(dim=-1)
    mean = torch.where(allowed, logits, 0.0).sum(dim=-1, dtype=torch.float32) / count
    return torch.logsumexp(logits.float(), dim=-1) - mean - count.log()


class CpuSampler:
    """Replaces the sampling step of a vLLM sampler (0.32, logprobs_mode "processed_logprobs"), after temperature, top-k and top-p.

    It can also keep the sampled tokens for `take`. vLLM would send their log-probabilities to the front end token by token, as arrays of
    one entry each, which takes longer than sampling; it has no self-certainty.

    Args:
        keep: keep each sampled token and its log-probability.
        certainty: also keep the self-certainty of the distribution it was sampled from.
    """

    def __init__(self, model_runner: Any, keep: bool, certainty: bool = False):
        from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

        sampler = model_runner.sampler
        if sampler.logprobs_mode != "processed_logprobs":
            raise ValueError(f"logprobs_mode is {sampler.logprobs_mode!r}; expected processed_logprobs.")
        self._runner, self._vllm_sample, self._certainty = model_runner, sampler.sample, certainty
        self._kept: dict[int, SampledTokens] = {}
        sampler.topk_topp_sampler.forward = lambda logits, generators, k, p: sample(apply_top_k_top_p(logits, k, p), generators)
        if keep:
            sampler.sample = self._sample

    def _sample(self, logits: Tensor, *arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor | None]:
        # Before vLLM divides the logits by the temperature in place: self-certainty is that of the model itself.
        certainties = self_certainty(logits).tolist() if self._certainty else [0.0] * len(logits)
        tokens, logprobs = self._vllm_sample(logits, *arguments, **keywords)
        if logprobs is None:  # all greedy: those of the logits themselves
            logprobs = logits.log_softmax(dim=-1, dtype=torch.float32)
        chosen = logprobs.gather(1, tokens.long()[:, None])[:, 0].tolist()
        for request, token, logprob, certainty in zip(self._runner.input_batch.req_ids, tokens.tolist(), chosen, certainties):
            kept = self._kept.setdefault(request_number(request), ([], [], []))
            kept[0].append(token)
            kept[1].append(logprob)
            kept[2].append(certainty)
        return tokens, logprobs

    def take(self, numbers: list[int], keep: list[int]) -> list[SampledTokens]:
        """Return the sampled tokens of each request in `numbers`; afterwards only those of the requests in `keep` are kept."""
        taken = [self._kept.get(number, ([], [], [])) for number in numbers]
        self._kept = {number: self._kept[number] for number in keep if number in self._kept}
        return taken


def request_id(number: int, actor: str) -> str:
    """Return the request id for vLLM, which appends a suffix to it."""
    return f"{number}:{actor}"


def request_number(request: str) -> int:
    """Return the number in a `request_id`, with or without vLLM's suffix."""
    return int(request.partition(":")[0])
