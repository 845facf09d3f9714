"""GRPO written as the paper has it, a learner whose insides can be read, and a batch for both."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed.utils import logger, safe_get_full_fp32_param, safe_get_full_grad
from learner_batches import learner_batch
from transformers import AutoModelForCausalLM

from actors.learner import deepspeed_engine as ds
from actors.learner.learner import LearnerActor
from rlsys.config.schema import Learner, Rl
from rlsys.data.chain import LearnerBatch

WAIT_S = 600
TEMPERATURE = 0.7
LR = 1e-3
GROUPS = ((9, (5, 12, 3, 8)), (17, (7, 7, 10, 1)), (4, (15, 6, 2, 9)))
"""Prompt length and completion lengths of each group."""


class Probe(LearnerActor):
    """A learner whose engine can be rebuilt with other settings, and that tells gradients and weights."""

    def rebuild(self, learner: dict[str, Any], rl: dict[str, Any], dtype: str = "float32") -> None:
        self.learner = Learner(token_budget=64, lr=LR, max_grad_norm=0.5, betas=(0.9, 0.95), weight_decay=0.1).model_copy(update=learner)
        self.rl = Rl(beta=0.05).model_copy(update=rl)
        self.dtype = getattr(torch, dtype)
        self.reference = None
        self._build()
        self.start_stage(self.learner.lr, self.learner.warmup_steps)
        self.snapshot_reference()

    def _step(self, lr: float) -> ds.StepResult:
        self.gradient = {name: safe_get_full_grad(p).float().clone() for name, p in self.engine.module.model.named_parameters()}
        return super()._step(lr)

    def gradients(self) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in self.gradient.items()}

    def weights(self) -> dict[str, np.ndarray]:
        return {name: whole.float().numpy().copy() for name, whole in ds.full_weights(self.engine.module.model)}

    def master_weights(self) -> dict[str, np.ndarray]:
        optimizer = self.engine.optimizer
        if self.learner.zero_stage == 0:
            masters = dict(zip(map(id, optimizer.fp16_groups[0]), optimizer.fp32_groups[0], strict=True))
            return {name: masters[id(p)].detach().numpy().copy() for name, p in self.engine.module.model.named_parameters()}
        return {name: safe_get_full_fp32_param(p).numpy().copy() for name, p in self.engine.module.model.named_parameters()}

    def write_output(self) -> None:
        print("printed", flush=True)
        os.write(1, b"written by C\n")
        logger.warning("a warning of DeepSpeed")

    def has_reference(self) -> bool:
        return self.reference is not None


def noisy_batch(tiny_model: Path) -> LearnerBatch:
    """Three groups of four samples; the rollout engine's log-probabilities are the model's own with noise on them."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    rows = []
    for group, (prompt_length, lengths) in enumerate(GROUPS):
        prompt = torch.randint(3, 500, (prompt_length,), generator=generator).tolist()
        for sample, length in enumerate(lengths):
            tokens = torch.randint(3, 500, (length,), generator=generator).tolist()
            row = {"group": group, "prompt_token_ids": prompt, "token_ids": tokens, "advantage": [1.2, -0.9, 0.4, -0.7][sample]}
            own = plain_logprobs(model, row, TEMPERATURE).detach()
            row["rollout_logprobs"] = (own + 0.5 * torch.randn(length, generator=generator)).tolist()
            rows.append(row)
    return learner_batch(rows)


def plain_logprobs(model, row: dict[str, Any], temperature: float) -> torch.Tensor:
    """Log-probability of each completion token, from the full softmax over one whole sequence."""
    ids = torch.tensor([row["prompt_token_ids"] + row["token_ids"]])
    logits = model(input_ids=ids).logits[0, len(row["prompt_token_ids"]) - 1 : -1]
    return torch.log_softmax(logits / temperature, dim=-1).gather(1, torch.tensor(row["token_ids"])[:, None])[:, 0]


class PlainGrpo:
    """GRPO as the paper writes it, sample by sample, with torch's own clipping and AdamW."""

    def __init__(self, model_path: Path, beta: float, clip: float = 0.2, cap: float = 2.0):
        self.model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
        self.frozen = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1)
        self.beta, self.clip, self.cap = beta, clip, cap

    def step(self, batch: LearnerBatch, temperature: float, passes: int = 1) -> dict[str, float]:
        rows = batch.to_pylist()
        old = [plain_logprobs(self.model, row, temperature).detach() for row in rows]
        losses, norms, kls, truncated = [], [], [], []
        for _ in range(passes):
            self.optimizer.zero_grad()
            total = 0.0
            for row, before in zip(rows, old, strict=True):
                now = plain_logprobs(self.model, row, temperature)
                frozen = plain_logprobs(self.frozen, row, temperature).detach()
                importance = torch.exp(before - torch.tensor(row["rollout_logprobs"])).clamp(max=self.cap)
                ratio = torch.exp(now - before)
                surrogate = torch.minimum(ratio * row["advantage"], ratio.clamp(1 - self.clip, 1 + self.clip) * row["advantage"])
                kl = torch.exp(frozen - now) - (frozen - now) - 1
                total = total + (-importance * surrogate + self.beta * kl).mean() / len(rows)
                kls.extend(kl.tolist())
                truncated.extend((importance >= self.cap).tolist())
            total.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(self.model.parameters(), float("inf")).item())
            self.gradient = {name: p.grad.clone().numpy() for name, p in self.model.named_parameters()}
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
            self.optimizer.step()
            losses.append(total.item())
        names = ("loss", "grad_norm", "kl", "importance_truncated")
        return dict(zip(names, map(np.mean, (losses, norms, kls, truncated)), strict=True))

    def weights(self) -> dict[str, np.ndarray]:
        return {name: p.detach().numpy().copy() for name, p in self.model.named_parameters()}


def distance(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> float:
    """Norm of the difference, over the norm of `right`."""
    assert left.keys() == right.keys()
    difference = sum(np.square(left[name] - right[name], dtype=np.float64).sum() for name in left)
    return float(np.sqrt(difference / sum(np.square(right[name], dtype=np.float64).sum() for name in right)))


def identical(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)
