"""The reward actor: judges batches of samples against the ground truth and keeps the step's trajectory table."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from rlsys.algorithms.grpo import group_advantages
from rlsys.data.trajectories import LEARNER, TRAJECTORIES, with_scores_of
from rlsys.io.run_folder import write_parquet
from rlsys.rewards.extraction import DEFAULT_FORMAT, ScoreFormat
from rlsys.rewards.rules import GroundTruth


@dataclass(frozen=True)
class JudgedBatch:
    """One judged batch."""

    table: pa.Table
    """TRAJECTORIES schema, without the columns that training fills in."""
    trained: np.ndarray
    """bool, per row of the table: whether the learner gets it."""


class RewardActor:
    """Judges samples by the rules of the method (Eq. 10, Eq. 11). Several batches (refills) may make up one step.

    Call order for each key: `judge` once per batch, `pop_learner_batch` if the step is trained on, then `write`, which drops the key.
    """

    def __init__(self, name: str, score_format: ScoreFormat = DEFAULT_FORMAT):
        self.name, self.score_format = name, score_format
        self.schema = with_scores_of(TRAJECTORIES, score_format)
        self.judged: dict[str, list[JudgedBatch]] = {}
        self.learner_batches: dict[str, list[pa.RecordBatch]] = {}

    def __repr__(self) -> str:
        return self.name

    def ready(self) -> dict[str, Any]:
        """Return the actor's name; answers once the process is up."""
        # Garbage collections need not traverse the imported modules, which stay for good.
        gc.freeze()
        return {"name": self.name}

    def judge(
        self, key: str, step: int, groups: pa.RecordBatch, *samples: pa.RecordBatch, want: int | None = None, equal: bool = False
    ) -> dict[str, Any]:
        """Score the samples of `groups` (GROUPS schema) and keep their trajectories.

        Args:
            key: the table that the samples belong to; refills of a step share its key and continue its group numbers.
            samples: parts (SAMPLES schema) of one batch with the same number of samples for every group, together in the order of
                `groups` and of (group, sample).
            want: maximum number of groups for the learner; None: all of them.
            equal: train on groups of equal reward, too, with advantages of zero.

        Returns:
            Counts of the batch.

        Raises:
            ValueError: the samples are not those of `groups`.
        """
        batch = pa.concat_batches(samples)
        size, rest = divmod(batch.num_rows, groups.num_rows)
        # Row of `groups` that each sample belongs to.
        origin = pa.array(np.arange(groups.num_rows).repeat(size))
        if rest or not size or not batch["group"].equals(groups["group"].take(origin)):
            raise ValueError(
                f"{self.name}: {key}: {batch.num_rows} samples for {groups.num_rows} groups: expected the same number for every group, "
                "in the order of the groups."
            )
        truths = [GroundTruth(*one, self.score_format) for one in zip(groups["rewards"].to_pylist(), groups["order"].to_pylist())]
        cut_off = pc.equal(batch["finish_reason"], "length").to_pylist()
        judgements = [truths[i].judge(*sample) for i, *sample in zip(origin.to_pylist(), batch["text"].to_pylist(), cut_off)]
        scores, failures, correct, sample_rewards = zip(*judgements)

        rewards = np.array(sample_rewards, dtype=np.float32).reshape(-1, size)
        advantages = group_advantages(torch.from_numpy(rewards)).numpy()
        unequal = advantages.any(axis=1)
        trained = np.ones_like(unequal) if equal else unequal.copy()
        if want is not None:
            trained &= trained.cumsum() <= want

        prompts = pa.Table.from_batches([groups.select(["prompt_id", "source", "family", "order", "rewards", "prompt"])]).take(origin)
        prompts = prompts.rename_columns({"rewards": "ground_truth"})
        unknown = pa.nulls(batch.num_rows, pa.float32())
        columns = {
            "step": np.full(batch.num_rows, step),
            "group": batch["group"],
            "sample": batch["sample"],
            **dict(zip(prompts.column_names, prompts.columns)),
            "text": batch["text"],
            "scores": scores,
            "parse_failure": failures,
            "correct": correct,
            "reward": rewards.ravel(),
            "advantage": advantages.ravel(),
            "finish_reason": batch["finish_reason"],
            "weight_version": batch["weight_version"],
            "prompt_token_count": pc.list_value_length(groups["prompt_tokens"]).take(origin),
            "token_count": pc.list_value_length(batch["tokens"]),
            "rollout_logprob": _means(batch["logprobs"]),
            "trainer_logprob": unknown,
            "reference_logprob": unknown,
        }
        table = pa.table(columns, schema=self.schema)
        chosen = trained.repeat(size)
        self.judged.setdefault(key, []).append(JudgedBatch(table, chosen))
        learner_batch = _learner_rows(groups, origin, batch, advantages.ravel(), chosen)
        self.learner_batches.setdefault(key, []).append(learner_batch)
        return {
            "samples": batch.num_rows,
            "groups": groups.num_rows,
            "groups_unequal": int(unequal.sum()),
            "groups_trained": int(trained.sum()),
            "groups_all_right": int((rewards > 0).all(axis=1).sum()),
            "reward_sum": float(rewards.sum()),
            "sources": list(zip(groups["source"].to_pylist(), rewards.mean(axis=1).tolist())),
            "tokens": pc.sum(table["token_count"]).as_py(),
            "truncated": pc.sum(pc.equal(batch["finish_reason"], "length")).as_py(),
            "parse_failures": dict(Counter(failure for failure in failures if failure)),
            "oldest_version": pc.min(batch["weight_version"]).as_py(),
        }

    def pop_learner_batch(self, key: str) -> tuple[int, pa.RecordBatch]:
        """Remove and return the learner's rows of everything judged under `key` (LEARNER schema, in that order), after their number.

        Groups of equal reward are left out unless they were judged with `equal`.
        """
        batch = pa.concat_batches(self.learner_batches.pop(key))
        return batch.num_rows, batch

    def write(self, key: str, path: str, trained: pa.Table | None = None) -> dict[str, Any]:
        """Write the trajectories kept under `key` as one Parquet file and drop them.

        Args:
            trained: columns trainer_logprob and reference_logprob (means per sample), one row for each row of
                `pop_learner_batch`, in that order.

        Raises:
            ValueError: `trained` has a different number of rows.
        """
        judged = self.judged.pop(key)
        self.learner_batches.pop(key, None)
        table = pa.concat_tables([one.table for one in judged]).combine_chunks()
        if trained is not None:
            mask = np.concatenate([one.trained for one in judged])
            if mask.sum() != trained.num_rows:
                raise ValueError(f"{self.name}: {key}: {trained.num_rows} trained rows, expected the {mask.sum()} of the learner batch.")
            for name in ("trainer_logprob", "reference_logprob"):
                values = pc.replace_with_mask(table[name], pa.array(mask), trained[name].combine_chunks().cast(pa.float32()))
                table = table.set_column(table.schema.get_field_index(name), TRAJECTORIES.field(name), values)
        write_parquet(table, Path(path))
        return {"rows": table.num_rows}


def _learner_rows(
    groups: pa.RecordBatch, origin: pa.Array, samples: pa.RecordBatch, advantages: np.ndarray, chosen: np.ndarray
) -> pa.RecordBatch:
    mask = pa.array(chosen)
    picked = samples.filter(mask)
    columns = {
        "group": picked["group"],
        "prompt_tokens": groups["prompt_tokens"].take(origin.filter(mask)),
        "tokens": picked["tokens"],
        "rollout_logprobs": picked["logprobs"],
        "advantage": advantages[chosen],
    }
    return pa.record_batch(columns, schema=LEARNER)


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
