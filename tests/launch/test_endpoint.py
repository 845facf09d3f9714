"""`rlsys eval --judge URL` and `rlsys judge --judge URL`: with a scripted server, and with vLLM's own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import ROOT, rlsys_here, run_rlsys
from endpoint_peer import Peer, failure, running


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [{"id": f"r{i}", "prompt": f"The capital of country {i}?", "chosen": f"Oslo {i}", "rejected": f"Bergen {i}"} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def right(body: dict, attempt: int) -> str:
    text = body["messages"][0]["content"]
    return "Analysis. \\boxed{9, 2}" if text.find("Oslo") < text.find("Bergen") else "Analysis. \\boxed{2, 9}"


def evaluation(peer: Peer, pairs: Path, output: Path, *more: object) -> list[object]:
    return ["eval", "--judge", peer.url, "-b", f"format:trl_preference={pairs}", "-o", output, "--k", "1,2", "--draws", 5, *more]


def samples(path: Path) -> list[dict]:
    return [sample for line in path.read_text().splitlines() for sample in json.loads(line)["samples"]]


def test_an_endpoint_is_evaluated_as_engines_are(pairs, tmp_path):
    with running(Peer(right)) as peer:
        result = rlsys_here(*evaluation(peer, pairs, tmp_path / "eval"))
    assert result.returncode == 0, result.stderr
    document = json.loads((tmp_path / "eval" / "eval.json").read_text())
    found = document["benchmarks"]["format:trl_preference"]
    assert document["model"] == f"judge at {peer.url}"
    assert found["greedy"]["overall"]["value"] == 1 and found["position"]["other_order"] == 1
    assert {"vote", "mean", "majority", "adaptive"} <= set(found["strategies"]), "rpc needs log-probabilities, which are not there"
    assert "rpc" not in found["strategies"] and "borda" not in found["strategies"]
    assert len(peer.bodies) == 12 * (2 + 1 + 1), "k = 2 samples, one greedy, one in the other order"


def test_an_evaluation_continues_after_the_endpoint_failed(pairs, tmp_path):
    def failing(body: dict, attempt: int):
        return right(body, 0) if len(peer.bodies) <= 30 else failure(500, "down", {"x-should-retry": "false"})

    with running(Peer(right)) as peer:
        straight = rlsys_here(*evaluation(peer, pairs, tmp_path / "straight"))
        peer.bodies.clear()
        peer.answer = failing
        first = rlsys_here(*evaluation(peer, pairs, tmp_path / "eval", "--concurrency", 1))
        assert first.returncode == 1 and "(500: down)" in first.stderr and "Traceback" not in first.stderr
        asked, peer.answer = len(peer.bodies), right
        second = rlsys_here(*evaluation(peer, pairs, tmp_path / "eval"))
        assert second.returncode == 0 and "resumed after row" in second.stdout, second.stderr
        assert 48 <= len(peer.bodies) < asked + 48 - 24, "the samples of the first file were not asked for again"
        assert straight.returncode == 0
    for name in ("samples", "greedy", "swapped"):
        files = [folder / f"format_trl_preference.{name}.jsonl" for folder in (tmp_path / "straight", tmp_path / "eval")]
        assert files[0].read_text() == files[1].read_text()
    with running(Peer(right)) as other:
        result = rlsys_here(*evaluation(other, pairs, tmp_path / "eval"))
    assert result.returncode == 2 and other.url in result.stderr, "another address may be another model"


def test_rows_are_judged_by_an_endpoint(pairs, tmp_path):
    with running(Peer(right)) as peer:
        options = ["--input", pairs, "--format", "trl_preference", "--output", tmp_path / "judged.jsonl", "--k", 8]
        result = rlsys_here("judge", "--judge", peer.url, *options, "--strategy", "adaptive")
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "judged.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"r{i}" for i in range(12)] and all(row["correct"] for row in rows)
    assert all(2 <= row["k"] < 8 for row in rows), "it stops early where all agree"
    assert "accuracy" in result.stdout


@pytest.mark.parametrize(
    "options, expected",
    [
        ([], "who judges"),
        (["--judge-model", "m", "--model", "x"], "--judge-model: only with --judge URL"),
        (["--judge", "127.0.0.1:8000"], "--judge: expected a base URL"),
        (["--judge", "http://127.0.0.1:9/v1", "--judge-body", "{"], "--judge-body: not valid JSON"),
        (["--judge", "http://127.0.0.1:9/v1", "--judge-body", '{"n": 2}'], "--judge-body: n cannot be set here"),
        (["--judge", "http://127.0.0.1:9/v1", "--api-key-env", "NOT_SET_ANYWHERE"], "--api-key-env: the environment variable"),
        (["--judge", "http://127.0.0.1:9/v1", "--meta-rm", "R"], "--meta-rm: a meta reward model scores"),
    ],
)
def test_mistakes_are_named_before_anything_starts(pairs, tmp_path, options, expected):
    result = rlsys_here("eval", "-b", f"format:trl_preference={pairs}", "-o", tmp_path / "eval", *options)
    assert result.returncode == 2 and expected in " ".join(result.stderr.split()) and "Traceback" not in result.stderr
    assert not (tmp_path / "eval").exists()


@pytest.mark.nightly
def test_greedy_samples_of_vllms_own_server_are_those_of_our_engine(tiny_model, pairs, tmp_path):
    """The same model, template and rows through both: the texts are equal, token by token."""
    settings = ["prompt.template=compact", "rollout.max_tokens=16", "model.dtype=float32", "rollout.kv_cache_gib=0.25"]
    form = ["-b", f"format:trl_preference={pairs}", "--k", "1,2", "--draws", 5]
    ours = run_rlsys("eval", "--model", tiny_model, *form, "-o", tmp_path / "ours", *settings, timeout_s=900)
    assert ours.returncode == 0, ours.stderr[-3000:]
    with vllm_server(tiny_model, tmp_path / "server.log") as url:
        theirs = run_rlsys("eval", "--judge", url, *form, "-o", tmp_path / "theirs", *settings, timeout_s=900)
    assert theirs.returncode == 0, theirs.stderr[-3000:]
    for name in ("greedy", "swapped"):
        one, other = (samples(tmp_path / folder / f"format_trl_preference.{name}.jsonl") for folder in ("ours", "theirs"))
        assert [sample["text"] for sample in one] == [sample["text"] for sample in other]
        assert [sample["tokens"] for sample in one] == [sample["tokens"] for sample in other]
    sampled = samples(tmp_path / "theirs" / "format_trl_preference.samples.jsonl")
    assert len({sample["text"] for sample in sampled}) > len(sampled) // 2, "samples differ, as their seeds do"


@contextmanager
def vllm_server(model: Path, log: Path) -> Iterator[str]:
    """Serve `model` with the OpenAI-compatible server of vLLM on a free port; yields its base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "tiny"]
    command += ["--port", str(port), "--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", "1024", "--enforce-eager"]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT, env=environment)
    try:
        deadline = time.monotonic() + 600
        while not _is_healthy(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-5000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
