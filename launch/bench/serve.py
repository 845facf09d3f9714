"""`rlsys bench serve`: latency and throughput of the service, its tokens per second beside `rlsys judge` on the same rows, and a soak."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.bench.runner import run_systems
from launch.bench.work import Cores, Model, Overrides, Timeout, Work, choose_cores, cores_text, local_ray, run_child
from launch.console import UserError, report, to_stderr
from launch.options import AsJson
from rlsys.system.terminal import Table

if TYPE_CHECKING:
    from rlsys.config.schema import Config
    from rlsys.data.records import Record
    from rlsys.serving.service import ServiceArguments

FEW, MOST = (1, 8), 64
"""Connections of each load; that with the most has the rows that `rlsys judge` judges."""
REQUESTS_PER_CONNECTION = 8
"""Of the measurements with fewer than the most connections."""
WARM_UP = 16
MAX_PROMPT_TOKENS = 1024
TEMPERATURE = 0.5
MEMORY_EVERY_S = 5.0
SHORTEST_SOAK_S = 20
"""Each third of it has several measurements of the memory."""
CANCELLED, MALFORMED = 0.01, 0.01
"""Shares of a soak's requests."""


def serve(
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=64, help="Rows, generated tasks of 2 or 4 responses.")] = 256,
    k: Annotated[int, typer.Option("--k", min=1, help="Samples per row.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens of a sample.")] = 96,
    soak: Annotated[int, typer.Option("--soak", min=0, metavar="SECONDS", help="Then load it this long, at least 20; 0: no soak.")] = 0,
    cores: Cores = 2,
    model: Model = "models/smollm2-135m-instruct",
    timeout: Timeout = 900,
    as_json: AsJson = False,
) -> None:
    """Judge the same rows with the code of `rlsys judge`, then by a client of `rlsys serve` with 1, 8 and 64 connections.

    Both are pinned to the same cores, the client included. Each request has its row's id and the same seed, so that both sides draw the
    same samples. A soak has 64 connections, of which 1% cancel a request and 1% send a malformed one; it reports what was answered and the
    memory of all processes.

    Example: rlsys bench serve --model models/tiny-random --soak 180
    """
    work = Work(rows, k, MAX_PROMPT_TOKENS, max_tokens, choose_cores(cores), 1, overrides or [], model, shapes=[{"soak_s": soak}])
    if 0 < soak < SHORTEST_SOAK_S:
        raise UserError(f"--soak {soak}: expected 0, or at least {SHORTEST_SOAK_S} seconds, to compare the memory of its thirds.")
    bench_config(work)
    sides = {"judge": ("rlsys judge", "launch.bench.serve_engine"), "serve": ("rlsys serve", "launch.bench.serve")}
    limit = timeout + soak
    report(as_json, lambda: summarise(work, run_systems(sides, work, limit, to_stderr())), render)


# --- the work, which both sides share --------------------------------------------------------------------------------------


def bench_config(work: Work) -> tuple[ServiceArguments, Config]:
    """Return the service's arguments and its engines' config; the other side uses the same config."""
    from rlsys.config.schema import ConfigError
    from rlsys.serving.service import ServiceArguments, service_config

    settings = [f"prompt.max_tokens={work.prompt_tokens}", f"rollout.max_tokens={work.output_tokens}", *work.overrides]
    arguments = ServiceArguments(model=work.model, settings=settings, k=work.samples, temperature=TEMPERATURE)
    config, _, problems = service_config(arguments)
    if problems:
        raise ConfigError(*problems)
    return arguments, config


def bench_rows(work: Work) -> tuple[list[Record], list[Record], dict[int, list[Record]]]:
    """Return the rows of the warm-up, those that both sides judge, and those of the loads with fewer connections.

    No row is in two of them: the engine would have its prompt in its cache.
    """
    from rlsys.config.sources import Data
    from rlsys.data.datasets import open_rows

    rows = iter(open_rows(Path("tasks:heldout"), Data.model_validate({"responses": [2, 4]}), 0))
    warm_up, judged = list(islice(rows, WARM_UP)), list(islice(rows, work.prompts))
    return warm_up, judged, {few: list(islice(rows, few * REQUESTS_PER_CONNECTION)) for few in FEW}


def request_of(record: Record, seed: int = 0) -> dict[str, Any]:
    """Return the request with which the service draws the samples that `rlsys judge` draws for this row."""
    return {"id": record.id, "conversation": list(record.context), "responses": list(record.responses), "seed": seed}


# --- the client ------------------------------------------------------------------------------------------------------------


def measure(work: Work) -> dict[str, Any]:
    """Latency and throughput of the service by number of connections."""
    from actors.serving.session import running_service
    from launch.commands.serve import free_port

    arguments, config = bench_config(work)
    warm_up, judged, others = bench_rows(work)
    bodies, soak_s = [request_of(record) for record in judged], work.shapes[0]["soak_s"]
    began = time.perf_counter()
    with local_ray(len(work.cores)):
        with running_service(arguments, config, None, None, "127.0.0.1", free_port("127.0.0.1", 0)) as service:
            start_s = time.perf_counter() - began
            asyncio.run(load(service.url, list(map(request_of, warm_up)), WARM_UP))
            loads = {few: asyncio.run(load(service.url, list(map(request_of, rows)), few)) for few, rows in others.items()}
            loads[MOST] = asyncio.run(load(service.url, bodies, MOST))
            soaked = asyncio.run(soak_service(service.url, bodies, soak_s)) if soak_s else None
    return {"system": "rlsys serve", "start_s": start_s, "loads": loads, "soak": soaked}


async def load(url: str, bodies: list[dict[str, Any]], connections: int) -> dict[str, Any]:
    """Send all requests over `connections` connections, each the next one when it has its answer."""
    import httpx

    waiting, latencies, tokens, samples = iter(bodies), [], 0, 0

    async def connection(client: httpx.AsyncClient) -> None:
        nonlocal tokens, samples
        for body in waiting:
            began = time.perf_counter()
            answer = (await client.post(f"{url}/v1/score", json=body)).raise_for_status().json()
            latencies.append(time.perf_counter() - began)
            tokens, samples = tokens + answer["generated_tokens"], samples + len(answer["samples"])

    began = time.perf_counter()
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=connections)) as client, asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(connection(client))
    return {"seconds": time.perf_counter() - began, "latencies": latencies, "tokens": tokens, "samples": samples}


# --- the soak --------------------------------------------------------------------------------------------------------------


async def soak_service(url: str, bodies: list[dict[str, Any]], seconds: int) -> dict[str, Any]:
    """Load the service for `seconds`; returns counts by what happened to a request, and the memory of each process over time."""
    import httpx

    counts: dict[str, int] = {}
    memory: list[dict[str, float]] = []
    draw, began = random.Random(0), time.perf_counter()

    async def connection(client: httpx.AsyncClient, number: int) -> None:
        while time.perf_counter() - began < seconds:
            kind = draw.random()
            body = draw.choice(bodies) | {"seed": draw.randrange(1000)}
            if kind < CANCELLED:
                outcome = await _cancelled(client, url, body, draw.random())
            elif kind < CANCELLED + MALFORMED:
                outcome = f"malformed, {(await client.post(f'{url}/v1/score', json=body | {'k': 'many'})).status_code}"
            else:
                outcome = f"whole, {(await client.post(f'{url}/v1/score', json=body)).status_code}"
            counts[outcome] = counts.get(outcome, 0) + 1

    async def watch() -> None:
        while True:
            memory.append({"at_s": time.perf_counter() - began} | await asyncio.to_thread(memory_mib))
            await asyncio.sleep(min(MEMORY_EVERY_S, seconds / 12))

    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=MOST)) as client:
        watching = asyncio.ensure_future(watch())
        async with asyncio.TaskGroup() as group:
            for number in range(MOST):
                group.create_task(connection(client, number))
        watching.cancel()
        left = (await client.get(f"{url}/readyz")).json()["in_progress"]
    return {"seconds": time.perf_counter() - began, "counts": counts, "in_progress_at_the_end": left, "memory_mib": memory}


async def _cancelled(client: Any, url: str, body: dict[str, Any], after_s: float) -> str:
    try:
        async with asyncio.timeout(after_s):
            await client.post(f"{url}/v1/score", json=body)
        return "to be cancelled, but answered first"
    except TimeoutError:
        return "cancelled"


def memory_mib() -> dict[str, float]:
    """Return the memory that each child process alone occupies (USS), in MiB, by name."""
    import psutil

    found: dict[str, float] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            name = process.name() if process.name().startswith("VLLM") else (process.cmdline() or [process.name()])[0].rpartition("/")[2]
            found[name] = found.get(name, 0.0) + process.memory_full_info().uss / 2**20
        except psutil.Error:
            continue  # It has just ended.
    return found


# --- the result ------------------------------------------------------------------------------------------------------------


def summarise(work: Work, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the document that --json prints."""
    judge, served = results["judge"], results["serve"]
    lines = []
    for connections, found in served["loads"].items():
        latencies = sorted(found.pop("latencies"))
        quantiles = statistics.quantiles(latencies, n=100, method="inclusive")
        rates = {"tokens_per_s": found["tokens"] / found["seconds"], "samples_per_s": found["samples"] / found["seconds"]}
        lines.append(
            {"connections": int(connections), "requests": len(latencies), "p50_s": quantiles[49], "p99_s": quantiles[98]} | found | rates
        )
    judge["tokens_per_s"] = judge["tokens"] / judge["seconds"]
    return {
        "work": asdict(replace(work, shapes=[])),
        "judge": judge,
        "loads": lines,
        "share_of_judge": lines[-1]["tokens_per_s"] / judge["tokens_per_s"],
        "soak": summarise_soak(served["soak"]) if served["soak"] else None,
    }


def summarise_soak(soak: dict[str, Any]) -> dict[str, Any]:
    """Compare the memory of the last third of a soak with that of the second."""
    memory = soak.pop("memory_mib")
    totals = [(one["at_s"], sum(value for name, value in one.items() if name != "at_s")) for one in memory]
    third = soak["seconds"] / 3
    middle = [total for at, total in totals if third <= at < 2 * third]
    late = [total for at, total in totals if at >= 2 * third]
    names = {name: (memory[len(memory) // 3].get(name, 0.0), memory[-1].get(name, 0.0)) for name in memory[-1] if name != "at_s"}
    return soak | {"middle_mib": statistics.mean(middle), "late_mib": statistics.mean(late), "by_process_mib": names}


def render(document: dict[str, Any]) -> Table:
    """Render one line per number of connections."""
    work, judge, soak = document["work"], document["judge"], document["soak"]
    caption = f"At 64 connections, rlsys serve reaches {document['share_of_judge']:.0%} of the tokens per second of rlsys judge."
    if soak:
        left = f"{soak['in_progress_at_the_end']} in progress at its end"
        answered = ", ".join(f"{what}: {count:,}" for what, count in sorted(soak["counts"].items()))
        memory = f"{soak['middle_mib']:,.0f} MiB in its second third, {soak['late_mib']:,.0f} MiB in its last"
        caption += f"\nSoak of {soak['seconds']:.0f} s: {answered}; {left}. Memory of all processes: {memory}."
    table = Table(
        title=f"{work['prompts']} rows, {work['samples']} samples of up to {work['output_tokens']} tokens, {cores_text(work['cores'])}",
        caption=caption,
    )
    for column in ("", "requests", "p50, s", "p99, s", "samples/s", "tokens/s"):
        table.add_column(column, justify="right")
    for line in document["loads"]:
        name = f"{line['connections']} connection{'s' if line['connections'] > 1 else ''}"
        rates = f"{line['samples_per_s']:.1f}", f"{line['tokens_per_s']:,.0f}"
        table.add_row(name, str(line["requests"]), f"{line['p50_s']:.2f}", f"{line['p99_s']:.2f}", *rates)
    table.add_row(
        "rlsys judge", str(work["prompts"]), "", "", f"{judge['samples'] / judge['seconds']:.1f}", f"{judge['tokens_per_s']:,.0f}"
    )
    return table


if __name__ == "__main__":
    run_child(measure)
