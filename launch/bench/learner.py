"""`rlsys bench learner`: one GRPO update of the learner alone, packed and unpacked, compared with the machine's matrix-product rate."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.text import Text

from launch.bench.memory import peak_bytes, resident_bytes
from launch.bench.runner import run_system
from launch.bench.work import (
    TRAIN_PARTS,
    Cores,
    Model,
    OutputTokens,
    Overrides,
    Prompts,
    Samples,
    Timeout,
    Work,
    choose_cores,
    local_ray,
    meta_model,
    one_gpu,
    run_child,
    run_config,
    shape_text,
)
from launch.console import report, to_stderr
from launch.options import AsJson
from rlsys.config.schema import Config
from rlsys.system.terminal import Table

if TYPE_CHECKING:
    from actors.cluster.calls import LearnerGroup

Answer = TypeVar("Answer")


def learner(
    overrides: Overrides = None,
    prompts: Prompts = 2,
    samples: Samples = 8,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of every prompt, in tokens.")] = 337,
    output_tokens: OutputTokens = 96,
    cores: Cores = 1,
    model: Model = "models/smollm2-135m-instruct",
    repeats: Annotated[int, typer.Option(min=1, help="Measured updates, after one warm-up update.")] = 3,
    unpacked: Annotated[bool, typer.Option(help="Also measure the padded form.")] = True,
    memory: Annotated[bool, typer.Option("--memory", help="Compare the memory of the settings for larger models instead.")] = False,
    timeout: Timeout = 900,
    as_json: AsJson = False,
) -> None:
    """Time the learner on random tokens: reference, forward and backward pass, optimizer; samples per second and share of the ceiling.

    The ceiling is the rate of a large matrix product in the run's dtype, measured in the same processes on all ranks at once. Useful
    operations are one reference pass (unless rl.beta is 0) plus three forward passes, counting each distinct token once.

    --memory compares what a rank holds between steps and at its peak: as given, and with activation checkpointing, a sharded reference,
    offload, release, ZeRO-3.

    Example: rlsys bench learner --cores 2 learner.ranks=2
    """

    work = Work(prompts, samples, prompt_tokens, output_tokens, choose_cores(cores), repeats, overrides or [], model)
    run_config(work)

    if memory:
        from launch.bench import learner_memory

        report(as_json, lambda: learner_memory.compare(work, timeout), learner_memory.render)
        return

    forms = {"packed": "true", "unpacked": "false"} if unpacked else {"packed": "true"}

    def all_forms() -> dict[str, Any]:
        results = {}
        for form, packing in forms.items():
            one = replace(work, overrides=[*work.overrides, f"learner.packing={packing}"])
            results[form] = run_system(f"learner, {form}", "launch.bench.learner", one, timeout, to_stderr())
        return summarise(work, results)

    report(as_json, all_forms, render)


def measure(work: Work) -> dict[str, Any]:
    """Measure updates on a local Ray: seconds, useful operations, the ceiling, and memory."""
    import torch

    from launch.bench.ceilings import matmul_flops
    from rlsys.models.flops import TRAINING, forward_flops, shape_of
    from rlsys.models.loading import ensure_model
    from rlsys.models.packing import plan_micro_batches

    config = run_config(work)
    model = ensure_model(config.model.path)
    batches = [random_batch(work, model, number) for number in range(work.steps)]
    dtype = getattr(torch, config.model.dtype)
    with local_ray(len(work.cores)), tempfile.TemporaryDirectory(prefix="rlsys-bench-") as folder:
        learners = start_learners(config, model, len(work.cores), folder)
        learners.snapshot_reference()
        learners.start_stage(config.learner.lr, config.learner.warmup_steps)
        before = sum(on_every_rank(learners, resident_bytes))
        steps = []
        for batch in batches:
            began = time.perf_counter()
            metrics = learners.train_grpo(batch, config.rollout.temperature)["metrics"]
            seconds = {"whole": time.perf_counter() - began}
            seconds |= {name: metrics.get(f"seconds/learner_{name}", 0.0) for name in TRAIN_PARTS}
            if metrics["skipped"]:
                raise RuntimeError(f"an update was skipped ({metrics['skip_reason']}): its figures would be meaningless.")
            steps.append({"seconds": seconds, "encoded_tokens": metrics["encoded_tokens"], "grad_norm": metrics["grad_norm"]})
        peak = sum(on_every_rank(learners, peak_bytes))

        def ceiling(_: Any) -> float:
            return matmul_flops(dtype)

        ceilings = on_every_rank(learners, ceiling)
    shape = shape_of(meta_model(model))
    useful = sum(forward_flops(shape, share) for share in plan_micro_batches(batches[0], 1, 2**60))
    return {
        "settings": {
            "dtype": config.model.dtype,
            "ranks": config.learner.ranks,
            "zero_stage": config.learner.zero_stage,
            "packing": config.learner.packing,
            "layers": config.learner.layers,
            "token_budget": config.learner.token_budget,
            "beta": config.rl.beta,
        },
        "steps": steps,
        "useful_flops": useful * (TRAINING + (config.rl.beta > 0)),
        "ceiling_flops_per_s": sum(ceilings),
        "resident_bytes_before": before,
        "peak_bytes": peak,
    }


def start_learners(config: Config, model: str, cores: int, folder: str) -> LearnerGroup:
    """Start the learner ranks of a run, without other actors, and wait until they are ready."""
    import ray

    from actors.cluster.calls import LearnerGroup
    from actors.cluster.reservation import cluster_machines
    from actors.cluster.waiting import wait
    from actors.learner.learner import LearnerActor
    from rlsys.system.placement import place_learners

    ranks = place_learners(config, cluster_machines()).count("learner")
    # Several ranks on too few cores share them.
    actor = ray.remote(LearnerActor).options(num_cpus=min(1.0, cores / ranks), **one_gpu())
    threads = config.learner.cpus or max(1, cores // ranks)
    common = (model, config.learner, config.rl, config.model.dtype, config.seed, folder, threads)
    learners = LearnerGroup([actor.remote(rank, ranks, *common) for rank in range(ranks)], config.run)
    wait(learners.join(), config.run.timeout_s("start"))
    return learners


def on_every_rank(learners: LearnerGroup, function: Callable[[Any], Answer]) -> list[Answer]:
    """Call `function` with the actor in every rank's process and return the results."""
    from actors.cluster.waiting import Pending, wait

    ranks = zip(learners.actors, learners.names, strict=True)
    return wait(
        [Pending(actor.__ray_call__.remote(function), name, function.__name__) for actor, name in ranks], learners.run.actor_timeout_s
    )


def random_batch(work: Work, model: str, number: int) -> Any:
    """Return a `LearnerBatch` of random tokens in the shape of the work, with advantages +1, -1, +1, ..."""
    import numpy as np
    from transformers import AutoConfig

    from rlsys.data.chain import LearnerBatch, LearnerRow

    random = np.random.default_rng(number)
    vocabulary = AutoConfig.from_pretrained(model).get_text_config().vocab_size
    prompts, rows = [], []
    for group in range(work.prompts):
        prompts.append(random.integers(vocabulary, size=work.prompt_tokens))
        for sample in range(work.samples):
            tokens = random.integers(vocabulary, size=work.output_tokens)
            # About the log-probability of a random token, so that importance weights stay near one.
            logprobs = [-10.0] * work.output_tokens
            rows.append(LearnerRow(group, sample, tokens, logprobs, 1.0 - 2.0 * (sample % 2)))
    return LearnerBatch.of(prompts, rows)


def summarise(work: Work, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the document that --json prints. Medians are of the updates after the first."""
    forms: dict[str, dict[str, Any]] = {}
    for form, result in results.items():
        counted = [step["seconds"] for step in result["steps"][1:]]
        median = {name: statistics.median(seconds[name] for seconds in counted) for name in counted[0]}
        rate = result["useful_flops"] / median["whole"]
        forms[form] = {
            **result,
            "first": result["steps"][0]["seconds"],
            "median": median,
            "samples_per_s": work.sequences / median["whole"],
            "encoded_tokens": result["steps"][-1]["encoded_tokens"],
            "useful_flops_per_s": rate,
            "share_of_ceiling": rate / result["ceiling_flops_per_s"],
        }
    document: dict[str, Any] = {"work": asdict(work), "forms": forms}
    if "unpacked" in forms:
        document["times_as_fast_as_unpacked"] = forms["unpacked"]["median"]["whole"] / forms["packed"]["median"]["whole"]
    return document


def render(document: dict[str, Any]) -> Table:
    """Render seconds by part, rates and memory."""
    forms = document["forms"]
    ratio = document.get("times_as_fast_as_unpacked")
    table = Table(
        title=f"One update of the learner: {shape_text(document['work'])}",
        caption="Seconds: the first update, then the median of the others." + (f" Packed is {ratio:.1f} times as fast." if ratio else ""),
    )
    table.add_column("", no_wrap=True)
    for form in forms:
        table.add_column(f"{form}\nfirst", justify="right")
        table.add_column(f"{form}\nmedian", justify="right")
    for part in (*TRAIN_PARTS, "whole"):
        cells = [f"{result[column][part]:.2f}" for result in forms.values() for column in ("first", "median")]
        table.add_row(part if part != "whole" else Text("whole update", "bold"), *cells, end_section=part in (TRAIN_PARTS[-1], "whole"))
    rows: dict[str, Callable[[dict[str, Any]], str | Text]] = {
        "samples per second": lambda r: f"{r['samples_per_s']:.2f}",
        "tokens encoded": lambda r: f"{r['encoded_tokens']:,.0f}",
        "useful operations, GFLOP/s": lambda r: f"{r['useful_flops_per_s'] / 1e9:.0f}",
        "matrix products here, GFLOP/s": lambda r: f"{r['ceiling_flops_per_s'] / 1e9:.0f}",
        "share of that": lambda r: Text(f"{r['share_of_ceiling']:.0%}", "bold"),
        "memory before, GiB": lambda r: f"{r['resident_bytes_before'] / 2**30:.2f}",
        "peak memory, GiB": lambda r: f"{r['peak_bytes'] / 2**30:.2f}",
    }
    for name, cell in rows.items():
        table.add_row(name, *[text for result in forms.values() for text in ("", cell(result))])
    return table


if __name__ == "__main__":
    run_child(measure)
