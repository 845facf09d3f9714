"""`rlsys bench start`: seconds from the command to the first sample of a run by stage, compared with bare vLLM."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from launch.bench.runner import run_systems
from launch.bench.work import Cores, Model, Overrides, Timeout, Work, choose_cores, cores_text, run_child, run_config
from launch.console import report, to_stderr
from launch.options import AsJson
from rlsys.system.terminal import Table

SIDES = {"rlsys": ("a run", "launch.bench.start"), "bare": ("bare vLLM", "launch.bench.start_vllm")}
PROMPT = list(range(10, 26))
"""Token ids of the only prompt; their meaning is irrelevant."""


def start(
    overrides: Overrides = None,
    cores: Cores = 2,
    model: Model = "models/smollm2-135m-instruct",
    timeout: Timeout = 600,
    as_json: AsJson = False,
) -> None:
    """Start the same processes as `rlsys train` (Ray, an engine, a learner, the reward actor), sample one token; then bare vLLM.

    Times count from the start of each process, including imports. Run it twice, as the first run reads files from disk.

    Example: rlsys bench start learner.ranks=2
    """

    work = Work(1, 2, len(PROMPT), 1, choose_cores(cores), 0, overrides or [], model)
    run_config(work)

    report(as_json, lambda: summarise(work, run_systems(SIDES, work, timeout, to_stderr())), render)


class StageTimer:
    """Records when each stage of a start ended, in seconds after the process was created."""

    def __init__(self) -> None:
        self.created = psutil.Process().create_time()
        self.ends: dict[str, float] = {}

    def end(self, name: str) -> None:
        self.ends[name] = time.time() - self.created


def measure(work: Work) -> dict[str, Any]:
    """Start a run as `actors.loops.rl.train` does, and sample once."""
    stages, config = StageTimer(), run_config(work)
    import pyarrow as pa

    from actors.cluster.groups import Cluster
    from actors.cluster.session import ray_session
    from actors.cluster.waiting import Pending, wait
    from rlsys.data.chain import PROMPTS
    from rlsys.models.loading import ensure_model

    model = ensure_model(config.model.path)
    stages.end("driver: imports")
    with ray_session(config.run), tempfile.TemporaryDirectory(prefix="rlsys-bench-") as folder:
        stages.end("Ray and its dashboard")
        cluster = Cluster(config, model, work.prompt_tokens + work.output_tokens, Path(folder))
        try:
            stages.end("driver: learner's imports")
            reports = cluster.start()
            stages.end("engine, learner and reward actor ready")
            requests = pa.RecordBatch.from_pylist([{"group": 0, "prompt_token_ids": PROMPT, "seeds": [0]}], schema=PROMPTS)
            settings = (config.rollout.temperature, config.rollout.top_p, work.output_tokens, work.output_tokens)
            engine = cluster.actors.rollouts.actors[0]
            wait([Pending(engine.generate.remote(requests, *settings), "rollout-0", "generate")], config.run.actor_timeout_s)
            stages.end("first sample")
        finally:
            cluster.close()
    return {"system": "rlsys", "ends": stages.ends, "engine_s": reports["rollout-0"]["seconds"]}


def summarise(work: Work, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the document that --json prints."""
    ours, bare = (list(results[side]["ends"].values())[-1] for side in SIDES)
    return {"work": asdict(work), "sides": results, "times_bare": ours / bare}


def render(document: dict[str, Any]) -> Table:
    """Render one line per stage: when it ended, and how long it took."""
    table = Table(
        title=f"From the command to the first sample, {cores_text(document['work']['cores'])}",
        caption=f"A run takes {document['times_bare']:.1f} times as long as bare vLLM alone. Its engine took "
        f"{document['sides']['rlsys']['engine_s']:.1f} s, concurrently with the other processes.",
    )
    table.add_column("", no_wrap=True)
    table.add_column("ends after, s", justify="right")
    table.add_column("takes, s", justify="right")
    for side in document["sides"].values():
        before = 0.0
        for name, end in side["ends"].items():
            table.add_row(f"{side['system']}: {name}", f"{end:.1f}", f"{end - before:.1f}")
            before = end
    return table


if __name__ == "__main__":
    run_child(measure)
