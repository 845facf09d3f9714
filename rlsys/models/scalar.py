"""The scalar reward model: a language model with a single output, read at the last token of a text.

Two objectives train the same model. As the *meta reward model* (arXiv 2504.02495, section on inference-time scaling) it reads a prompt of
the generative reward model and the critique written for it; its logit predicts whether the critique is correct (Eq. 10). As the
Bradley-Terry baseline it reads a conversation and one response, and the better response should get the higher score.

The input is `prompt tokens + text tokens`, without the end-of-turn token: some tokenizers pad with it, and transformers' classifiers read
the score at the last token that is not padding. Both thus read the same position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rlsys.algorithms.grpo import Metrics
from rlsys.data.chain import LearnerBatch, LearnerRow
from rlsys.models.backbone import Attention, Backbone, Layers
from rlsys.models.loading import ModelError, check_no_missing_weights, load_strictly
from rlsys.models.packing import MicroBatch, plan_micro_batches

GROUPS_AT_ONCE = 64
"""Groups planned together for scoring: planning time grows faster than linearly."""


@dataclass(frozen=True)
class Group:
    """Texts after one prompt: sampled critiques, or responses to a query."""

    id: str
    """Id of its row; several groups share it if a row was shown in several orders."""
    prompt: np.ndarray
    """int32 [tokens], at least one."""
    texts: tuple[np.ndarray, ...]
    """int32 [tokens] each; an empty text is scored at the prompt's last token."""
    labels: tuple[float, ...]
    """One per text: 1.0 for a correct critique or the best response, else 0.0."""
    source: str | None = None
    """Source of its row; None in old trajectories, which have none."""

    @property
    def row(self) -> tuple[str | None, str]:
        """(source, id) of the group's row."""
        return self.source, self.id


class ScalarModel(Backbone):
    """A Hugging Face sequence classifier with one output on a causal language model, unchanged as `self.model`.

    Packed models encode a prompt once for all its texts. It always runs in eval mode.

    Raises:
        ModelError: a model without a linear head `score` of one output, or one whose attention packing does not support.
    """

    def __init__(self, model: PreTrainedModel, packing: bool = True, layers: Layers = "fused", attention: Attention = "blocks") -> None:
        head = getattr(model, "score", None)
        if not isinstance(head, nn.Linear) or head.out_features != 1:
            raise ModelError(f"{type(model).__name__}: expected a causal model with a linear head `score` of one output, found {head}.")
        super().__init__(model, model.base_model, packing, layers, attention)
        # In float32: scores rounded to bfloat16 have 8 bits, so critiques of one prompt would often tie.
        head.forward = lambda hidden: F.linear(hidden.float(), head.weight.float(), None if head.bias is None else head.bias.float())

    def forward(self, micro_batch: MicroBatch) -> Tensor:
        """Compute scores (logits), float32 [S]: one per text of the micro-batch, in the order of `text_ends`."""
        hidden = self.call(self.model.base_model, micro_batch).last_hidden_state
        read = micro_batch.source[text_ends(micro_batch)]
        return self.model.score(hidden.flatten(0, 1).index_select(0, read))[:, 0]


def load_classifier(path: str | Path, dtype: torch.dtype, seed: int | None = 0) -> PreTrainedModel:
    """Load transformers' sequence classifier with one output.

    Args:
        seed: seed of a new head if the folder has none; None: a head is required.

    Raises:
        ModelError: it cannot be loaded, or its weights do not match its config.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        model, missing = load_strictly(AutoModelForSequenceClassification, path, dtype, num_labels=1)
    below = f"{model.base_model_prefix}."
    check_no_missing_weights(path, [name for name in missing if seed is None or name.startswith(below)])
    config = model.config.get_text_config()
    if config.pad_token_id is None and config.eos_token_id is not None:
        # transformers' classifiers need one for padded batches, and no scored text ends with this one.
        config.pad_token_id = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    return model


def load_scalar_model(
    path: str | Path,
    dtype: torch.dtype,
    seed: int = 0,
    packing: bool = True,
    layers: Layers = "fused",
    attention: Attention = "blocks",
) -> ScalarModel:
    """Load a Hugging Face folder or hub name in training mode, with weights in `dtype`.

    A causal language model gets a new head, initialised by the architecture's own rule from `seed`: the same on every rank. A sequence
    classifier keeps its head, which must have one output.

    Raises:
        ValueError: see `ScalarModel`.
    """
    return ScalarModel(load_classifier(path, dtype, seed), packing, layers, attention).train()


def scalar_batch(groups: Sequence[Group], token_budget: int | None = None) -> LearnerBatch:
    """Build a batch for `rlsys.models.packing.plan_micro_batches`, group by group; `advantage` holds the label.

    Args:
        token_budget: groups of more tokens are split to fit into micro-batches; None: never, as Bradley-Terry compares responses
            within one micro-batch.
    """
    prompts: list[np.ndarray] = []
    rows: list[LearnerRow] = []
    room = 0
    for group in groups:
        for i, (text, label) in enumerate(zip(group.texts, group.labels, strict=True)):
            if i == 0 or (token_budget is not None and len(text) > room):
                prompts.append(group.prompt)
                room = (token_budget or 0) - len(group.prompt)
            room -= len(text)
            # `plan_micro_batches` does not encode a completion's last token, as it predicts nothing. This one is never seen: the score
            # is read where it would be predicted.
            rows.append(LearnerRow(len(prompts) - 1, i, np.append(text, np.int32(0)), advantage=label))
    return LearnerBatch.of(prompts, rows)


def text_ends(micro_batch: MicroBatch) -> Tensor:
    """Return the indices, long [S], of the texts' last entries among the M entries of a planned `scalar_batch`.

    The row of the whole batch that each belongs to is `micro_batch.sample[text_ends]`, its label `micro_batch.advantage[text_ends]`.
    """
    return micro_batch.sample.diff(append=micro_batch.sample.new_full((1,), -1)).nonzero()[:, 0]


@torch.no_grad()
def score_texts(model: ScalarModel, groups: Sequence[Group], token_budget: int, device: torch.device | str = "cpu") -> np.ndarray:
    """Score the texts of all groups; a group's prompt is encoded once per micro-batch.

    Args:
        model: on `device`, in any mode.
        token_budget: tokens encoded at a time; a longer text gets a micro-batch of its own.

    Returns:
        float32 [texts], logits, group by group.
    """
    scores = [np.empty(0, np.float32)]
    for start in range(0, len(groups), GROUPS_AT_ONCE):
        batch = scalar_batch(groups[start : start + GROUPS_AT_ONCE], token_budget)
        found = np.empty(batch.num_rows, np.float32)
        for part in plan_micro_batches(batch, 1, token_budget, model.packing, model.pad_token_id)[0]:
            found[part.sample[text_ends(part)].numpy()] = model(part.to(device)).cpu().numpy()
        scores.append(found)
    return np.concatenate(scores)


def bce_loss(score: Tensor, label: Tensor, count: int) -> tuple[Tensor, Metrics]:
    """Compute a micro-batch's share of the mean binary cross-entropy of sigmoid(score), in nats per text.

    Args:
        score: float [S], logits.
        label: float [S], 1 for correct.
        count: texts in the whole batch, over all micro-batches and ranks, so that shares add up to the batch's loss.

    Returns:
        The loss, and sums for `rlsys.algorithms.grpo.merge_metrics`: loss, accuracy (at threshold 0).
    """
    loss = F.binary_cross_entropy_with_logits(score, label, reduction="sum") / count
    right = ((score.detach() > 0) == (label > 0.5)).sum().item()
    return loss, {"loss": loss.item(), "accuracy": right / count}


def bradley_terry_loss(score: Tensor, best: Tensor, group: Tensor, count: int) -> tuple[Tensor, Metrics]:
    """Compute a micro-batch's share of the mean over rows of -log sigmoid(r_best - r_other), averaged over a row's other responses.

    Bradley and Terry (1952), as reward models use it (arXiv 2203.02155, Eq. 1).

    Args:
        score: float [S].
        best: bool [S], True for one response per group.
        group: long [S], complete groups only.
        count: groups in the whole batch.

    Returns:
        The loss in nats, and sums: loss, accuracy (over pairs; a tie counts half).
    """
    _, index, sizes = torch.unique(group, return_inverse=True, return_counts=True)
    best_score = score.new_zeros(len(sizes)).index_add(0, index[best], score[best])
    margin = (best_score[index] - score)[~best]
    weight = 1 / ((sizes[index[~best]] - 1) * count)
    loss = (weight * F.softplus(-margin)).sum()
    won = (weight * (torch.sign(margin.detach()) + 1) / 2).sum().item()
    return loss, {"loss": loss.item(), "accuracy": won}
