"""The reward actor: judges a whole batch of samples against the ground truth and keeps the step's trajectory table."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rlsys.grpo import group_advantages
from rlsys.run_folder import write_parquet
from rlsys.scores import judge
from rlsys.trajectories import LEARNER, TRAJECTORIES


class RewardActor:
    """Judges samples by the rules of the method (Eq. 10, Eq. 11). Several batches (refills) may make up one step."""

    def __init__(self, name: str):
        self.name = name
        # By batch key: the tables judged so far, and (group, sample) of every row given to the learner.
        self.tables: dict[str, list[pa.Table]] = {}
        self.handed_out: dict[str, list[tuple[int, int]]] = {}

    def __repr__(self) -> str:
        return self.name

    def ready(self) -> dict[str, Any]:
        return {"name": self.name}

    def judge(
        self, key: str, step: int, groups: pa.RecordBatch, samples: pa.RecordBatch, want: int | None = None
    ) -> tuple[dict[str, Any], pa.RecordBatch]:
        """Score `samples` (SAMPLES schema) of `groups` (GROUPS schema) and remember their trajectories for `write`.

        Args:
            samples: ordered by (group, sample), equally many of every group.
            key: which table these belong to; refills of one step share it, and number their groups on.
            want: at most this many groups of unequal reward are handed to the learner; None: all of them.

        Returns:
            Counts of the batch, and what the learner trains on (LEARNER schema): the samples of the groups whose rewards are
            not all equal.
        """
        prompts = {row["group"]: row for row in groups.to_pylist()}
        columns = {name: samples[name].to_pylist() for name in ("group", "sample", "text", "finish_reason", "weight_version")}
        judgements = [
            judge(text, prompts[group]["rewards"], prompts[group]["order"])
            for group, text in zip(columns["group"], columns["text"], strict=True)
        ]
        rewards = np.array([judgement.reward for judgement in judgements], dtype=np.float32)
        # A group's samples are neighbours and equally many: one row of the matrix per group.
        by_group = rewards.reshape(len(prompts), -1)
        advantages = group_advantages(torch.from_numpy(by_group)).numpy()
        trained = advantages.any(axis=1)
        unequal = int(trained.sum())
        if want is not None:
            trained &= trained.cumsum() <= want
        chosen = trained.repeat(by_group.shape[1])
        advantages = advantages.ravel()
        table = pa.table(
            {
                "step": [step] * len(rewards),
                "group": columns["group"],
                "sample": columns["sample"],
                "prompt_id": [prompts[g]["prompt_id"] for g in columns["group"]],
                "family": [prompts[g]["family"] for g in columns["group"]],
                "order": [prompts[g]["order"] for g in columns["group"]],
                "prompt": [prompts[g]["prompt"] for g in columns["group"]],
                "text": columns["text"],
                "scores": [judgement.scores for judgement in judgements],
                "parse_failure": [judgement.failure for judgement in judgements],
                "correct": [judgement.correct for judgement in judgements],
                "reward": rewards,
                "advantage": advantages,
                "finish_reason": columns["finish_reason"],
                "weight_version": columns["weight_version"],
                "prompt_token_count": [len(prompts[g]["prompt_tokens"]) for g in columns["group"]],
                "token_count": _lengths(samples["tokens"]),
                "rollout_logprob": [_mean(row) for row in samples["logprobs"].to_pylist()],
                "trainer_logprob": pa.nulls(len(rewards), pa.float32()),
                "reference_logprob": pa.nulls(len(rewards), pa.float32()),
            },
            schema=TRAJECTORIES,
        )
        self.tables.setdefault(key, []).append(table)

        picked = samples.filter(pa.array(chosen))
        self.handed_out.setdefault(key, []).extend(zip(picked["group"].to_pylist(), picked["sample"].to_pylist(), strict=True))
        learner = pa.record_batch(
            {
                "group": picked["group"],
                "prompt_tokens": [prompts[g]["prompt_tokens"] for g in picked["group"].to_pylist()],
                "tokens": picked["tokens"],
                "rollout_logprobs": picked["logprobs"],
                "advantage": advantages[chosen],
            },
            schema=LEARNER,
        )
        failures = Counter(judgement.failure for judgement in judgements if judgement.failure)
        return {
            "samples": len(rewards),
            "groups": len(prompts),
            "groups_unequal": unequal,
            "groups_trained": int(trained.sum()),
            "groups_all_right": int((by_group > 0).all(axis=1).sum()),
            "reward_sum": float(rewards.sum()),
            "tokens": int(sum(_lengths(samples["tokens"]))),
            "truncated": columns["finish_reason"].count("length"),
            "parse_failures": dict(failures),
            "oldest_version": min(columns["weight_version"]),
        }, learner

    def write(self, key: str, path: str, trained: pa.Table | None = None) -> dict[str, Any]:
        """Write the trajectories remembered under `key` as one Parquet file and forget them.

        Args:
            trained: columns trainer_logprob and reference_logprob (means per sample), one row for each that `judge` gave to
                the learner under `key`, in that order.
        """
        table = pa.concat_tables(self.tables.pop(key))
        keys = self.handed_out.pop(key)
        if trained is not None:
            for name in ("trainer_logprob", "reference_logprob"):
                value_of = dict(zip(keys, trained[name].to_pylist(), strict=True))
                values = [value_of.get(key) for key in zip(table["group"].to_pylist(), table["sample"].to_pylist(), strict=True)]
                table = table.set_column(table.schema.get_field_index(name), TRAJECTORIES.field(name), pa.array(values, pa.float32()))
        write_parquet(table, Path(path))
        return {"rows": table.num_rows}


def _lengths(tokens: pa.Array) -> list[int]:
    return [len(row) for row in tokens]


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
