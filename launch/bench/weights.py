"""`rlsys bench weights`: time to transfer new weights from learners to engines, compared with a plain copy of the same bytes."""

from __future__ import annotations

import statistics
from typing import Annotated, Any

import typer
from rich.text import Text

from launch.bench.runner import run_system
from launch.bench.work import Cores, Model, Timeout, Work, choose_cores, cores_text, meta_model, run_child, run_config
from launch.console import report, to_stderr
from launch.options import AsJson
from rlsys.system.terminal import Table

STAGES = {
    "start": "start: drain and pause the engines",
    "fill": "fill: gather, cast and copy into shared memory",
    "put": "put: notify the engines, store for other machines",
    "load": "load: wait for the engines",
    "finish": "finish: pack the rest, reset caches, resume",
}


def weights(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings of the run, for example weights.bucket_mib=16.", show_default=False),
    ] = None,
    engines: Annotated[int, typer.Option(min=1, help="Rollout engines.")] = 1,
    cores: Cores = 1,
    model: Model = "models/smollm2-135m-instruct",
    ranks: Annotated[int, typer.Option(min=1, help="Learner ranks.")] = 1,
    zero_stage: Annotated[int, typer.Option(min=0, max=3, help="ZeRO stage of the ranks, as learner.zero_stage.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Measured updates, after one warm-up update.")] = 5,
    verify: Annotated[bool, typer.Option("--verify", help="Compare checksums of both sides after every update; not timed.")] = False,
    timeout: Timeout = 900,
    as_json: AsJson = False,
) -> None:
    """Send weights from real learners to real engines, and print seconds by stage and bytes per second.

    The share of memcpy compares with one thread that copies the same number of bytes on the same cores in the same run.

    Example: rlsys bench weights --cores 2 --zero-stage 3 --ranks 2
    """

    work = Work(
        prompts=1,
        samples=2,
        prompt_tokens=128,
        output_tokens=128,
        cores=choose_cores(cores),
        repeats=repeats,
        overrides=[
            f"rollout.actors={engines}",
            "rollout.kv_cache_gib=0.25",
            f"learner.ranks={ranks}",
            f"learner.zero_stage={zero_stage}",
            f"weights.verify={str(verify).lower()}",
            *(overrides or []),
        ],
        model=model,
    )
    run_config(work)
    report(as_json, lambda: summarise(run_system("weight updates", "launch.bench.weights", work, timeout, to_stderr())), render)


def measure(work: Work) -> dict[str, Any]:
    """Measure updates on a local Ray, and a copy of the same size."""
    import torch

    from actors.cluster.waiting import Pending, wait
    from launch.bench.ceilings import memcpy_bytes_per_s
    from launch.bench.ours import local_cluster
    from rlsys.models.loading import ensure_model
    from rlsys.system.devices import bucket_mib

    config = run_config(work)
    model = ensure_model(config.model.path)
    # Counts a parameter shared by two layers once.
    size = sum(parameter.numel() for parameter in meta_model(model).parameters()) * getattr(torch, config.model.dtype).itemsize
    updates = []
    with local_cluster(config, model, work.prompt_tokens + work.output_tokens, len(work.cores)) as (cluster, reports, _):
        rollouts = cluster.actors.rollouts
        for version in range(1, work.steps + 1):
            sent = cluster.actors.learners.send_weights(version)
            calls = [
                Pending(actor.last_load.remote(), name, "last_load") for actor, name in zip(rollouts.actors, rollouts.names, strict=True)
            ]
            loads = wait(calls, rollouts.run.actor_timeout_s)
            updates.append({**sent, "engines": [worker for engine in loads for worker in engine]})
        memcpy = memcpy_bytes_per_s(size)
    return {
        "system": "rlsys",
        "work": {
            "model": work.model,
            "dtype": config.model.dtype,
            "engines": config.rollout.actors,
            "ranks": config.learner.ranks,
            "zero_stage": config.learner.zero_stage,
            "cores": work.cores,
            "bucket_mib": bucket_mib(config.weights.bucket_mib, cluster.backend),
            "verified": config.weights.verify,
            "backend": cluster.backend,
            "device": reports["rollout-0"]["device"],
        },
        "bytes": size,
        "updates": updates,
        "memcpy_bytes_per_s": memcpy,
    }


def summarise(result: dict[str, Any]) -> dict[str, Any]:
    """Return the document that --json prints. Medians are of the updates after the first."""
    later = result["updates"][1:]
    size, memcpy = result["bytes"], result["memcpy_bytes_per_s"]
    seconds = statistics.median(one["seconds"] for one in later)
    fill = statistics.median(one["fill_cpu_seconds"] + one["stages"].get("put", 0.0) for one in later)
    median = {
        "seconds": seconds,
        "stages": {name: statistics.median(one["stages"][name] for one in later) for name in later[0]["stages"]},
        "fill_cpu_seconds": statistics.median(one["fill_cpu_seconds"] for one in later),
        "engine_seconds": statistics.median(max(engine["seconds"] for engine in one["engines"]) for one in later),
        "engine_cpu_seconds": statistics.median(sum(engine["cpu_seconds"] for engine in one["engines"]) for one in later),
    }
    return {
        **result,
        "median": median,
        "bytes_per_s": size / seconds,
        "share_of_memcpy": size / seconds / memcpy,
        # vLLM's own transfers do not report their stages.
        "transport_bytes_per_s": size / fill if fill else 0.0,
        "transport_share_of_memcpy": size / fill / memcpy if fill else 0.0,
    }


def render(document: dict[str, Any]) -> Table:
    """Render the stages of the first update and the medians of the later ones."""
    work, first, median = document["work"], document["updates"][0], document["median"]
    copy = document["bytes"] / document["memcpy_bytes_per_s"]
    memcpy = f"memcpy: {document['memcpy_bytes_per_s'] / 1e9:.1f} GB/s, {1e3 * copy:.0f} ms"
    table = Table(
        title=f"One weight update: {document['bytes'] / 1e6:,.0f} MB from {work['ranks']} rank(s), ZeRO-{work['zero_stage']}, "
        f"to {work['engines']} engine(s), {cores_text(work['cores'])}",
        caption=f"Milliseconds; later: the median of {len(document['updates']) - 1}. {memcpy}. "
        "Stages overlap with the engines' work, and share a core with it if there is only one.",
    )
    for column in ("", "first", "later"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name in median["stages"]:
        table.add_row(STAGES[name], _ms(first["stages"][name]), _ms(median["stages"][name]))
    table.add_section()
    table.add_row(Text("whole update", "bold"), _ms(first["seconds"]), Text(_ms(median["seconds"]), "bold"))
    table.add_row("  GB/s", _giga(document["bytes"] / first["seconds"]), _giga(document["bytes_per_s"]))
    table.add_row("  share of memcpy", "", f"{document['share_of_memcpy']:.0%}")
    table.add_section()
    table.add_row("transport alone: CPU time of fill, and put", "", _ms(document["bytes"] / document["transport_bytes_per_s"]))
    table.add_row("  share of memcpy", "", f"{document['transport_share_of_memcpy']:.0%}")
    table.add_row(
        "loading and packing in the slowest engine", _ms(max(one["seconds"] for one in first["engines"])), _ms(median["engine_seconds"])
    )
    table.add_row("  CPU time, all engines", _ms(sum(one["cpu_seconds"] for one in first["engines"])), _ms(median["engine_cpu_seconds"]))
    return table


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f}"


def _giga(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.1f}"


if __name__ == "__main__":
    run_child(measure)
