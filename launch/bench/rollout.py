"""`rlsys bench rollout`: tokens per second of a rollout actor, compared with bare vLLM on the same prompts, lengths and cores."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import asdict
from typing import Annotated, Any

import typer

from launch.bench.runner import run_systems
from launch.bench.work import (
    Cores,
    Model,
    OutputTokens,
    PromptTokens,
    Timeout,
    Work,
    choose_cores,
    local_ray,
    one_gpu,
    prompt_texts,
    run_child,
    run_config,
    shape_text,
)
from launch.console import report, to_stderr
from launch.options import AsJson
from rlsys.system.terminal import Table


def rollout(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings of both sides, for example rollout.max_num_seqs=64.", show_default=False),
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts per batch.")] = 2,
    samples: Annotated[int, typer.Option(min=1, help="Samples per prompt.")] = 8,
    prompt_tokens: PromptTokens = 337,
    output_tokens: OutputTokens = 96,
    cores: Cores = 1,
    model: Model = "models/smollm2-135m-instruct",
    repeats: Annotated[int, typer.Option(min=1, help="Measured batches, after one warm-up batch.")] = 4,
    timeout: Timeout = 900,
    as_json: AsJson = False,
) -> None:
    """Sample the same batches through a rollout actor, then through vLLM's offline class.

    Bare vLLM samples a prompt in one request, without seeds, log-probabilities or Ray; a rollout actor seeds every sample and returns the
    log-probability of each token. Engine settings (cache size, number of sequences, eager mode) are equal.

    Example: rlsys bench rollout --cores 2 --prompts 8
    """

    work = Work(prompts, samples, prompt_tokens, output_tokens, choose_cores(cores), repeats, overrides or [], model)
    run_config(work)
    sides = {"rlsys": ("rollout actor", "launch.bench.rollout"), "bare": ("bare vLLM", "launch.bench.vllm")}

    report(as_json, lambda: summarise(work, run_systems(sides, work, timeout, to_stderr())), render)


def prompt_batches(work: Work, model: str) -> list[list[list[int]]]:
    """Return the token ids of each prompt of each batch: batches x prompts x `work.prompt_tokens`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = prompt_texts(tokenizer, 0, work.steps * work.prompts, work.prompt_tokens)
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    return [prompts[i * work.prompts : (i + 1) * work.prompts] for i in range(work.steps)]


def measure(work: Work) -> dict[str, Any]:
    """Measure the seconds of every batch through a rollout actor."""
    import pyarrow as pa
    import ray

    from actors.cluster.waiting import Pending, wait
    from actors.rollout.rollout import RolloutActor
    from rlsys.data.chain import PROMPTS
    from rlsys.models.loading import ensure_model

    config = run_config(work)
    model = ensure_model(config.model.path)
    batches = prompt_batches(work, model)
    with local_ray(len(work.cores)), tempfile.TemporaryDirectory(prefix="rlsys-bench-") as folder:
        began = time.perf_counter()
        length = work.prompt_tokens + work.output_tokens
        backend = config.weights.backend if config.weights.backend != "auto" else "cpu"
        actor = (
            ray.remote(RolloutActor)
            .options(num_cpus=0, **one_gpu())
            .remote("rollout-0", model, config.rollout, config.model.dtype, length, config.seed, backend, folder, len(work.cores))
        )

        def call(method: str, *args: Any) -> Any:
            return wait([Pending(getattr(actor, method).remote(*args), "rollout-0", method)], config.run.actor_timeout_s)[0]

        reported = call("ready")
        start_s = time.perf_counter() - began
        seconds = []
        for number, prompts in enumerate(batches):
            seeds = range(number * work.sequences, (number + 1) * work.sequences)
            rows = [
                {"group": i, "prompt_token_ids": prompt, "seeds": list(seeds[i * work.samples : (i + 1) * work.samples])}
                for i, prompt in enumerate(prompts)
            ]
            requests = pa.RecordBatch.from_pylist(rows, schema=PROMPTS)
            began = time.perf_counter()
            settings = (config.rollout.temperature, config.rollout.top_p, work.output_tokens, work.output_tokens)
            samples = call("generate", requests, *settings)
            seconds.append(time.perf_counter() - began)
            check(work, [len(tokens) for tokens in samples["token_ids"]])
        call("shutdown")
    return {"system": "rollout actor", "seconds": seconds, "start_s": start_s, "vllm": reported["vllm"], "device": reported["device"]}


def check(work: Work, lengths: list[int]) -> None:
    """Raise RuntimeError if the outputs are not those requested."""
    if lengths != [work.output_tokens] * work.sequences:
        raise RuntimeError(f"expected {work.sequences} outputs of {work.output_tokens} tokens, found lengths {sorted(set(lengths))}.")


def summarise(work: Work, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the document that --json prints. Medians are of the batches after the first."""
    tokens = work.sequences * work.output_tokens
    sides = {}
    for side, result in results.items():
        median = statistics.median(result["seconds"][1:])
        sides[side] = {**result, "first": result["seconds"][0], "median": median, "tokens_per_s": tokens / median}
    return {
        "work": asdict(work),
        "sides": sides,
        "share_of_bare": sides["rlsys"]["tokens_per_s"] / sides["bare"]["tokens_per_s"],
    }


def render(document: dict[str, Any]) -> Table:
    """Render one line per side."""
    table = Table(
        title=f"Sampling: {shape_text(document['work'])}",
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
