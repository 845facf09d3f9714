"""Our system in `rlsys bench step`: actors, calls and defaults of a run, on prompts of an exact length."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.cluster.calls import Actors
from actors.cluster.groups import Cluster
from actors.cluster.waiting import Pending, wait
from launch.bench.work import TRAIN_PARTS, StepClock, Work, local_ray, meta_model, prompt_texts, run_child, run_config
from rlsys.config.schema import Config
from rlsys.data.chain import LEARNER_ROWS, LearnerBatch, PromptItem, prompt_batch
from rlsys.data.records import Record
from rlsys.models.loading import ensure_model


@contextmanager
def local_cluster(config: Config, model: str, max_model_len: int, cores: int) -> Iterator[tuple[Cluster, dict[str, Any], Path]]:
    """Start the actors of a run on a local Ray; yield the cluster, the actors' reports, and a folder for files."""
    with local_ray(cores), tempfile.TemporaryDirectory(prefix="rlsys-bench-") as folder:
        cluster = Cluster(config, model, max_model_len, Path(folder) / "logs")
        try:
            yield cluster, cluster.start(), Path(folder)
        finally:
            cluster.close()


def measure(work: Work) -> dict[str, Any]:
    """Run the steps; return seconds by phase, floors and the settings."""
    from transformers import AutoTokenizer

    config = run_config(work)
    model = ensure_model(config.model.path)
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = prompt_texts(tokenizer, 0, work.steps * work.prompts, work.prompt_tokens)
    began = time.perf_counter()
    with local_cluster(config, model, work.prompt_tokens + work.output_tokens, len(work.cores)) as (cluster, reports, folder):
        actors = cluster.actors
        actors.learners.snapshot_reference()
        actors.learners.start_stage(config.learner.lr, config.learner.warmup_steps)
        start_s = time.perf_counter() - began
        steps = []
        for number in range(work.steps):
            own = texts[number * work.prompts : (number + 1) * work.prompts]
            prompts = bench_prompts(tokenizer, own, work.samples, config.seed, number)
            steps.append(step(actors, config, work, prompts, number, folder))
    return {
        "system": "rlsys",
        "start_s": start_s,
        "steps": steps,
        "floors": floors(work, config, model, len(work.cores)),
        "settings": {
            "dtype": config.model.dtype,
            "packing": config.learner.packing,
            "layers": config.learner.layers,
            "activation_checkpointing": config.learner.activation_checkpointing,
            "token_budget": config.learner.token_budget,
            "ranks": config.learner.ranks,
            "zero_stage": config.learner.zero_stage,
            "beta": config.rl.beta,
            "lr": config.learner.lr,
            "device": reports["learner-0"]["device"],
        },
    }


def floors(work: Work, config: Config, model: str, threads: int) -> dict[str, float]:
    """Return lower bounds on the seconds of training and sampling on this machine, and the measured rates behind them.

    Training: useful operations (`rlsys.models.flops`) at the rate of a large matrix product. Sampling: the prompts' operations at that
    rate; then for each output token the maximum of the operations of all sequences, and of reading all weights once at twice the rate of
    memcpy (a copy reads and writes).
    """
    import torch

    from launch.bench.ceilings import matmul_flops, memcpy_bytes_per_s
    from launch.bench.learner import random_batch
    from rlsys.models.flops import TRAINING, forward_flops, shape_of
    from rlsys.models.packing import plan_micro_batches

    torch.set_num_threads(threads)
    dtype = getattr(torch, config.model.dtype)
    flops, copy_rate = matmul_flops(dtype), memcpy_bytes_per_s()
    network = meta_model(model)
    shape = shape_of(network)
    training = forward_flops(shape, plan_micro_batches(random_batch(work, model, 0), 1, 2**60)[0]) * (TRAINING + (config.rl.beta > 0))
    prompts = 2 * shape.linear * work.prompts * work.prompt_tokens / flops
    # On average, a token attends to its prompt and half of its output.
    attention = 4 * shape.width * shape.layers * (work.prompt_tokens + work.output_tokens / 2)
    decoding = work.sequences * (2 * (shape.linear + shape.output) + attention) / flops
    reading = sum(parameter.numel() for parameter in network.parameters()) * dtype.itemsize / (2 * copy_rate)
    return {
        "train": training / flops,
        "generate": prompts + work.output_tokens * max(decoding, reading),
        "generate_arithmetic": prompts + work.output_tokens * decoding,
        "generate_memory": work.output_tokens * reading,
        "matmul_flops_per_s": flops,
        "memcpy_bytes_per_s": copy_rate,
    }


def bench_prompts(tokenizer: Any, texts: list[str], samples: int, *key: int) -> pa.RecordBatch:
    """Return PROMPTS of the texts, as if each compared two responses; sampling seeds depend on `key`."""
    records = [Record(f"bench-{key[-1]}-{i}", "bench", (), ("", ""), (1.0, 0.0), family="bench") for i in range(len(texts))]
    items = [PromptItem(record, (0, 1), text, tokenizer(text)["input_ids"]) for record, text in zip(records, texts, strict=True)]
    return prompt_batch([item.seeded(samples, "bench", *key) for item in items])


def step(actors: Actors, config: Config, work: Work, prompts: pa.RecordBatch, number: int, folder: Path) -> dict[str, Any]:
    """Run one GRPO step as `actors.loops.rl` does."""
    clock = StepClock()
    key = f"step {number}"
    with clock.phase("generate"):
        parts = actors.rollouts.sample(
            prompts, config.rollout.temperature, config.rollout.top_p, work.output_tokens, min_tokens=work.output_tokens
        )
    with clock.phase("judge"):
        actors.reward.judge(key, number, prompts, parts)
    with clock.phase("train"):
        samples = pa.concat_batches(wait([Pending(part, "rollout", "sample") for part in parts], actors.rollouts.run.timeout_s("sample")))
        trained = actors.learners.train_grpo(learner_batch(prompts, samples), config.rollout.temperature)["metrics"]
    with clock.phase("write trajectories"):
        actors.reward.write_trajectories(key, folder / f"step_{number:06d}.parquet")
    with clock.phase("send weights"):
        actors.learners.send_weights(number + 1)
    seconds = clock.stop()
    if trained["skipped"]:
        raise RuntimeError(f"step {number + 1} was skipped ({trained['skip_reason']}): its figures would be meaningless.")
    lengths = [len(row) for row in samples["token_ids"]]
    return {
        "seconds": seconds,
        "train_seconds": {name: trained.get(f"seconds/learner_{name}", 0.0) for name in TRAIN_PARTS},
        "samples": len(lengths),
        "prompt_tokens": sorted({len(row) for row in prompts["prompt_token_ids"]}),
        "output_tokens": sorted(set(lengths)),
        "encoded_tokens": trained["encoded_tokens"],
        "loss": trained["loss"],
    }


def learner_batch(prompts: pa.RecordBatch, samples: pa.RecordBatch) -> LearnerBatch:
    """Return all samples with advantages +1, -1, +1, ... instead of the judged ones.

    The outputs of a model not trained on the format never parse: all rewards would be equal, and nothing would be trained on.
    """
    columns = {
        "group": samples["group"],
        "sample": samples["sample"],
        "token_ids": samples["token_ids"],
        "rollout_logprobs": samples["logprobs"],
        "advantage": [1.0 - 2.0 * (sample % 2) for sample in samples["sample"].to_pylist()],
    }
    return LearnerBatch(prompts.select(["group", "prompt_token_ids"]), pa.record_batch(columns, schema=LEARNER_ROWS))


if __name__ == "__main__":
    run_child(measure)
