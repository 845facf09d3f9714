"""The learner of a scalar reward model: the same DeepSpeed ranks with a different model and loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from actors.learner import checkpoints as saving
from actors.learner import deepspeed_engine as ds
from actors.learner.learner import LearnerActor
from rlsys.algorithms.grpo import Metrics
from rlsys.config import schema as config
from rlsys.data.chain import LearnerBatch
from rlsys.models.backbone import Backbone
from rlsys.models.packing import MicroBatch
from rlsys.models.scalar import ScalarModel, bce_loss, bradley_terry_loss, load_classifier, text_ends
from rlsys.models.self_check import SelfCheck, checked_scalar_model


class ScalarLearner(LearnerActor):
    """One rank. Life cycle: construct, `address` (rank 0), `setup` (all ranks), `start_stage`, then `train` and `score`."""

    def __init__(self, objective: str, seed: int, **rank: Any):
        """
        Args:
            objective: "bce" or "bt" (`config.ScalarRm`).
            seed: seed of a new head's weights, the same on every rank.
            rank: further arguments of `LearnerActor`, except `rl`.
        """
        self.objective, self.head_seed = objective, seed
        super().__init__(rl=config.Rl(beta=0.0), seed=seed, **rank)

    def _load(self, path: str) -> PreTrainedModel:
        classifier = load_classifier(path, self.dtype, self.head_seed)
        classifier.config.rlsys_objective = self.objective
        return classifier

    def _wrap(self, model: PreTrainedModel) -> Backbone:
        return ScalarModel(model, self.learner.packing, self.learner.layers, self._attention).train()

    def _check(self, model: PreTrainedModel, gradient: bool) -> tuple[Backbone, SelfCheck]:
        ours, way = self.learner, self._attention
        return checked_scalar_model(model, ours.packing, ours.layers, way, ours.activation_checkpointing, gradient, self.longest)

    def train(self, batch: LearnerBatch) -> dict[str, Any]:
        """Take one optimizer step on a `rlsys.models.scalar.scalar_batch`; for objective "bt" its groups must be complete.

        Returns:
            metrics of the batch: loss (nats per text, or per row for "bt"), accuracy, tokens (of texts), and as of
            `LearnerActor.train_sft`: grad_norm, lr, skipped, encoded_tokens, seconds/learner_*.
        """
        groups = torch.tensor(batch.rows["group"].to_pylist())
        count = batch.num_rows if self.objective == "bce" else len(groups.unique())

        def loss(_: int, part: MicroBatch, score: Tensor) -> tuple[Tensor, Metrics]:
            at = text_ends(part)
            label = part.advantage[at]
            if self.objective == "bce":
                value, metrics = bce_loss(score, label, count)
            else:
                value, metrics = bradley_terry_loss(score, label > 0.5, groups.to(label.device)[part.sample[at]], count)
            return value, metrics | {"tokens": float(len(part.source) - len(at))}

        self._start_clock("forward", "backward", "optimizer")
        return self._update(self._share(batch), loss)

    def score(self, batch: LearnerBatch) -> list[float]:
        """Return the score (logit) of every row of a `scalar_batch` under the current weights."""
        scores: dict[int, float] = {}
        with torch.no_grad():
            for part in self._share(batch):
                scores |= zip(part.sample[text_ends(part)].tolist(), self.engine(part).tolist(), strict=True)
        everything = {row: score for rank in ds.from_all_ranks(scores) for row, score in rank.items()}
        return [everything[row] for row in range(batch.num_rows)]

    def save_model(self, folder: str) -> None:
        """Write the weights to `folder`, which transformers' AutoModelForSequenceClassification can load."""
        saving.save_model(self.engine.module.model, self.model_path, Path(folder))
