"""`rlsys bench serve`: its client counts what a server really did; both sides draw the same samples."""

from __future__ import annotations

import asyncio
import io

import pytest
from commands import rlsys_here
from judge_services import FakeJudge, served
from rich.console import Console

from launch.bench.serve import WARM_UP, bench_rows, load, render, request_of, soak_service, summarise
from launch.bench.work import Work
from rlsys.data.records import Record
from rlsys.serving.app import create_app

RECORDS = [
    Record(f"r{n}", "s", ({"role": "user", "content": f"Which is {n}?"},), ("a", "b"), (0.0, 0.0), labelled=False) for n in range(40)
]
BODIES = [request_of(record) for record in RECORDS]


def test_a_load_sends_every_request_once_over_its_connections():
    judge = FakeJudge(seconds=0.02)
    with served(create_app(judge)) as url:
        found = asyncio.run(load(url, BODIES, 8))
    assert sorted(request.id for request in judge.asked) == sorted(record.id for record in RECORDS)
    assert judge.most_at_once == 8 and len(found["latencies"]) == 40 and min(found["latencies"]) >= 0.02
    assert (found["samples"], found["tokens"]) == (40 * 4, 40 * 20)


def test_no_row_is_sent_twice():
    warm_up, judged, others = bench_rows(Work(64, 2, 1024, 96, [0], 1, [], "m"))
    assert (len(warm_up), len(judged), {few: len(rows) for few, rows in others.items()}) == (WARM_UP, 64, {1: 8, 8: 64})
    ids = [record.id for part in (warm_up, judged, *others.values()) for record in part]
    assert len(set(ids)) == len(ids)


def test_a_soak_that_is_too_short_for_its_thirds_is_refused():
    refused = rlsys_here("bench", "serve", "--model", "m", "--soak", 5)
    assert refused.returncode == 2 and "at least 20 seconds" in refused.stderr


def test_a_soak_accounts_for_every_request():
    judge = FakeJudge(seconds=0.3)
    with served(create_app(judge)) as url:
        soak = asyncio.run(soak_service(url, BODIES, 4))
    counts = soak["counts"]
    assert counts["whole, 200"] > 64 and counts.get("malformed, 400", 0) >= 1 and soak["in_progress_at_the_end"] == 0
    assert all(outcome.startswith(("whole, 200", "malformed, 400", "cancelled", "to be cancelled")) for outcome in counts), counts
    assert judge.cancelled <= counts.get("cancelled", 0) and len(judge.asked) >= counts["whole, 200"]
    assert soak["memory_mib"][0]["at_s"] < soak["memory_mib"][-1]["at_s"] or len(soak["memory_mib"]) == 1


def test_figures_are_computed_from_what_was_measured():
    work = Work(64, 2, 1024, 96, [0], 1, [], "m", shapes=[{"soak_s": 9}])
    memory = [{"at_s": float(second), "engine": 100.0 + (second >= 6) * 5, "proxy": 10.0} for second in range(9)]
    soak = {"seconds": 9.0, "counts": {"whole, 200": 7}, "in_progress_at_the_end": 0, "memory_mib": memory}
    loads = {str(c): {"seconds": 2.0, "latencies": [n / 100 for n in range(101)], "tokens": 90, "samples": 8} for c in (1, 8, 64)}
    judge = {"system": "rlsys judge", "seconds": 4.0, "tokens": 200, "samples": 16, "start_s": 1.0}
    document = summarise(work, {"judge": judge, "serve": {"loads": loads, "soak": soak}})
    assert document["share_of_judge"] == pytest.approx(45 / 50)
    assert [line["p50_s"] for line in document["loads"]] == [0.5] * 3 and document["loads"][0]["p99_s"] == pytest.approx(0.99)
    assert (document["soak"]["middle_mib"], document["soak"]["late_mib"]) == (110.0, 115.0)
    console = Console(file=io.StringIO(), width=160)
    console.print(render(document))
    shown = console.file.getvalue()
    assert "90%" in shown and "110 MiB" in shown and "115 MiB" in shown


@pytest.mark.nightly
def test_both_sides_draw_the_same_samples(bench, all_cores, tiny_bench_model, record_ratio):
    shape = ("--rows", 64, "--k", 4, "--max-tokens", 24, "--soak", 20)
    document = bench("serve", "--model", tiny_bench_model, *all_cores, *shape, "model.dtype=float32", "rollout.kv_cache_gib=0.25")
    assert document["judge"]["samples"] == document["loads"][-1]["samples"] == 64 * 4
    assert document["judge"]["tokens"] == document["loads"][-1]["tokens"]
    assert document["soak"]["in_progress_at_the_end"] == 0 and document["soak"]["counts"]["whole, 200"] > 0
    record_ratio("serve, tiny model: tokens/s over rlsys judge's", document["share_of_judge"])
