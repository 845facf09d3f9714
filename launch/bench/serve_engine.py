"""The other side of `rlsys bench serve`: the same rows, as `rlsys judge` draws them."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from launch.bench.serve import TEMPERATURE, bench_config, bench_rows
from launch.bench.work import Work, local_ray, run_child
from launch.console import to_stderr


def measure(work: Work) -> dict[str, Any]:
    """Seconds of judging all rows, and what was generated."""
    from actors.loops.judge import running_judge
    from rlsys.judging.requests import judge_request

    _, config = bench_config(work)
    warm_up, rows = ([judge_request(record, work.samples, "judge", 0) for record in part] for part in bench_rows(work)[:2])
    began = time.perf_counter()
    with local_ray(len(work.cores)), tempfile.TemporaryDirectory(prefix="rlsys-bench-") as folder:
        with running_judge(config, to_stderr(), logs=Path(folder)) as judge:
            start_s = time.perf_counter() - began
            list(judge.answer(warm_up, TEMPERATURE))
            began = time.perf_counter()
            answers = list(judge.answer(rows, TEMPERATURE))
            seconds = time.perf_counter() - began
    samples = [sample for answer in answers for sample in answer.samples]
    tokens = sum(sample["tokens"] for sample in samples)
    return {"system": "rlsys judge", "start_s": start_s, "seconds": seconds, "tokens": tokens, "samples": len(samples)}


if __name__ == "__main__":
    run_child(measure)
