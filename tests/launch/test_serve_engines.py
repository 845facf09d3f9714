"""`rlsys serve` with real engines: its answers equal those of `rlsys judge`, its limits hold, and it stops in order."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from boxing_model import RAMBLE, build_boxing_model
from commands import ROOT, as_in_a_terminal, quickstarts_lines, until
from random_scorer import build_random_scorer
from ray import serve as ray_serve

from actors.serving.application import NAME
from actors.serving.session import Service, running_service
from launch.commands.serve import free_port
from rlsys.config.sources import Data
from rlsys.data.datasets import open_rows
from rlsys.serving.contract import ScoreResponse
from rlsys.serving.limits import Limits
from rlsys.serving.service import ServiceArguments, service_config

WAIT_S = 300.0
SMALL = ["model.dtype=float32", "prompt.template=compact", "prompt.max_tokens=1024", "rollout.max_tokens=300", "rollout.kv_cache_gib=0.25"]
ENDLESS = {"conversation": "q", "responses": ["a", "b"], "principles": RAMBLE}
"""A request whose samples end at the token limit."""
K = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_boxing_model(tmp_path_factory.mktemp("models") / "boxing")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Rows of two and of three responses, as `rlsys judge --format responses` reads them."""
    found = open_rows(Path("tasks:heldout"), Data.model_validate({"responses": [2, 3]}), 0)
    records = [found[number] for number in range(10)]
    return [{"id": record.id, "context": list(record.context), "responses": list(record.responses)} for record in records]


@pytest.fixture(scope="module")
def meta_rm(model, tmp_path_factory) -> Path:
    """A meta reward model: the same model with a random head."""
    return build_random_scorer(model, tmp_path_factory.mktemp("scorer"))


@pytest.fixture(scope="module")
def service(ray_session, model, meta_rm) -> Iterator[Service]:
    """A service in the Ray of the tests."""
    arguments = ServiceArguments(
        model=str(model), meta_rm=str(meta_rm), settings=SMALL, k=K, strategy="vote", temperature=1.0, limits=Limits(max_pending=48)
    )
    config, scorer, problems = service_config(arguments)
    assert not problems
    with running_service(arguments, config, scorer, None, "127.0.0.1", free_port("127.0.0.1", 0)) as running:
        yield running


@pytest.fixture
def client(service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=WAIT_S) as client:
        yield client


def request_of(row: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": row["id"], "conversation": row["context"], "responses": row["responses"], **more}


def rounded(answer: Any) -> Any:
    """Return an answer whose meta rewards are rounded: how many samples are scored together changes their last digits."""
    if isinstance(answer, dict):
        return {key: round(value, 4) if key == "meta_reward" and value is not None else rounded(value) for key, value in answer.items()}
    return [rounded(value) for value in answer] if isinstance(answer, list) else answer


def in_flight() -> int:
    return int(ray_serve.get_deployment_handle("judge", NAME).in_flight.remote().result(timeout_s=60))


@pytest.mark.nightly
def test_scores_are_those_of_rlsys_judge(client, model, meta_rm, rows, tmp_path):
    """By another path: a file, the pool of engines, and Arrow tables through the object store."""
    source, output = tmp_path / "rows.jsonl", tmp_path / "judged.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = ["--model", model, "--input", source, "--format", "responses", "--output", output, "--k", K, "--seed", 3, "--text"]
    answers = [client.post("/v1/score", json=request_of(row, seed=3, strategy="meta", critiques=True)) for row in rows]
    assert [answer.status_code for answer in answers] == [200] * len(rows)
    # The tests' Ray has the cores for one of the two: Serve keeps its own, and the command has a Ray of its own.
    ended = subprocess.run(
        [sys.executable, "-m", "launch.cli", "judge", *map(str, named), "--temperature", "1", "--meta-rm", str(meta_rm), *SMALL],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    judged = [json.loads(line) for line in output.read_text().splitlines()]
    parsed = 0
    for row, answer in zip(judged, answers, strict=True):
        found = ScoreResponse.model_validate(answer.json())
        assert (found.id, found.best, found.tied, found.generated_tokens) == (row["id"], row["best"], row["tied"], row["tokens"])
        assert found.prompt_tokens == row["prompt_tokens"]
        for mine, sample in zip(found.samples, row["samples"], strict=True):
            shown = None if mine.scores is None else [mine.scores[original] for original in mine.order]
            assert (mine.order, shown, mine.text, mine.tokens) == (sample["order"], sample["scores"], sample["text"], sample["tokens"])
            assert mine.meta_reward == pytest.approx(sample["meta_reward"], abs=1e-4)
            parsed += shown is not None
    assert parsed, "no sample parsed: the comparison would show nothing"


@pytest.mark.nightly
def test_the_same_seed_has_the_same_answer_beside_other_requests(client, rows):
    """In fp32, whatever else is in the engine's batch."""
    alone = [client.post("/v1/score", json=request_of(row, critiques=True)).json() for row in rows[:4]]
    with ThreadPoolExecutor(24) as threads:
        noise = [threads.submit(client.post, "/v1/score", json=request_of(rows[4 + n % 6], seed=n, k=6)) for n in range(20)]
        beside = list(threads.map(lambda row: client.post("/v1/score", json=request_of(row, critiques=True)).json(), rows[:4]))
        assert all(one.result().status_code == 200 for one in noise)
    assert beside == alone
    assert client.post("/v1/score", json=request_of(rows[0], seed=1, critiques=True)).json()["samples"] != alone[0]["samples"]


@pytest.mark.nightly
def test_a_stream_ends_with_the_answer_of_score(client, rows):
    for strategy in ("vote", "adaptive", "synthesis"):
        body = request_of(rows[0], strategy=strategy, critiques=True)
        text = client.post("/v1/score/stream", json=body).text
        parts = [block.split("\n", 1) for block in text.strip().split("\n\n")]
        events = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in parts]
        whole = client.post("/v1/score", json=body).json()
        assert (events[-1][0], rounded(events[-1][1])) == ("score", rounded(whole))
        for number, sample in enumerate(whole["samples"]):
            results = [data["result"] for name, data in events if name == "sample" and data["sample"] == number]
            assert rounded(results) == rounded([sample])
            streamed = "".join(data["text"] for name, data in events if name == "text" and data["sample"] == number)
            assert streamed == sample["text"]


@pytest.mark.nightly
def test_a_batch_answers_every_line(client, rows):
    lines = [json.dumps(request_of(row)) for row in rows] + ["{"]
    response = client.post("/v1/score/batch", content="\n".join(lines), headers={"Content-Type": "application/jsonl"})
    found = {row["line"]: row for row in map(json.loads, response.text.splitlines())}
    assert sorted(found) == list(range(1, len(lines) + 1)) and found[len(lines)]["error"]["code"] == 400
    one = client.post("/v1/score", json=request_of(rows[2])).json()
    assert rounded(found[3]) == rounded({"line": 3} | one)


@pytest.mark.nightly
def test_strategies_that_cannot_be_served_and_prompts_that_do_not_fit_are_refused(client, rows):
    borda = client.post("/v1/score", json=request_of(rows[0], strategy="borda"))
    long = client.post("/v1/score", json={"conversation": "q", "responses": ["word " * 3000]})
    file = client.post("/v1/score", json=request_of(rows[0], strategy=f"{__file__}:x"))
    for refused, words in ((borda, "rollout.self_certainty"), (long, "prompt.max_tokens"), (file, "expected one of")):
        assert refused.status_code == 422 and words in refused.json()["error"]["message"], refused.text


@pytest.mark.nightly
@pytest.mark.parametrize("route", ["/v1/score", "/v1/score/stream", "/v1/score/batch"])
def test_a_client_that_goes_away_stops_its_samples(service, rows, route):
    assert in_flight() == 0
    kind = "application/jsonl" if "batch" in route else "application/json"
    body = json.dumps(ENDLESS | {"k": 32})
    url = httpx.URL(service.url)
    head = f"POST {route} HTTP/1.1\r\nHost: {url.host}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((url.host, url.port), timeout=WAIT_S) as connection:
        connection.sendall((head + body).encode())
        until(lambda: in_flight() > 0, "no sample was started")
    # Closed by now, with 32 samples of 300 tokens begun.
    until(lambda: in_flight() == 0, "samples of a client that has gone are still in flight", 60)
    with httpx.Client(base_url=service.url, timeout=WAIT_S) as other:
        assert other.post("/v1/score", json=request_of(rows[0])).status_code == 200
        until(lambda: other.get("/readyz").json()["in_progress"] == 0, "the request is still admitted", 60)


@pytest.mark.nightly
def test_metrics_and_the_reference_are_served(client, rows):
    client.post("/v1/score", json=request_of(rows[1]))
    text = client.get("/metrics").text
    assert 'rlsys_serve_requests_total{route="/v1/score",status="200"}' in text and "rlsys_serve_tokens_total" in text
    assert "/v1/score/batch" in client.get("/docs").text


# --- the command ---------------------------------------------------------------------------------------------------------


def test_the_quickstarts_last_lines_serve_and_ask_and_stopping_leaves_nothing(model):
    """The lines work as they are, but for the port. SIGTERM answers what is in progress; no process and no temporary file is left."""
    serve_words, curl_words = quickstarts_lines(model)
    assert serve_words[:2] == [".venv/bin/rlsys", "serve"] and curl_words[0] == "curl"
    port = free_port("127.0.0.1", 0)
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as scratch:  # short: sockets have long names
        (Path(scratch) / "tmp").mkdir()
        log = Path(scratch) / "log"
        environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RLSYS_TOKEN")}
        environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": f"{scratch}/tmp", "COLUMNS": "120"}
        command = [sys.executable, "-m", "launch.cli", *serve_words[1:], "--port", str(port), *SMALL]
        with log.open("w") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True, preexec_fn=as_in_a_terminal
            )
        try:
            until(lambda: "Ctrl-C stops it" in log.read_text() or process.poll() is not None, "not ready", 600)
            assert process.poll() is None, log.read_text()[-3000:]
            family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
            curl_words[1] = curl_words[1].replace(":8000", f":{port}")
            answer = subprocess.run(["curl", "-sS", *curl_words[1:]], capture_output=True, text=True, timeout=WAIT_S)
            assert len(ScoreResponse.model_validate_json(answer.stdout).samples) == 8, answer
            with ThreadPoolExecutor(1) as thread, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_S) as client:
                asked = thread.submit(client.post, "/v1/score", json=ENDLESS)
                until(lambda: client.get("/readyz").json()["in_progress"] > 0 or asked.done(), "not begun")
                process.send_signal(signal.SIGTERM)
                assert asked.result(WAIT_S).status_code == 200, log.read_text()[-3000:]
            assert process.wait(120) == 0, log.read_text()[-3000:]
            until(lambda: not any(psutil.pid_exists(pid) for pid in family), "a process is left", 60)
            left = {path.name for path in (Path(scratch) / "tmp").iterdir()}
            assert left <= {"ray", f"rlsys-cores-{os.getuid()}"}, left
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
