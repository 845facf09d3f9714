"""A batch of samples and its rewards: PROMPTS and SAMPLES in, TRAJECTORIES and the learner's rows out.

The rewards come from the rules of the method (`judge_batch`; Eq. 10, Eq. 11) or from elsewhere (`reward_batch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from rlsys.algorithms.grpo import group_advantages
from rlsys.data.chain import LEARNER_ROWS, LearnerBatch, sample_keys
from rlsys.data.trajectories import REWARD_COLUMNS, TRAJECTORIES, with_scores_of
from rlsys.rewards.extraction import ScoreFormat
from rlsys.rewards.rules import GroundTruth


@dataclass(frozen=True)
class JudgedBatch:
    """Judged samples of a batch, by (group, sample)."""

    prompts: pa.RecordBatch
    samples: pa.RecordBatch
    table: pa.Table
    """TRAJECTORIES; what only training knows is null."""
    rewards: np.ndarray
    """float32 [groups, samples of a group]; NaN in a group without a reward."""
    advantages: np.ndarray
    """float32 [groups, samples of a group]."""

    def learner_batch(self, chosen: np.ndarray) -> LearnerBatch:
        """Return the prompts and samples of the groups `chosen` (bool [groups])."""
        rows = pa.array(chosen.repeat(self.rewards.shape[1]))
        picked = self.samples.filter(rows)
        columns = {
            "group": picked["group"],
            "sample": picked["sample"],
            "token_ids": picked["token_ids"],
            "rollout_logprobs": picked["logprobs"],
            "advantage": self.advantages[chosen].ravel(),
        }
        prompts = self.prompts.select(["group", "prompt_token_ids"]).filter(pa.array(chosen))
        return LearnerBatch(prompts, pa.record_batch(columns, schema=LEARNER_ROWS))


def judge_batch(prompts: pa.RecordBatch, samples: Sequence[pa.RecordBatch], score_format: ScoreFormat, step: int = 0) -> JudgedBatch:
    """Score every sample of `prompts` (PROMPTS, groups ascending) by the rules.

    Args:
        samples: parts (SAMPLES), together the same number of samples, 0 and up, for every group.

    Raises:
        ValueError: the samples are not those of `prompts`.
    """
    batch = _in_order(prompts, samples)
    size = batch.num_rows // prompts.num_rows
    truths = [GroundTruth(*one, score_format) for one in zip(prompts["rewards"].to_pylist(), prompts["order"].to_pylist())]
    cut_off = pc.equal(batch["finish_reason"], "length").to_pylist()
    texts = zip(batch["text"].to_pylist(), cut_off)
    judgements = [truths[row // size].judge(*sample) for row, sample in enumerate(texts)]
    scores, failures, correct, sample_rewards = zip(*judgements)
    rewards = np.array(sample_rewards, dtype=np.float32).reshape(-1, size)
    columns = {
        **{name: prompts[column].take(_origin(prompts, size)) for name, column in (("order", "order"), ("ground_truth", "rewards"))},
        "scores": scores,
        "parse_failure": failures,
        "correct": correct,
    }
    return _judged(prompts, batch, step, rewards, columns, with_scores_of(TRAJECTORIES, score_format))


def reward_batch(prompts: pa.RecordBatch, samples: Sequence[pa.RecordBatch], given: pa.Table, step: int = 0) -> JudgedBatch:
    """Give every sample of `prompts` (PROMPTS, groups ascending) a reward that was found elsewhere.

    Args:
        samples: as in `judge_batch`.
        given: REWARDS, in any order. The reward is null in all samples of a group, or in none.

    Raises:
        ValueError: the samples or the rewards are not those of `prompts`.
    """
    batch = _in_order(prompts, samples)
    size = batch.num_rows // prompts.num_rows
    keys = sample_keys(batch)
    if given.num_rows != batch.num_rows or pc.index_in(keys, sample_keys(given)).null_count:
        raise ValueError(f"{given.num_rows} rewards for {batch.num_rows} samples: expected one for each.")
    given = given.take(pc.index_in(keys, sample_keys(given))).combine_chunks()
    rewards = given["reward"].to_numpy().astype(np.float32).reshape(-1, size)
    missing = np.isnan(rewards)
    if (missing.any(axis=1) != missing.all(axis=1)).any():
        raise ValueError("a group in which only some samples have a reward: they cannot be compared.")
    absent = ("order", "ground_truth", "scores", "parse_failure")
    columns = {name: pa.nulls(batch.num_rows, TRAJECTORIES.field(name).type) for name in absent}
    columns |= {"correct": given["gold"], **{name: given[name] for name in REWARD_COLUMNS.names}}
    return _judged(prompts, batch, step, rewards, columns, pa.schema([*TRAJECTORIES, *REWARD_COLUMNS]))


def _in_order(prompts: pa.RecordBatch, samples: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Return the samples as one batch, sorted by key; raises ValueError if they are not those of `prompts`."""
    batch = pa.concat_batches(samples)
    size, rest = divmod(batch.num_rows, prompts.num_rows)
    keys, groups = np.asarray(sample_keys(batch)), np.asarray(prompts["group"]).astype(np.int64)
    if (np.diff(keys) < 0).any():
        batch, keys = batch.take(pa.array(np.argsort(keys))), np.sort(keys)
    if rest or not size or not np.array_equal(keys, ((groups << 32)[:, None] + np.arange(size)).ravel()):
        raise ValueError(
            f"{batch.num_rows} samples for {prompts.num_rows} groups: expected the same number for every group, numbered from 0."
        )
    return batch


def _origin(prompts: pa.RecordBatch, size: int) -> pa.Array:
    """Return the row of `prompts` that each sample belongs to."""
    return pa.array(np.arange(prompts.num_rows).repeat(size))


def _judged(
    prompts: pa.RecordBatch, batch: pa.RecordBatch, step: int, rewards: np.ndarray, columns: dict[str, Any], schema: pa.Schema
) -> JudgedBatch:
    """Return the judged batch with its trajectories.

    Args:
        rewards: float32 [groups, samples of a group]; NaN in groups without a reward, whose advantages are zero.
        columns: of the trajectories that depend on the kind of reward.
    """
    size = rewards.shape[1]
    advantages = group_advantages(torch.from_numpy(np.nan_to_num(rewards))).numpy()
    shown = pa.Table.from_batches([prompts.select(["prompt_id", "source", "family", "prompt"])]).take(_origin(prompts, size))
    unknown = pa.nulls(batch.num_rows, pa.float32())
    columns = {
        "step": np.full(batch.num_rows, step),
        "group": batch["group"],
        "sample": batch["sample"],
        **{name: shown[name] for name in shown.column_names},
        "text": batch["text"],
        **columns,
        "reward": pa.array(rewards.ravel(), mask=np.isnan(rewards.ravel())),
        "advantage": advantages.ravel(),
        "finish_reason": batch["finish_reason"],
        "weight_version": batch["weight_version"],
        "prompt_token_count": pc.list_value_length(prompts["prompt_token_ids"]).take(_origin(prompts, size)),
        "token_count": pc.list_value_length(batch["token_ids"]),
        "rollout_logprob": _means(batch["logprobs"]),
        "trainer_logprob": unknown,
        "reference_logprob": unknown,
    }
    return JudgedBatch(prompts, batch, pa.table(columns, schema=schema), rewards, advantages)


def add_trained(table: pa.Table, trained: pa.Table) -> pa.Table:
    """Return TRAJECTORIES with the learner's columns filled in for the samples that it trained on.

    Args:
        trained: group, sample, trainer_logprob and reference_logprob (means per sample).
    """
    index = pc.index_in(sample_keys(table), sample_keys(trained))
    for name in ("trainer_logprob", "reference_logprob"):
        values = trained[name].combine_chunks().cast(pa.float32()).take(index)
        table = table.set_column(table.schema.get_field_index(name), TRAJECTORIES.field(name), values)
    return table


def _means(rows: pa.ListArray) -> pa.Array:
    """Mean of each list, float32; null for an empty one."""
    lengths = pc.list_value_length(rows).to_numpy()
    filled = lengths > 0
    starts = (lengths.cumsum() - lengths)[filled]
    means = np.zeros(len(lengths))
    if filled.any():
        # Empty lists hold no values, so each list ends where the next non-empty one starts.
        means[filled] = np.add.reduceat(rows.flatten().to_numpy(), starts, dtype=np.float64) / lengths[filled]
    return pa.array(means, pa.float32(), mask=~filled)
