"""`rlsys bench rollout`: tokens per second of a rollout actor, beside vLLM used bare on the same prompts, lengths and cores."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from typing import Annotated, Any

import typer
from rich.table import Table

from launch.bench_work import Work, choose_cores, local_ray, prompt_texts, run_child, run_config
from launch.console import only_json, to_stderr, to_stdout

BARE = "RLSYS_BENCH_BARE"
"""Set in the process that measures vLLM bare."""
WAIT_S = 900


def rollout(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings to try, for both sides: rollout.max_num_seqs=64.", show_default=False),
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts at a time.")] = 2,
    samples: Annotated[int, typer.Option(min=1, help="Samples per prompt.")] = 8,
    prompt_tokens: Annotated[int, typer.Option(min=16, help="Exact length of every prompt, in tokens.")] = 337,
    output_tokens: Annotated[int, typer.Option(min=2, help="Exact length of every output, in tokens.")] = 96,
    cores: Annotated[int, typer.Option(min=1, help="Cores that all processes of a side share.")] = 1,
    model: Annotated[str, typer.Option(help="Hugging Face folder or hub name.")] = "models/smollm2-135m-instruct",
    repeats: Annotated[int, typer.Option(min=1, help="Batches that count, after a first one that warms up.")] = 4,
    timeout: Annotated[float, typer.Option(min=1, help="Longest time for one side, in seconds.")] = WAIT_S,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")] = False,
) -> None:
    """Sample the same batches through a rollout actor and through vLLM's own offline class, one after the other.

    Bare vLLM draws all samples of a prompt as one request, without seeds, log-probabilities or Ray; a rollout actor gives every
    sample a seed and returns each token's log-probability. Engine settings (cache size, sequences, eager mode) are the same.

    Example: rlsys bench rollout --cores 2 --prompts 8
    """
    from launch.bench import run_system

    work = Work(prompts, samples, prompt_tokens, output_tokens, choose_cores(cores), repeats, overrides or [], model)
    run_config(work)
    with only_json(as_json) as write_json:
        screen = to_stderr()
        results = {"rlsys": run_system("rollout actor", "launch.bench_rollout", work, timeout, screen)}
        os.environ[BARE] = "1"
        try:
            results["bare"] = run_system("bare vLLM", "launch.bench_rollout", work, timeout, screen)
        finally:
            del os.environ[BARE]
        document = summarise(work, results)
        write_json(document)
        if not as_json:
            to_stdout().print(render(document))


def measure(work: Work) -> dict[str, Any]:
    """Seconds of every batch, on the side that the environment asks for."""
    from transformers import AutoTokenizer

    from rlsys.models import ensure_model

    config = run_config(work)
    model = ensure_model(config.model.path)
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = prompt_texts(tokenizer, 0, work.steps * work.prompts, work.prompt_tokens)
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    batches = [prompts[i * work.prompts : (i + 1) * work.prompts] for i in range(work.steps)]
    return bare(work, config, model, batches) if BARE in os.environ else ours(work, config, model, batches)


def ours(work: Work, config: Any, model: str, batches: list[list[list[int]]]) -> dict[str, Any]:
    """A rollout actor of a run."""
    import pyarrow as pa
    import ray

    from actors.rollout import RolloutActor
    from rlsys.trajectories import REQUESTS

    with local_ray(len(work.cores)), tempfile.TemporaryDirectory(prefix="rlsys-bench-") as folder:
        began = time.perf_counter()
        length = work.prompt_tokens + work.output_tokens
        backend = config.weights.backend if config.weights.backend != "auto" else "cpu"
        actor = (
            ray.remote(RolloutActor)
            .options(num_cpus=0)
            .remote("rollout-0", model, config.rollout, config.model.dtype, length, config.seed, backend, folder, len(work.cores))
        )
        told = ray.get(actor.ready.remote(), timeout=WAIT_S)
        start_s = time.perf_counter() - began
        seconds = []
        for number, prompts in enumerate(batches):
            seeds = range(number * work.sequences, (number + 1) * work.sequences)
            rows = [
                {"group": i, "prompt_tokens": prompt, "seeds": list(seeds[i * work.samples : (i + 1) * work.samples])}
                for i, prompt in enumerate(prompts)
            ]
            requests = pa.RecordBatch.from_pylist(rows, schema=REQUESTS)
            began = time.perf_counter()
            settings = (config.rollout.temperature, config.rollout.top_p, work.output_tokens, work.output_tokens)
            answer = ray.get(actor.generate.remote(requests, *settings), timeout=WAIT_S)
            seconds.append(time.perf_counter() - began)
            check(work, [len(tokens) for tokens in answer["tokens"]])
        ray.get(actor.shutdown.remote(), timeout=WAIT_S)
    return {"system": "rollout actor", "seconds": seconds, "start_s": start_s, "vllm": told["vllm"], "device": told["device"]}


def bare(work: Work, config: Any, model: str, batches: list[list[list[int]]]) -> dict[str, Any]:
    """vLLM's offline class, which has the engine in its own process."""
    from actors import vllm_compat

    vllm_compat.before_import("cpu")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    from vllm import LLM, SamplingParams, __version__

    began = time.perf_counter()
    length = work.prompt_tokens + work.output_tokens
    engine = LLM(
        model=model,
        dtype=config.model.dtype,
        max_model_len=length,
        enforce_eager=config.rollout.enforce_eager,
        **vllm_compat.engine_arguments(config.rollout, length),
    )
    start_s = time.perf_counter() - began
    settings = SamplingParams(
        n=work.samples,
        temperature=config.rollout.temperature,
        top_p=config.rollout.top_p,
        max_tokens=work.output_tokens,
        min_tokens=work.output_tokens,
    )
    seconds = []
    for prompts in batches:
        began = time.perf_counter()
        answers = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], settings, use_tqdm=False)
        seconds.append(time.perf_counter() - began)
        check(work, [len(output.token_ids) for answer in answers for output in answer.outputs])
    return {"system": "bare vLLM", "seconds": seconds, "start_s": start_s, "vllm": __version__, "device": vllm_compat.device()}


def check(work: Work, lengths: list[int]) -> None:
    """Figures of other work than was asked for are worse than none."""
    if lengths != [work.output_tokens] * work.sequences:
        raise RuntimeError(f"expected {work.sequences} outputs of {work.output_tokens} tokens, found lengths {sorted(set(lengths))}.")


def summarise(work: Work, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The document that --json prints. Medians are of the batches after the first."""
    tokens = work.sequences * work.output_tokens
    sides = {}
    for side, result in results.items():
        median = statistics.median(result["seconds"][1:])
        sides[side] = {**result, "first": result["seconds"][0], "median": median, "tokens_per_s": tokens / median}
    return {
        "work": {
            "prompts": work.prompts,
            "samples": work.samples,
            "prompt_tokens": work.prompt_tokens,
            "output_tokens": work.output_tokens,
            "cores": work.cores,
            "model": work.model,
            "overrides": work.overrides,
        },
        "sides": sides,
        "share_of_bare": sides["rlsys"]["tokens_per_s"] / sides["bare"]["tokens_per_s"],
    }


def render(document: dict[str, Any]) -> Table:
    """Both sides, one line each."""
    work = document["work"]
    shape = f"{work['prompts']} x {work['samples']} samples of {work['prompt_tokens']} + {work['output_tokens']} tokens"
    count = len(work["cores"])
    table = Table(
        title=f"Sampling: {shape}, {count} core{'s' if count > 1 else ''}",
        caption=f"The rollout actor reaches {document['share_of_bare']:.0%} of bare vLLM's tokens per second (medians).",
    )
    table.add_column("", no_wrap=True)
    for column in ("seconds to start", "first batch, s", "median, s", "tokens/s"):
        table.add_column(column, justify="right")
    for side in document["sides"].values():
        cells = (f"{side['start_s']:.0f}", f"{side['first']:.2f}", f"{side['median']:.2f}", f"{side['tokens_per_s']:.0f}")
        table.add_row(side["system"], *cells)
    return table


if __name__ == "__main__":
    run_child(measure)
