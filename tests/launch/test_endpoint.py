"""`rlsys eval --judge URL` and `rlsys judge --judge URL`: with a scripted server, and with vLLM's own."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
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


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def samples(path: Path) -> list[dict]:
    return [sample for row in rows(path) for sample in row["samples"]]


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
    judged = rows(tmp_path / "judged.jsonl")
    assert [row["id"] for row in judged] == [f"r{i}" for i in range(12)] and all(row["correct"] for row in judged)
    assert all(2 <= row["k"] < 8 for row in judged), "it stops early where all agree"
    assert "accuracy" in result.stdout


@pytest.mark.parametrize(
    "options, expected",
    [
        ([], "who judges"),
        (["--judge-model", "m", "--model", "x"], "--judge-model: only with --judge URL"),
        (["--judge", "127.0.0.1:8000"], "--judge: expected a base URL"),
        (["--judge", "http://me:geheim@127.0.0.1:8000"], "(got 'http://***@127.0.0.1:8000')"),
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
    form = ["-b", f"format:trl_preference={pairs}", "--k", "1,2", "--draws", 5, "--text"]
    ours = run_rlsys("eval", "--model", tiny_model, *form, "-o", tmp_path / "ours", *settings, timeout_s=900)
    assert ours.returncode == 0, ours.stderr[-3000:]
    with vllm_server(tiny_model, tmp_path / "server.log") as url:
        theirs = run_rlsys("eval", "--judge", url, *form, "-o", tmp_path / "theirs", *settings, timeout_s=900)
    assert theirs.returncode == 0, theirs.stderr[-3000:]
    for name in ("greedy", "swapped"):
        prompts = [rows(tmp_path / folder / f"format_trl_preference.{name}.jsonl") for folder in ("ours", "theirs")]
        assert [row["prompt_tokens"] for row in prompts[0]] == [row["prompt_tokens"] for row in prompts[1]]
        one, other = (samples(tmp_path / folder / f"format_trl_preference.{name}.jsonl") for folder in ("ours", "theirs"))
        # The server's detokenizer withholds a character of which bytes are missing.
        assert [sample["text"].rstrip("\ufffd") for sample in one] == [sample["text"] for sample in other]
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


def by_seed(body: dict, attempt: int) -> str:
    """Answer right where the prompt has a hint, and at random where it has none."""
    found = re.search(r"Hint: Response (\d)", body["messages"][0]["content"])
    first = found[1] == "1" if found else body["seed"] % 2 == 0
    return f"An analysis. Scores: \\boxed{{{'9, 2' if first else '2, 9'}}}"


@pytest.mark.nightly
def test_a_student_learns_from_a_teacher_behind_an_endpoint(tiny, tiny_model, quiet, tmp_path, monkeypatch):
    """Interrupted by the endpoint once: what it answered is not asked again. The key is in no file."""
    from actors.loops.rft import rejective_fine_tuning
    from rlsys.serving.endpoint import EndpointError

    monkeypatch.setenv("TEACHER_KEY", "sk-secret-of-the-teacher")
    rft = ["rft.rows=12", "rft.samples=2", "rft.batch_rows=4", "data.responses=[2]", "run.actor_timeout_s=600"]
    with running(Peer(by_seed, key="sk-secret-of-the-teacher")) as peer:
        teacher = [f"rft.teacher.url={peer.url}", "rft.teacher.model=judge", "rft.teacher.api_key_env=TEACHER_KEY"]
        teacher += ["rft.teacher.price_prompt=1000", "rft.teacher.price_completion=2000", "rft.teacher.concurrency=2"]
        config = tiny(tmp_path / "run", tiny_model, *rft, *teacher)
        peer.answer = lambda body, attempt: by_seed(body, 0) if len(peer.bodies) < 20 else failure(400, "no more credit")
        with pytest.raises(EndpointError, match="no more credit"):
            rejective_fine_tuning(config, quiet)
        done = rows(tmp_path / "run/round_1/samples.jsonl.part")
        assert done
        peer.bodies.clear()
        peer.answer = by_seed
        summary = rejective_fine_tuning(config, quiet)
    assert len(peer.bodies) == 12 * 3 - sum(len(row["samples"]) for row in done)
    assert rows(tmp_path / "run/round_1/samples.jsonl")[: len(done)] == done
    (round_1,) = summary.rounds
    assert round_1.samples == 12 * 3 and round_1.hinted == {"kept": 12}, "a hinted answer of this teacher is always right"
    use = round_1.teacher
    assert use.model == "judge" and use.tokens == 36 * 5 and use.cost == pytest.approx((use.prompt_tokens + 2 * use.tokens) / 1000)
    table = pq.read_table(tmp_path / "run/trajectories/rft_round_1.parquet").to_pylist()
    assert {row["text"] for row in table if row["kept"]} <= {"An analysis. Scores: \\boxed{9, 2}", "An analysis. Scores: \\boxed{2, 9}"}
    assert (tmp_path / "run/model/config.json").exists()
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"sk-secret-of-the-teacher" not in path.read_bytes(), path
