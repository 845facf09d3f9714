"""Stand-ins for engines and learners in timing simulations: they answer at once, or after a given time, with prepared samples.

They import nothing heavy, so that a small machine holds several processes of them. `launch.bench.loop` runs the real loop on them.
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
from rlsys.data.trajectories import SAMPLES

WORDS = (
    "answer asked because better clear complete criteria criterion detail exactly follows format helpful instruction is letter "
    "misses names not of one point question response says shorter states that the the the to true word worse wrong"
).split()
POOL = 4096
"""Samples that an engine's stand-in has ready."""
TIMEOUT_S = 60.0
"""Longest wait for an engine's stand-in beyond the time that it is told to take, in seconds."""


def critique(rng: random.Random, responses: int) -> str:
    """A generation in the output form, about 100 to 300 tokens long; one in ten is malformed in one of the ways that are counted."""
    scores = [str(rng.randint(*((0, 1) if responses == 1 else (1, 10)))) for _ in range(responses)]
    box = f"\\boxed{{{', '.join(scores)}}}"
    if rng.random() < 0.1:
        one_more = f"\\boxed{{{', '.join([*scores, '3'])}}}"
        unreadable = [box.removesuffix("}"), box.replace("{", "["), f"<think>{box}"]
        box = rng.choice([", ".join(scores), one_more, box.replace("}", "/10}"), box.replace("{", "{1"), *unreadable])
    text = " ".join(rng.choices(WORDS, k=rng.randrange(80, 250)))
    return f"Specific Criteria: {text[:60]}\nAnalysis: {text[60:]}\nScores: {box}"


def prepared_samples(responses: Sequence[int], seed: int) -> pa.RecordBatch:
    """One sample (SAMPLES schema, group and sample 0) for each of `responses`, the number of responses that it scores."""
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    texts = [critique(rng, n) for n in responses]
    # Of English and these words, about six characters a token with its blank.
    lengths = np.array([len(text) // 6 for text in texts])
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    columns = {
        "group": np.zeros(len(texts), np.int32),
        "sample": np.zeros(len(texts), np.int32),
        "tokens": pa.ListArray.from_arrays(offsets, numbers.integers(0, 49_000, offsets[-1], dtype=np.int32)),
        "logprobs": pa.ListArray.from_arrays(offsets, -numbers.random(offsets[-1], dtype=np.float32)),
        "text": texts,
        "finish_reason": ["stop"] * len(texts),
        "weight_version": np.zeros(len(texts), np.int64),
        "certainty": pa.nulls(len(texts), pa.float32()),
    }
    return pa.record_batch(columns, schema=SAMPLES)


def travelling_bytes(value: Any) -> int:
    """Bytes that `value` takes in Ray's object store: its pickle and the buffers beside it."""
    buffers: list[pickle.PickleBuffer] = []
    return len(pickle.dumps(value, protocol=5, buffer_callback=buffers.append)) + sum(buffer.raw().nbytes for buffer in buffers)


class EngineStandIn:
    """Answers as an engine does, after `seconds`. One process can stand in for many engines: its calls run side by side.

    While weights arrive its samples wait, as those of an engine do.
    """

    def __init__(self, seed: int):
        self.pool = prepared_samples([2] * POOL, seed)
        self.place, self.version, self.paused_s, self.generate_s = 0, 0, 0.0, 0.0
        self.bytes = {"requests": 0, "samples": 0}

    def set_seconds(self, generate_s: float) -> None:
        self.generate_s = generate_s

    @ray.method(num_returns=2)
    async def sample(self, requests: pa.RecordBatch, *_: Any) -> tuple[int, pa.RecordBatch]:
        version, paused, end = self.version, self.paused_s, time.monotonic() + self.generate_s
        while (rest := end + self.paused_s - paused - time.monotonic()) > 0:
            await asyncio.sleep(rest)
        sizes = requests["seeds"].value_lengths().to_numpy()
        count = int(sizes.sum())
        picked = self.pool.take(pa.array((self.place + np.arange(count)) % POOL))
        self.place += count
        columns = {name: picked[name] for name in SAMPLES.names} | {
            "group": requests["group"].to_numpy().repeat(sizes),
            "sample": np.arange(count, dtype=np.int32) - (sizes.cumsum() - sizes).repeat(sizes).astype(np.int32),
            "weight_version": np.full(count, version),
        }
        samples = pa.record_batch(columns, schema=SAMPLES)
        self.bytes["requests"] += travelling_bytes(requests)
        self.bytes["samples"] += travelling_bytes(samples)
        return count, samples

    async def take_weights(self, version: int, seconds: float) -> None:
        self.paused_s += seconds
        await asyncio.sleep(seconds)
        self.version = version

    async def travelled(self) -> dict[str, int]:
        return self.bytes


class LearnerStandIn:
    """Answers as a learner rank does: a step takes `train_s`, and sending weights `send_s`, in seconds."""

    def __init__(self, engines: Sequence[Any]):
        self.engines = engines
        self.train_s = self.send_s = 0.0
        self.bytes = {"learner": 0, "trained": 0}
        self.rows = 0

    def set_seconds(self, train_s: float, send_s: float) -> None:
        self.train_s, self.send_s = train_s, send_s

    def train_grpo(self, batch: pa.RecordBatch, temperature: float, total_samples: int | None) -> dict[str, Any]:
        time.sleep(self.train_s)
        table = pa.table({name: pa.array(np.zeros(batch.num_rows, np.float32)) for name in ("trainer_logprob", "reference_logprob")})
        self.rows += batch.num_rows
        self.bytes["learner"] += travelling_bytes(batch)
        self.bytes["trained"] += travelling_bytes(table)
        return {"metrics": {"skipped": 0.0}, "samples": table}

    def send_weights(self, version: int, verify: bool) -> None:
        calls = [
            Pending(engine.take_weights.remote(version, self.send_s), f"engine process {i}", "take_weights")
            for i, engine in enumerate(self.engines)
        ]
        wait(calls, TIMEOUT_S + self.send_s)

    def snapshot_reference(self) -> None:
        """Nothing to freeze."""

    def start_stage(self, lr: float, warmup_steps: int) -> None:
        """Nothing to train."""

    def decay_over(self, steps: int) -> None:
        """Nothing to decay."""

    def save(self, folder: str) -> None:
        """Nothing to save."""

    def travelled(self) -> dict[str, int]:
        return self.bytes

    def trained_rows(self) -> int:
        return self.rows
