"""`rlsys bench judge`: tokens per second of judging rows with many samples, compared with vLLM's `LLM.chat` on the same prompts."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.bench.runner import run_systems
from launch.bench.work import (
    Cores,
    Model,
    OutputTokens,
    Overrides,
    Timeout,
    Work,
    choose_cores,
    cores_text,
    local_ray,
    run_child,
    run_config,
)
from launch.console import report, to_stderr
from launch.options import AsJson
from rlsys.system.terminal import Table

if TYPE_CHECKING:
    from rlsys.config.schema import Config
    from rlsys.judging.requests import JudgeRequest
    from rlsys.prompts.rendering import Prompter

MAX_PROMPT_TOKENS = 1024
TEMPERATURE = 0.5


def judge(
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows per batch, generated tasks of 2 or 4 responses.")] = 16,
    k: Annotated[int, typer.Option("--k", min=2, help="Samples per row.")] = 8,
    output_tokens: OutputTokens = 96,
    cores: Cores = 1,
    model: Model = "models/smollm2-135m-instruct",
    repeats: Annotated[int, typer.Option(min=1, help="Measured batches, after one warm-up batch.")] = 2,
    timeout: Timeout = 900,
    as_json: AsJson = False,
) -> None:
    """Judge the same rows with the code of `rlsys judge`, then with vLLM's offline `LLM.chat`.

    Each sample shows the responses in a new order; samples of equal order share a prompt, which `LLM.chat` gets once, with n. The table
    also shows the cost of shuffling: the number of distinct prompts, and the time with a single order for all samples of a row.

    Example: rlsys bench judge --cores 2
    """

    work = Work(rows, k, MAX_PROMPT_TOKENS, output_tokens, choose_cores(cores), repeats, overrides or [], model)
    run_config(work)
    sides = {"rlsys": ("rlsys judge", "launch.bench.judge"), "chat": ("LLM.chat", "launch.bench.chat")}

    report(as_json, lambda: summarise(work, run_systems(sides, work, timeout, to_stderr())), render)


def ask_batches(work: Work, config: Config) -> list[list[JudgeRequest]]:
    """Return the requests of each batch; the last batch shows every row in a single order."""
    from rlsys.config.sources import Data
    from rlsys.data.datasets import open_rows
    from rlsys.judging.requests import judge_request

    records = list(islice(open_rows(Path("tasks:heldout"), Data.model_validate({"responses": [2, 4]}), 0), work.prompts * (work.steps + 1)))
    batches = [records[i * work.prompts : (i + 1) * work.prompts] for i in range(work.steps + 1)]
    shuffled = [[judge_request(record, work.samples, "bench", config.seed) for record in batch] for batch in batches[:-1]]
    return [*shuffled, [judge_request(record, work.samples, "bench", config.seed, order=tuple(range(record.n))) for record in batches[-1]]]


def measure(work: Work) -> dict[str, Any]:
    """Seconds of every batch as `rlsys judge` draws it."""
    from actors.loops.judge import running_judge
    from rlsys.judging.requests import Sampling

    config = run_config(work)
    seconds, prompts = [], []
    with local_ray(len(work.cores)), tempfile.TemporaryDirectory(prefix="rlsys-bench-") as folder:
        began = time.perf_counter()
        with running_judge(config, to_stderr(), logs=Path(folder)) as judge:
            start_s = time.perf_counter() - began
            sampling = Sampling(TEMPERATURE, config.rollout.top_p, work.output_tokens, work.output_tokens)
            for asks in ask_batches(work, config):
                began = time.perf_counter()
                answers = list(judge.judges.answer(asks, judge.prompter, sampling, MAX_PROMPT_TOKENS))
                seconds.append(time.perf_counter() - began)
                check(work, [sample["tokens"] for answer in answers for sample in answer.samples])
                prompts.append(sum(len(answer.rendered.prompts) for answer in answers))
    return {"system": "rlsys judge", "seconds": seconds, "prompts": prompts, "start_s": start_s}


def check(work: Work, lengths: list[int]) -> None:
    """Figures of other work than was asked for are worse than none."""
    if lengths != [work.output_tokens] * work.sequences:
        raise RuntimeError(f"expected {work.sequences} outputs of {work.output_tokens} tokens, found lengths {sorted(set(lengths))}.")


def user_turns(prompter: Prompter, asks: list[JudgeRequest]) -> list[tuple[str, int]]:
    """(user turn, how many samples) of every different prompt."""
    counts: dict[str, int] = {}
    for one in asks:
        for order in one.orders:
            turn = prompter.user_turn(one.record, order)
            counts[turn] = counts.get(turn, 0) + 1
    return list(counts.items())


def summarise(work: Work, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the document that --json prints. Medians are of the batches after the first; the last, with one order per row, is separate."""
    tokens = work.sequences * work.output_tokens
    sides = {}
    for side, result in results.items():
        median = statistics.median(result["seconds"][1:-1])
        one_order = result["seconds"][-1]
        sides[side] = {**result, "median": median, "tokens_per_s": tokens / median, "one_order": one_order}
    return {
        "work": asdict(work),
        "sides": sides,
        "share_of_chat": sides["rlsys"]["tokens_per_s"] / sides["chat"]["tokens_per_s"],
        "shuffling_costs": sides["rlsys"]["median"] / sides["rlsys"]["one_order"],
    }


def render(document: dict[str, Any]) -> Table:
    """Render one line per side."""
    work = document["work"]
    table = Table(
        title=f"Judging {work['prompts']} rows by {work['samples']} samples of {work['output_tokens']} tokens, {cores_text(work['cores'])}",
        caption=f"rlsys judge reaches {document['share_of_chat']:.0%} of LLM.chat's tokens per second. A new order for each sample takes "
        f"{document['shuffling_costs']:.2f} times as long as one order per row.",
    )
    table.add_column("", no_wrap=True)
    for column in ("seconds to start", "median, s", "tokens/s", "distinct prompts", "one order per row, s"):
        table.add_column(column, justify="right")
    for side in document["sides"].values():
        prompts = f"{statistics.mean(side['prompts'][1:-1]):.0f}"
        cells = (f"{side['start_s']:.0f}", f"{side['median']:.2f}", f"{side['tokens_per_s']:.0f}", prompts, f"{side['one_order']:.2f}")
        table.add_row(side["system"], *cells)
    return table


if __name__ == "__main__":
    run_child(measure)
