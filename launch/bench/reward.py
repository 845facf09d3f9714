"""`rlsys bench reward`: samples per second that the reward actor judges, passes on and writes, on one core."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.bench.work import Samples, StepClock, local_ray
from launch.console import report, to_stderr
from launch.options import AsJson
from rlsys.config.schema import Run
from rlsys.system.terminal import Table, as_text

if TYPE_CHECKING:
    from actors.cluster.reward_client import RewardClient

PHASES = ("judge", "hand over", "write")
WAIT_S = 120
"""Longest wait for one call of the reward actor, in seconds."""


def reward(
    groups: Annotated[int, typer.Option(min=1, help="Prompts per batch.")] = 1250,
    samples: Samples = 8,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of every prompt, in tokens.")] = 400,
    repeats: Annotated[int, typer.Option(min=1, help="Measured batches, after one warm-up batch.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Judge batches of samples of 100 to 300 tokens in a reward actor pinned to one core, and write their trajectories.

    Example: rlsys bench reward --groups 4096
    """
    report(as_json, lambda: measure(groups, samples, prompt_tokens, repeats), render)


def measure(groups: int, samples: int, prompt_tokens: int, repeats: int) -> dict[str, Any]:
    """Measure the seconds of each batch by phase, and of copying the batch and judging its texts alone on the same core."""
    import ray

    from actors.cluster.reward_client import RewardClient
    from actors.cluster.waiting import Pending, wait
    from launch.bench.stand_ins import serialized_bytes

    group_rows, sample_rows = batch(groups, samples, prompt_tokens)
    core = max(os.sched_getaffinity(0))
    with to_stderr().status(as_text("judging …")), tempfile.TemporaryDirectory(prefix="rlsys-bench-") as folder, local_ray():
        actor = ray.remote(num_cpus=0)(_pinned_reward()).remote("reward")
        reward = RewardClient(actor, Run(actor_timeout_s=WAIT_S))
        wait([Pending(actor.pin_to.remote(core), "reward", "pin_to"), reward.ready()], WAIT_S)
        references = ray.put(group_rows), ray.put(sample_rows)
        batches = [judge_one(reward, *references, Path(folder) / f"{number}.parquet") for number in range(1 + repeats)]
        ceiling = wait([Pending(actor.ceilings.remote(*references), "reward", "ceilings")], WAIT_S)[0]
        ray.kill(actor)
    counts = batches[0]["counts"]
    median = {phase: sorted(one["seconds"][phase] for one in batches[1:])[repeats // 2] for phase in PHASES}
    count = groups * samples
    total_bytes = serialized_bytes(group_rows) + serialized_bytes(sample_rows)
    return {
        "groups": groups,
        "samples": count,
        "bytes": total_bytes,
        "counts": counts,
        "first": batches[0]["seconds"],
        "batches": [one["seconds"] for one in batches[1:]],
        "median": median,
        "file_bytes": batches[-1]["file_bytes"],
        "samples_per_s": count / sum(median.values()),
        "texts_alone_per_s": count / ceiling["texts_s"],
        "memcpy_bytes_per_s": ceiling["memcpy_bytes_per_s"],
        "times_of_one_copy": sum(median.values()) / (total_bytes / ceiling["memcpy_bytes_per_s"]),
    }


def batch(groups: int, samples: int, prompt_tokens: int) -> tuple[Any, Any]:
    """Return PROMPTS and SAMPLES of prompts with 1, 2 or 4 responses."""
    import random

    import numpy as np
    import pyarrow as pa

    from launch.bench.stand_ins import WORDS, prepared_samples
    from rlsys.data.chain import PROMPTS, SAMPLES

    rng = random.Random(0)
    rows: list[dict[str, Any]] = []
    for group in range(groups):
        n = rng.choice((1, 2, 2, 4))
        rewards = [float(rng.random() < 0.5)] if n == 1 else [float(i == 0) for i in range(n)]
        rows.append(
            {
                "group": group,
                "prompt_id": f"bench-{group}",
                "family": f"family-{group % 12}",
                "order": rng.sample(range(n), n),
                "rewards": rewards,
                "prompt": " ".join(rng.choices(WORDS, k=prompt_tokens * 3 // 4)),
                "prompt_token_ids": rng.choices(range(49_000), k=prompt_tokens),
            }
        )
    prepared = prepared_samples([len(row["order"]) for row in rows for _ in range(samples)], seed=0)
    columns = {name: prepared[name] for name in SAMPLES.names} | {
        "group": np.arange(groups, dtype=np.int32).repeat(samples),
        "sample": np.tile(np.arange(samples, dtype=np.int32), groups),
    }
    return pa.RecordBatch.from_pylist(rows, schema=PROMPTS), pa.record_batch(columns, schema=SAMPLES)


def judge_one(reward: RewardClient, groups: Any, samples: Any, path: Path) -> dict[str, Any]:
    """Run one step of the actor with PROMPTS and SAMPLES in the object store; seconds as seen by the caller."""
    clock = StepClock()
    with clock.phase("judge"):
        counts = reward.judge("bench", 1, groups, [samples])
    with clock.phase("hand over"):
        reward.pop_learner_batch("bench")
    with clock.phase("write"):
        reward.write_trajectories("bench", path)
    return {"seconds": clock.stop(), "counts": counts, "file_bytes": path.stat().st_size}


def _pinned_reward() -> type:
    import pyarrow as pa

    from actors.reward import RewardActor

    class PinnedReward(RewardActor):
        """The reward actor pinned to one core, with measurements of that core."""

        def pin_to(self, core: int) -> None:
            for thread in os.listdir("/proc/self/task"):
                os.sched_setaffinity(int(thread), {core})
            pa.set_cpu_count(1)

        def ceilings(self, groups: pa.RecordBatch, samples: pa.RecordBatch) -> dict[str, float]:
            """Measure memcpy, and the seconds to judge the texts one by one."""
            from launch.bench.ceilings import best_seconds, memcpy_bytes_per_s
            from rlsys.rewards.rules import judge

            truths = dict(zip(groups["group"].to_pylist(), zip(groups["rewards"].to_pylist(), groups["order"].to_pylist())))
            pairs = list(zip(samples["text"].to_pylist(), samples["group"].to_pylist()))
            texts_s = best_seconds(lambda: [judge(text, *truths[group]) for text, group in pairs], rounds=2)
            return {"texts_s": texts_s, "memcpy_bytes_per_s": memcpy_bytes_per_s()}

    return PinnedReward


def render(document: dict[str, Any]) -> Table:
    count = document["samples"]
    table = Table(
        title=f"Reward actor on one core\n{document['groups']:,} prompts, {count:,} samples, {document['bytes'] / 2**20:.0f} MiB",
        caption=f"{document['samples_per_s']:,.0f} samples/s\n"
        f"{document['times_of_one_copy']:.0f} times the duration of copying the batch\n"
        f"judging texts one by one: {document['texts_alone_per_s']:,.0f} samples/s",
    )
    table.add_column("phase")
    for column in ("first batch, s", "median, s", "median, µs per sample"):
        table.add_column(column, justify="right")
    for phase in PHASES:
        median = document["median"][phase]
        table.add_row(phase, f"{document['first'][phase]:.3f}", f"{median:.3f}", f"{median / count * 1e6:.2f}")
    return table
