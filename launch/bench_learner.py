"""`rlsys bench learner`: one GRPO update by the learner alone, packed beside unpacked, against the machine's rate of matrix products."""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from typing import Annotated, Any

import typer
from rich.table import Table

from launch.bench_work import TRAIN_PARTS, Work, choose_cores, local_ray, meta_model, run_child, run_config
from launch.console import only_json, to_stderr, to_stdout

WAIT_S = 900


def learner(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings of the run to try, for example learner.ranks=2.", show_default=False),
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of one step.")] = 2,
    samples: Annotated[int, typer.Option(min=2, help="Samples per prompt.")] = 8,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of every prompt, in tokens.")] = 337,
    output_tokens: Annotated[int, typer.Option(min=1, help="Length of every output, in tokens.")] = 96,
    cores: Annotated[int, typer.Option(min=1, help="Cores that all ranks share.")] = 1,
    model: Annotated[str, typer.Option(help="Hugging Face folder or hub name.")] = "models/smollm2-135m-instruct",
    repeats: Annotated[int, typer.Option(min=1, help="Updates that count, after a first one that warms up.")] = 3,
    unpacked: Annotated[bool, typer.Option(help="Measure the plain padded form, too.")] = True,
    timeout: Annotated[float, typer.Option(min=1, help="Longest time for one form, in seconds.")] = WAIT_S,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")] = False,
) -> None:
    """Time the learner on random tokens: reference, forward and backward pass, optimizer; samples per second and share of the ceiling.

    The ceiling is the rate of a large matrix product in the run's dtype, measured in the same processes, on all ranks at once.
    Useful operations are those of one reference pass (unless rl.beta is 0) and three times a forward pass, each distinct token once.

    Example: rlsys bench learner --cores 2 learner.ranks=2
    """
    from launch.bench import run_system

    shape = {"prompts": prompts, "samples": samples, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens}
    forms = {"packed": "true", "unpacked": "false"} if unpacked else {"packed": "true"}
    results = {}
    with only_json(as_json) as write_json:
        for form, packing in forms.items():
            settings = [*(overrides or []), f"learner.packing={packing}"]
            work = Work(**shape, cores=choose_cores(cores), repeats=repeats, overrides=settings, model=model)
            run_config(work)
            results[form] = run_system(f"learner, {form}", "launch.bench_learner", work, timeout, to_stderr())
        document = summarise({**shape, "cores": cores, "model": model, "overrides": overrides or []}, results)
        write_json(document)
        if not as_json:
            to_stdout().print(render(document))


def measure(work: Work) -> dict[str, Any]:
    """Updates on a local Ray of its own: seconds of each, operations they need, the ceiling, and memory."""
    import ray
    import torch

    from launch.ceilings import matmul_flops
    from rlsys.flops import TRAINING, forward_flops, shape_of
    from rlsys.models import ensure_model
    from rlsys.packing import plan

    config = run_config(work)
    model = ensure_model(config.model.path)
    batches = [random_batch(work, model, number) for number in range(work.steps)]
    dtype = getattr(torch, config.model.dtype)
    with local_ray(len(work.cores)), tempfile.TemporaryDirectory(prefix="rlsys-bench-") as folder:
        learners = start_learners(config, model, len(work.cores), folder)

        def everywhere(method: str, *args: Any) -> list[Any]:
            return ray.get([getattr(actor, method).remote(*args) for actor in learners], timeout=WAIT_S)

        everywhere("snapshot_reference")
        everywhere("start_stage", config.learner.lr, config.learner.warmup_steps)
        before = everywhere("__ray_call__", memory)
        steps = []
        for batch in batches:
            began = time.perf_counter()
            metrics = everywhere("train_grpo", batch, config.rollout.temperature)[0]["metrics"]
            seconds = {"whole": time.perf_counter() - began}
            seconds |= {name: metrics.get(f"seconds/learner_{name}", 0.0) for name in TRAIN_PARTS}
            if metrics["skipped"]:
                raise RuntimeError(f"an update was skipped ({metrics['skip_reason']}): its figures would mean nothing.")
            steps.append({"seconds": seconds, "encoded_tokens": metrics["encoded_tokens"], "grad_norm": metrics["grad_norm"]})
        after = everywhere("__ray_call__", memory)
        ceiling = sum(everywhere("__ray_call__", lambda _: matmul_flops(dtype)))
    shape = shape_of(meta_model(model))
    useful = sum(forward_flops(shape, share) for share in plan(batches[0], 1, 2**60))
    return {
        "settings": {
            "dtype": config.model.dtype,
            "ranks": config.learner.ranks,
            "zero_stage": config.learner.zero_stage,
            "packing": config.learner.packing,
            "fused_norms": config.learner.fused_norms,
            "token_budget": config.learner.token_budget,
            "beta": config.rl.beta,
        },
        "steps": steps,
        "useful_flops": useful * (TRAINING + (config.rl.beta > 0)),
        "ceiling_flops_per_s": ceiling,
        "resident_bytes_before": sum(now for now, _ in before),
        "peak_bytes": sum(peak for _, peak in after),
    }


def start_learners(config: Any, model: str, cores: int, folder: str) -> list[Any]:
    """The ranks as Ray actors, ready to train."""
    import ray

    from actors.learner import LearnerActor

    ranks = config.learner.ranks
    # Several ranks on too few cores share them.
    actor = ray.remote(LearnerActor).options(num_cpus=min(1.0, cores / ranks))
    threads = config.learner.cpus or max(1, cores // ranks)
    common = (model, config.learner, config.rl, config.model.dtype, config.seed, folder, threads)
    learners = [actor.remote(rank, ranks, *common) for rank in range(ranks)]
    address = ray.get(learners[0].address.remote(), timeout=WAIT_S)
    ray.get([each.setup.remote(*address) for each in learners], timeout=WAIT_S)
    return learners


def memory(_: Any) -> tuple[int, int]:
    """(resident now, largest so far) of this process, in bytes."""
    import psutil

    return psutil.Process().memory_info().rss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def random_batch(work: Work, model: str, number: int) -> Any:
    """LEARNER rows of random tokens in the work's shape, with advantages +1, -1, +1, ..."""
    import numpy as np
    import pyarrow as pa
    from transformers import AutoConfig

    from rlsys.trajectories import LEARNER

    random = np.random.default_rng(number)
    vocabulary = AutoConfig.from_pretrained(model).get_text_config().vocab_size
    rows = []
    for group in range(work.prompts):
        prompt = random.integers(vocabulary, size=work.prompt_tokens).tolist()
        for sample in range(work.samples):
            tokens = random.integers(vocabulary, size=work.output_tokens).tolist()
            # About what a random token's log-probability is, so that importance weights stay near one.
            logprobs = [-10.0] * work.output_tokens
            advantage = 1.0 - 2.0 * (sample % 2)
            rows.append({"group": group, "prompt_tokens": prompt, "tokens": tokens, "rollout_logprobs": logprobs, "advantage": advantage})
    return pa.RecordBatch.from_pylist(rows, schema=LEARNER)


def summarise(work: dict[str, Any], results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The document that --json prints. Medians are of the updates after the first."""
    forms = {}
    for form, result in results.items():
        counted = [step["seconds"] for step in result["steps"][1:]]
        median = {name: statistics.median(seconds[name] for seconds in counted) for name in counted[0]}
        rate = result["useful_flops"] / median["whole"]
        forms[form] = {
            **result,
            "first": result["steps"][0]["seconds"],
            "median": median,
            "samples_per_s": work["prompts"] * work["samples"] / median["whole"],
            "encoded_tokens": result["steps"][-1]["encoded_tokens"],
            "useful_flops_per_s": rate,
            "share_of_ceiling": rate / result["ceiling_flops_per_s"],
        }
    document = {"work": work, "forms": forms}
    if "unpacked" in forms:
        document["times_as_fast_as_unpacked"] = forms["unpacked"]["median"]["whole"] / forms["packed"]["median"]["whole"]
    return document


def render(document: dict[str, Any]) -> Table:
    """Seconds by part, and what they come to."""
    work, forms = document["work"], document["forms"]
    ratio = document.get("times_as_fast_as_unpacked")
    shape = f"{work['prompts']} x {work['samples']} samples of {work['prompt_tokens']} + {work['output_tokens']} tokens"
    table = Table(
        title=f"One update of the learner: {shape}, {work['cores']} core{'s' if work['cores'] > 1 else ''}",
        caption="Seconds: the first update, then the median of the others." + (f" Packed is {ratio:.1f} times as fast." if ratio else ""),
    )
    table.add_column("", no_wrap=True)
    for form in forms:
        table.add_column(f"{form}\nfirst", justify="right")
        table.add_column(f"{form}\nmedian", justify="right")
    for part in (*TRAIN_PARTS, "whole"):
        cells = [f"{result[column][part]:.2f}" for result in forms.values() for column in ("first", "median")]
        table.add_row(part if part != "whole" else "[bold]whole update[/]", *cells, end_section=part in (TRAIN_PARTS[-1], "whole"))
    rows = {
        "samples per second": lambda r: f"{r['samples_per_s']:.2f}",
        "tokens encoded": lambda r: f"{r['encoded_tokens']:,.0f}",
        "useful operations, GFLOP/s": lambda r: f"{r['useful_flops_per_s'] / 1e9:.0f}",
        "matrix products here, GFLOP/s": lambda r: f"{r['ceiling_flops_per_s'] / 1e9:.0f}",
        "share of that": lambda r: f"[bold]{r['share_of_ceiling']:.0%}[/]",
        "memory before, GiB": lambda r: f"{r['resident_bytes_before'] / 2**30:.2f}",
        "memory at most, GiB": lambda r: f"{r['peak_bytes'] / 2**30:.2f}",
    }
    for name, cell in rows.items():
        table.add_row(name, *[text for result in forms.values() for text in ("", cell(result))])
    return table


if __name__ == "__main__":
    run_child(measure)
