"""Stand-ins for engines and learners in simulations: they return prepared samples at once or after a given time.

They import nothing heavy, so that many processes fit on a small machine. `launch.bench.loop` runs the RL loop on them.
"""

from __future__ import annotations

import asyncio
import pickle
import random
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from actors.cluster.waiting import Pending, wait
from rlsys.data.chain import SAMPLES, LearnerBatch

WORDS = (
    "answer asked because better clear complete criteria criterion detail exactly follows format helpful instruction is letter "
    "misses names not of one point question response says shorter states that the the the to true word worse wrong"
).split()
POOL = 4096
"""Prepared samples of an engine stand-in."""
TIMEOUT_S = 60.0
"""Longest wait for an engine stand-in beyond its configured duration, in seconds."""


def critique(rng: random.Random, responses: int) -> str:
    """Generate a critique of about 100 to 300 tokens; one in ten has one of the counted parse failures."""
    scores = [str(rng.randint(*((0, 1) if responses == 1 else (1, 10)))) for _ in range(responses)]
    box = f"\\boxed{{{', '.join(scores)}}}"
    if rng.random() < 0.1:
        extra_score = f"\\boxed{{{', '.join([*scores, '3'])}}}"
        unreadable = [box.removesuffix("}"), box.replace("{", "["), f"<think>{box}"]
        box = rng.choice([", ".join(scores), extra_score, box.replace("}", "/10}"), box.replace("{", "{1"), *unreadable])
    text = " ".join(rng.choices(WORDS, k=rng.randrange(80, 250)))
    return f"Specific Criteria: {text[:60]}\nAnalysis: {text[60:]}\nScores: {box}"


def prepared_samples(responses: Sequence[int], seed: int) -> pa.RecordBatch:
    """Prepare one sample (SAMPLES schema, group and sample 0) for each entry of `responses`, its number of responses."""
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    texts = [critique(rng, n) for n in responses]
    # About six characters per token for these words, including the space.
    lengths = np.array([len(text) // 6 for text in texts])
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    columns = {
        "group": np.zeros(len(texts), np.int32),
        "sample": np.zeros(len(texts), np.int32),
        "token_ids": pa.ListArray.from_arrays(offsets, numbers.integers(0, 49_000, offsets[-1], dtype=np.int32)),
        "logprobs": pa.ListArray.from_arrays(offsets, -numbers.random(offsets[-1], dtype=np.float32)),
        "text": texts,
        "finish_reason": ["stop"] * len(texts),
        "weight_version": np.zeros(len(texts), np.int64),
        "certainty": pa.nulls(len(texts), pa.float32()),
    }
    return pa.record_batch(columns, schema=SAMPLES)


def serialized_bytes(value: Any) -> int:
    """Return the size of `value` in Ray's object store: its pickle and out-of-band buffers."""
    buffers: list[pickle.PickleBuffer] = []
    return len(pickle.dumps(value, protocol=5, buffer_callback=buffers.append)) + sum(buffer.raw().nbytes for buffer in buffers)


class EngineStandIn:
    """Returns samples after a given time. One process can stand in for many engines, as its calls run concurrently.

    Sampling pauses while weights are received, as in an engine.
    """

    def __init__(self, seed: int):
        self.pool = prepared_samples([2] * POOL, seed)
        self.place, self.version, self.paused_s, self.generate_s = 0, 0, 0.0, 0.0
        self.bytes = {"prompts to engines": 0, "samples": 0}

    def set_seconds(self, generate_s: float) -> None:
        self.generate_s = generate_s

    @ray.method(num_returns=2)
    async def sample(self, prompts: pa.RecordBatch, *_: Any) -> tuple[int, pa.RecordBatch]:
        version, paused, end = self.version, self.paused_s, time.monotonic() + self.generate_s
        while (rest := end + self.paused_s - paused - time.monotonic()) > 0:
            await asyncio.sleep(rest)
        sizes = prompts["seeds"].value_lengths().to_numpy()
        count = int(sizes.sum())
        picked = self.pool.take(pa.array((self.place + np.arange(count)) % POOL))
        self.place += count
        columns = {name: picked[name] for name in SAMPLES.names} | {
            "group": prompts["group"].to_numpy().repeat(sizes),
            "sample": np.arange(count, dtype=np.int32) - (sizes.cumsum() - sizes).repeat(sizes).astype(np.int32),
            "weight_version": np.full(count, version),
        }
        samples = pa.record_batch(columns, schema=SAMPLES)
        self.bytes["prompts to engines"] += serialized_bytes(prompts)
        self.bytes["samples"] += serialized_bytes(samples)
        return count, samples

    async def take_weights(self, version: int, seconds: float) -> None:
        self.paused_s += seconds
        await asyncio.sleep(seconds)
        self.version = version

    async def sent_bytes(self) -> dict[str, int]:
        return self.bytes


class LearnerStandIn:
    """Stand-in for a learner rank: a step takes `train_s` seconds, sending weights `send_s`."""

    def __init__(self, engines: Sequence[Any]):
        self.engines = engines
        self.train_s = self.send_s = 0.0
        self.bytes = {"learner": 0, "trained": 0}
        self.rows = 0

    def set_seconds(self, train_s: float, send_s: float) -> None:
        self.train_s, self.send_s = train_s, send_s

    def train_grpo(self, batch: LearnerBatch, temperature: float, total_samples: int | None) -> dict[str, Any]:
        time.sleep(self.train_s)
        zeros = np.zeros(batch.num_rows, np.float32)
        keys = {name: batch.rows[name] for name in ("group", "sample")}
        table = pa.table(keys | {"trainer_logprob": zeros, "reference_logprob": zeros})
        self.rows += batch.num_rows
        self.bytes["learner"] += serialized_bytes(batch)
        self.bytes["trained"] += serialized_bytes(table)
        return {"metrics": {"skipped": 0.0}, "samples": table}

    def send_weights(self, version: int, verify: bool) -> dict[str, Any]:
        calls = [
            Pending(engine.take_weights.remote(version, self.send_s), f"engine process {i}", "take_weights")
            for i, engine in enumerate(self.engines)
        ]
        wait(calls, TIMEOUT_S + self.send_s)
        return {"bytes": 0}

    def snapshot_reference(self) -> None:
        """Do nothing: there is no reference model."""

    def start_stage(self, lr: float, warmup_steps: int) -> None:
        """Do nothing: there is no optimizer."""

    def decay_over(self, steps: int) -> None:
        """Do nothing: there is no schedule."""

    def save(self, folder: str, files: dict[str, str] | None = None) -> None:
        """Do nothing: there are no weights."""

    def sent_bytes(self) -> dict[str, int]:
        return self.bytes

    def trained_rows(self) -> int:
        return self.rows
