"""How CPU engines draw a token: by inverting the cumulative distribution, one uniform number per sample.

vLLM draws noise for every entry of the vocabulary and takes the largest sum of noise and logit. On a CPU that noise is a large part
of decoding many sequences side by side (`rlsys bench rollout --samples 64`); sums over the vocabulary are far cheaper, and exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Drawn = tuple[list[int], list[float], list[float]]
"""Tokens, their log-probabilities, and the self-certainties of the distributions that they were drawn from (0 where not asked for)."""
BLOCK = 256
"""Neighbouring vocabulary entries whose probabilities are summed first: two short searches instead of a long one."""
ROWS = 16
"""Rows whose probabilities exist at a time, so that they stay in the core's cache."""


def draw(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """One token per row, token v with probability exp(logprobs[row, v]).

    Args:
        logprobs: float32 [B, V], normalised; -inf where a token must not be drawn.
        uniforms: float64 [B] in [0, 1): the same number gives the same token.
    Returns:
        int64 [B].
    """
    vocabulary = logprobs.shape[1]
    blocks = -(-vocabulary // BLOCK)
    room = logprobs.new_zeros(min(ROWS, len(logprobs)), blocks * BLOCK)
    tokens = []
    for few, uniform in zip(logprobs.split(ROWS), uniforms[:, None].split(ROWS)):
        probabilities = room[: len(few)]
        torch.exp(few, out=probabilities[:, :vocabulary])
        probabilities = probabilities.view(len(few), blocks, BLOCK)
        block, rest = _invert(probabilities.sum(dim=-1), uniform, of_total=True)
        inside = probabilities[torch.arange(len(few)), block[:, 0]]
        tokens.append((block * BLOCK + _invert(inside, rest)[0])[:, 0])
    return torch.cat(tokens)


def _invert(weights: Tensor, target: Tensor, of_total: bool = False) -> tuple[Tensor, Tensor]:
    """Per row of weights [B, N] >= 0, the first place at which their running sum exceeds target [B, 1], and how much of it is left there.

    `of_total`: target is a share of the sum. Never a place of weight zero: a target that rounding has brought up to the sum stays
    just below it.
    """
    sums = weights.cumsum(dim=-1, dtype=torch.float64)
    total = sums[:, -1:]
    target = torch.minimum(target * total if of_total else target, torch.nextafter(total, torch.zeros_like(total)))
    place = torch.searchsorted(sums, target, right=True)
    before = sums.gather(1, place) - weights.gather(1, place)
    return place, (target - before).clamp_(min=0)


def sample(logits: Tensor, generators: dict[int, torch.Generator]) -> tuple[Tensor, Tensor]:
    """(token int64 [B], log-probabilities float32 [B, V]) of logits [B, V]; `generators` are of the rows that have a seed."""
    logprobs = logits.log_softmax(dim=-1, dtype=torch.float32)
    uniforms = torch.rand(len(logits), dtype=torch.float64)
    for row, generator in generators.items():
        uniforms[row] = torch.rand((), dtype=torch.float64, generator=generator)
    return draw(logprobs, uniforms), logprobs


def self_certainty(logits: Tensor) -> Tensor:
    """float [B] of logits [B, V]: the divergence of the next token's distribution from the uniform one, -1/V sum_v ln(V p_v), in nats.

    Self-certainty of arXiv 2502.18581, Eq. 8, at one token. Entries of -inf, which something has forbidden, are left out.
    """
    allowed = logits > -torch.inf
    count = allowed.sum(dim=-1)
    mean = torch.where(allowed, logits, 0.0).sum(dim=-1, dtype=torch.float32) / count
    return torch.logsumexp(logits.float(), dim=-1) - mean - count.log()


class CpuSampler:
    """Takes over from a vLLM sampler (0.32, logprobs_mode "processed_logprobs"), after its own temperature, top-k and top-p.

    It can also keep what was drawn, for `take`. vLLM would send log-probabilities to the engine's front token by token, as arrays of one
    entry each, which takes longer than drawing; self-certainties it does not know.

    Args:
        keep: each token drawn and its log-probability.
        certainty: the self-certainty of the distribution that it was drawn from, too.
    """

    def __init__(self, model_runner: Any, keep: bool, certainty: bool = False):
        from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

        sampler = model_runner.sampler
        if sampler.logprobs_mode != "processed_logprobs":
            raise ValueError(f"logprobs_mode is {sampler.logprobs_mode!r}; expected processed_logprobs.")
        self._runner, self._of_vllm, self._certainty = model_runner, sampler.sample, certainty
        self._drawn: dict[int, Drawn] = {}
        sampler.topk_topp_sampler.forward = lambda logits, generators, k, p: sample(apply_top_k_top_p(logits, k, p), generators)
        if keep:
            sampler.sample = self._sample

    def _sample(self, logits: Tensor, *arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor | None]:
        # Before vLLM divides them by the temperature, in place: certainty is the model's own.
        certainties = self_certainty(logits).tolist() if self._certainty else [0.0] * len(logits)
        tokens, logprobs = self._of_vllm(logits, *arguments, **keywords)
        if logprobs is None:  # all greedy: of the logits themselves
            logprobs = logits.log_softmax(dim=-1, dtype=torch.float32)
        chosen = logprobs.gather(1, tokens.long()[:, None])[:, 0].tolist()
        for request, *drawn in zip(self._runner.input_batch.req_ids, tokens.tolist(), chosen, certainties):
            for kept, value in zip(self._drawn.setdefault(request_number(request), ([], [], [])), drawn):
                kept.append(value)
        return tokens, logprobs

    def take(self, numbers: list[int], keep: list[int]) -> list[Drawn]:
        """What was drawn for each of these requests; only what was drawn for those in `keep` is not forgotten."""
        taken = [self._drawn.get(number, ([], [], [])) for number in numbers]
        self._drawn = {number: self._drawn[number] for number in keep if number in self._drawn}
        return taken


def request_id(number: int, actor: str) -> str:
    """vLLM's name of an actor's request; vLLM itself adds something to its end."""
    return f"{number}:{actor}"


def request_number(request: str) -> int:
    return int(request.partition(":")[0])
