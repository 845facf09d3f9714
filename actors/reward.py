"""The reward actor: judges whole batches of samples against the ground truth and keeps the step's trajectory table."""

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
class Judged:
    """One judged batch."""

    table: pa.Table
    """TRAJECTORIES schema, as far as it is known before training."""
    trained: np.ndarray
    """bool, per row of the table: the learner gets it."""
    learner: pa.RecordBatch
    """LEARNER schema: those rows."""


class RewardActor:
    """Judges samples by the rules of the method (Eq. 10, Eq. 11). Several batches (refills) may make up one step.

    A step's life under its key: `judge` once per batch, `hand_over` if there is something to train on, `write`, forgotten.
    """

    def __init__(self, name: str, score_format: ScoreFormat = DEFAULT_FORMAT):
        self.name, self.score_format = name, score_format
        self.schema = with_scores_of(TRAJECTORIES, score_format)
        self.judged: dict[str, list[Judged]] = {}

    def __repr__(self) -> str:
        return self.name

    def ready(self) -> dict[str, Any]:
        """Told once the process stands; returns the actor's name."""
        # Whatever has been imported by now stays: a collection in the middle of a batch need not walk through it.
        gc.freeze()
        return {"name": self.name}

    def judge(
        self, key: str, step: int, groups: pa.RecordBatch, *samples: pa.RecordBatch, want: int | None = None, equal: bool = False
    ) -> dict[str, Any]:
        """Score the samples of `groups` (GROUPS schema) and remember their trajectories.

        Args:
            key: which table these belong to; refills of one step share it, and number their groups on.
            samples: parts (SAMPLES schema) of one batch, equally many samples of every group, together in the order of `groups`
                and of (group, sample).
            want: at most this many groups are handed to the learner; None: all of them.
            equal: hand over groups of equal reward, too, with advantages of zero.

        Returns:
            Counts of the batch.

        Raises:
            ValueError: the samples are not those of `groups`.
        """
        batch = pa.concat_batches(samples)
        size, rest = divmod(batch.num_rows, groups.num_rows)
        # Row of `groups` that each sample belongs to: whatever a group's samples share is taken from there.
        origin = pa.array(np.arange(groups.num_rows).repeat(size))
        if rest or not size or not batch["group"].equals(groups["group"].take(origin)):
            raise ValueError(
                f"{self.name}: {key}: {batch.num_rows} samples for {groups.num_rows} groups: expected equally many of every group, "
                "in the order of the groups."
            )
        truths = [GroundTruth(*one, self.score_format) for one in zip(groups["rewards"].to_pylist(), groups["order"].to_pylist())]
        cut_off = pc.equal(batch["finish_reason"], "length").to_pylist()
        judgements = [truths[i].judge(*sample) for i, *sample in zip(origin.to_pylist(), batch["text"].to_pylist(), cut_off)]
        scores, failures, correct, paid = zip(*judgements)

        rewards = np.array(paid, dtype=np.float32).reshape(-1, size)
        advantages = group_advantages(torch.from_numpy(rewards)).numpy()
        unequal = advantages.any(axis=1)
        trained = np.ones_like(unequal) if equal else unequal.copy()
        if want is not None:
            trained &= trained.cumsum() <= want

        asked = pa.Table.from_batches([groups.select(["prompt_id", "source", "family", "order", "rewards", "prompt"])]).take(origin)
        asked = asked.rename_columns({"rewards": "ground_truth"})
        unknown = pa.nulls(batch.num_rows, pa.float32())
        columns = {
            "step": np.full(batch.num_rows, step),
            "group": batch["group"],
            "sample": batch["sample"],
            **dict(zip(asked.column_names, asked.columns)),
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
        self.judged.setdefault(key, []).append(Judged(table, chosen, _learner_rows(groups, origin, batch, advantages.ravel(), chosen)))
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

    def hand_over(self, key: str) -> tuple[int, pa.RecordBatch]:
        """What the learner trains on of all that was judged under `key` (LEARNER schema), in that order; first its number of rows.

        The samples of groups whose rewards are all equal are not in it, unless they were judged with `equal`.
        """
        batch = pa.concat_batches([judged.learner for judged in self.judged[key]])
        return batch.num_rows, batch

    def write(self, key: str, path: str, trained: pa.Table | None = None) -> dict[str, Any]:
        """Write the trajectories remembered under `key` as one Parquet file and forget them.

        Args:
            trained: columns trainer_logprob and reference_logprob (means per sample), one row for each of `hand_over`, in that
                order.

        Raises:
            ValueError: `trained` has another number of rows.
        """
        judged = self.judged.pop(key)
        table = pa.concat_tables([one.table for one in judged]).combine_chunks()
        if trained is not None:
            mask = np.concatenate([one.trained for one in judged])
            if mask.sum() != trained.num_rows:
                raise ValueError(f"{self.name}: {key}: {trained.num_rows} trained rows, expected the {mask.sum()} that were handed over.")
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
    some = lengths > 0
    starts = (lengths.cumsum() - lengths)[some]
    means = np.zeros(len(lengths))
    if some.any():
        # The empty lists in between hold no values, so the next start is also where a list ends.
        means[some] = np.add.reduceat(rows.flatten().to_numpy(), starts, dtype=np.float64) / lengths[some]
    return pa.array(means, pa.float32(), mask=~some)
