"""The reward actor: rewards batches of samples and keeps the step's trajectory table."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.cluster.heartbeats import beat_from_a_thread
from actors.cluster.reservation import location
from rlsys.data.chain import LearnerBatch, sample_keys
from rlsys.io.run_folder import write_parquet
from rlsys.rewards.batch import JudgedBatch, add_trained, judge_batch, reward_batch
from rlsys.rewards.extraction import DEFAULT_FORMAT, ScoreFormat


class RewardActor:
    """Rewards samples by the rules of the method (Eq. 10, Eq. 11), or as it is told. Several batches (refills) may make up one step.

    Call order for each key: `judge` once per batch, `pop_learner_batch` if the step is trained on, then `write`, which drops the key.
    """

    def __init__(self, name: str, score_format: ScoreFormat = DEFAULT_FORMAT):
        self.name, self.score_format = name, score_format
        self.tables: dict[str, list[pa.Table]] = {}
        self.learner_batches: dict[str, list[LearnerBatch]] = {}
        self.popped: dict[str, np.ndarray] = {}

    def __repr__(self) -> str:
        return self.name

    def ready(self) -> dict[str, Any]:
        """Return the actor's name and location; answers once the process is up."""
        # Garbage collections need not traverse the imported modules, which stay for good.
        gc.freeze()
        return {"name": self.name, **location()}

    def start_heartbeat(self, heartbeats: Any) -> None:
        """Report this actor as alive from now on (`actors.cluster.heartbeats`)."""
        beat_from_a_thread(self.name, heartbeats)

    def judge(
        self,
        key: str,
        step: int,
        prompts: pa.RecordBatch,
        *samples: pa.RecordBatch,
        want: int | None = None,
        equal: bool = False,
        given: pa.Table | None = None,
    ) -> dict[str, Any]:
        """Score the samples of `prompts` (PROMPTS) and keep their trajectories.

        Args:
            key: the table that the samples belong to; refills of a step share its key and continue its group numbers.
            samples: parts (SAMPLES) of one batch with the same number of samples for every group.
            want: maximum number of groups for the learner; None: all of them.
            equal: train on groups of equal reward, too, with advantages of zero.
            given: the samples' rewards (REWARDS); None: they are judged by the rules.

        Returns:
            Counts of the batch.

        Raises:
            ValueError: the samples are not those of `prompts`.
        """
        try:
            judged = self._judged(step, prompts, samples, given)
        except ValueError as error:
            raise ValueError(f"{self.name}: {key}: {error}") from error
        rewards, table = judged.rewards, judged.table
        unequal, rewarded = np.asarray(judged.advantages.any(axis=1)), ~np.isnan(rewards[:, 0])
        trained = rewarded if equal else unequal.copy()
        if want is not None:
            trained &= trained.cumsum() <= want
        self.tables.setdefault(key, []).append(table)
        self.learner_batches.setdefault(key, []).append(judged.learner_batch(trained))
        return {
            "samples": table.num_rows,
            "groups": prompts.num_rows,
            "groups_unequal": int(unequal.sum()),
            "groups_trained": int(trained.sum()),
            "groups_all_right": int(_correct(table).reshape(rewards.shape).all(axis=1).sum()),
            "rewarded": int(rewarded.sum()) * rewards.shape[1],
            "reward_sum": float(rewards[rewarded].sum()),
            "sources": list(zip(prompts["source"].filter(pa.array(rewarded)).to_pylist(), rewards[rewarded].mean(axis=1).tolist())),
            "tokens": pc.sum(table["token_count"]).as_py(),
            "truncated": pc.sum(pc.equal(table["finish_reason"], "length")).as_py(),
            "parse_failures": dict(Counter(failure for failure in table["parse_failure"].to_pylist() if failure)),
            "oldest_version": pc.min(table["weight_version"]).as_py(),
        }

    def _judged(self, step: int, prompts: pa.RecordBatch, samples: Sequence[pa.RecordBatch], given: pa.Table | None) -> JudgedBatch:
        if given is None:
            return judge_batch(prompts, samples, self.score_format, step)
        return reward_batch(prompts, samples, given, step)

    def pop_learner_batch(self, key: str) -> tuple[int, LearnerBatch]:
        """Remove and return the learner's rows of everything judged under `key`, after their number.

        Groups of equal reward are left out unless they were judged with `equal`.
        """
        batch = LearnerBatch.concat(self.learner_batches.pop(key))
        self.popped[key] = np.sort(sample_keys(batch.rows))
        return batch.num_rows, batch

    def write(self, key: str, path: str, trained: pa.Table | None = None) -> dict[str, Any]:
        """Write the trajectories kept under `key` as one Parquet file and drop them.

        Args:
            trained: group, sample, trainer_logprob and reference_logprob (means per sample) of the rows of `pop_learner_batch`.

        Raises:
            ValueError: `trained` has other rows.
        """
        table = pa.concat_tables(self.tables.pop(key)).combine_chunks()
        self.learner_batches.pop(key, None)
        popped = self.popped.pop(key, np.empty(0))
        if trained is not None:
            if not np.array_equal(np.sort(sample_keys(trained)), popped):
                raise ValueError(f"{self.name}: {key}: {trained.num_rows} trained rows, expected the {len(popped)} of the learner batch.")
            table = add_trained(table, trained)
        write_parquet(table, Path(path))
        return {"rows": table.num_rows}


def _correct(table: pa.Table) -> np.ndarray:
    """Return whether each sample is correct; unknown is not."""
    return np.asarray(table["correct"].fill_null(False))
