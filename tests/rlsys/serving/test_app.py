"""The HTTP app over a judge in memory: what it answers, refuses, counts and stops."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from serving_peer import LengthJudge, client_of

from rlsys.serving.app import Settings, create_app
from rlsys.serving.contract import SampleResult, ScoreResponse, ServingError
from rlsys.serving.limits import Limits
from rlsys.system.local_http import own_names

PAIR = {"conversation": "Which?", "responses": ["a", "bcd"]}


def run(use: Callable[[httpx.AsyncClient, LengthJudge], Awaitable[Any]], settings: Settings | None = None, **headers: str) -> Any:
    """Run `use(client, judge)` on an app of its own, for at most a minute."""

    async def main() -> Any:
        judge = LengthJudge()
        async with asyncio.timeout(60), client_of(create_app(judge, settings), **headers) as client:
            return await use(client, judge)

    return asyncio.run(main())


def post(route: str, body: object, settings: Settings | None = None, **headers: str) -> httpx.Response:
    return run(lambda client, _: client.post(route, json=body), settings, **headers)


def post_bytes(route: str, content: bytes, kind: str) -> httpx.Response:
    return run(lambda client, _: client.post(route, content=content, headers={"Content-Type": kind}))


def get(route: str, settings: Settings | None = None) -> httpx.Response:
    return run(lambda client, _: client.get(route), settings)


def error_of(response: httpx.Response) -> str:
    body = response.json()
    assert body["error"]["code"] == response.status_code
    return body["error"]["message"]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def test_scores_are_the_backends_in_the_contracts_form():
    response = post("/v1/score", PAIR | {"k": 3, "id": "r1"})
    assert response.status_code == 200
    found = ScoreResponse.model_validate(response.json())
    assert (found.id, found.scores, found.best, found.margin, len(found.samples)) == ("r1", [1.0, 3.0], 1, 2.0, 3)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (PAIR | {"kk": 3}, ["kk", "unknown key"]),
        ({"conversation": "q"}, ["responses", "required"]),
        (PAIR | {"responses": ["a", 3]}, ["responses.1", "string"]),
        (PAIR | {"conversation": [{"role": "user"}]}, ["conversation", "content", "required"]),
        (PAIR | {"k": 0}, ["k", "greater than or equal to 1"]),
        (PAIR | {"seed": -1}, ["seed"]),
        (PAIR | {"responses": []}, ["responses", "at least 1"]),
        ([], ["the body"]),
    ],
)
def test_a_malformed_request_is_refused_with_the_key_at_fault(body, words):
    response = post("/v1/score", body)
    assert response.status_code == 400
    assert all(word in error_of(response) for word in words), error_of(response)


def test_a_body_that_is_not_json_is_refused():
    for content in (b'{"conversation": ', b"\xff", b"[" * 100_000, b'{"conversation": "\\ud800", "responses": ["a"]}'):
        response = post_bytes("/v1/score", content, "application/json")
        assert response.status_code == 400, response.text
    response = post_bytes("/v1/score", json.dumps(PAIR).encode(), "text/plain")
    assert response.status_code == 415 and "application/json" in error_of(response) and "text/plain" in error_of(response)


@pytest.mark.parametrize(
    ("body", "status", "option"),
    [
        (PAIR | {"responses": ["a"] * 5}, 422, "--max-responses"),
        (PAIR | {"k": 9}, 422, "--max-k"),
        (PAIR | {"conversation": "x" * (1 << 20)}, 413, "--max-body-mib"),
        (PAIR | {"conversation": "wait"}, 504, "--max-seconds"),
    ],
)
def test_a_limit_is_named_with_its_option(body, status, option):
    settings = Settings(Limits(max_responses=4, max_k=8, max_body_mib=1, max_seconds=1))
    for route in ("/v1/score", "/v1/score/stream"):
        response = post(route, body, settings)
        assert response.status_code == status and option in error_of(response), response.text


def test_a_body_is_refused_before_it_is_read_to_its_end():
    """Both by the announced length, and, without one, once it is too long."""

    async def use(client: httpx.AsyncClient, _: LengthJudge) -> list[int]:
        sent = 0

        async def endless():
            nonlocal sent
            while True:
                sent += 1 << 16
                yield b"x" * (1 << 16)

        headers = {"Content-Type": "application/json"}
        endless_body = await client.post("/v1/score", content=endless(), headers=headers)
        announced = await client.post("/v1/score", content=b"{}", headers=headers | {"Content-Length": str(1 << 40)})
        assert sent < 4 << 20
        return [endless_body.status_code, announced.status_code]

    assert run(use, Settings(Limits(max_body_mib=1))) == [413, 413]


def test_errors_of_the_backend_reach_the_client_and_secrets_do_not():
    refused = post("/v1/score", PAIR | {"conversation": "refuse"})
    assert (refused.status_code, error_of(refused)) == (422, "strategy: no such strategy.")
    broken = post("/v1/score", PAIR | {"conversation": "break"})
    assert broken.status_code == 500 and "secret" not in broken.text


def test_too_many_requests_are_refused_at_once_and_later_ones_answered():
    async def use(client: httpx.AsyncClient, judge: LengthJudge) -> None:
        waiting = [asyncio.ensure_future(client.post("/v1/score", json=PAIR | {"conversation": "wait"})) for _ in range(2)]
        await until(lambda: judge.running == 2)
        for route in ("/v1/score", "/v1/score/stream"):
            refused = await client.post(route, json=PAIR)
            assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1 and "--max-pending" in error_of(refused)
        assert (await client.get("/healthz")).status_code == 200
        judge.release.set()
        assert [response.status_code for response in await asyncio.gather(*waiting)] == [200, 200]
        assert (await client.post("/v1/score", json=PAIR)).status_code == 200

    run(use, Settings(Limits(max_pending=2)))


def test_a_token_is_required_and_never_shown(caplog):
    caplog.set_level(logging.DEBUG)
    settings = Settings(token="s3cret-t0ken")
    assert "s3cret" not in repr(settings)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer s3cret-t0ken2"}, {"Authorization": "s3cret-t0ken"}):
        refused = post("/v1/score", PAIR, settings, **headers)
        assert refused.status_code == 401 and refused.headers["WWW-Authenticate"] == "Bearer" and "s3cret" not in refused.text
    assert post("/v1/score", PAIR, settings, Authorization="Bearer s3cret-t0ken").status_code == 200
    for route, status in (("/healthz", 200), ("/readyz", 200), ("/metrics", 401), ("/docs", 401), ("/openapi.json", 401)):
        assert get(route, settings).status_code == status, route
    assert "s3cret" not in caplog.text and "/v1/score" in caplog.text


def test_the_scheme_of_a_token_may_have_any_case():
    for given in ("bearer t0ken", "BEARER t0ken", "Bearer  t0ken"):
        assert post("/v1/score", PAIR, Settings(token="t0ken"), Authorization=given).status_code == 200


def test_only_reading_a_public_route_needs_no_token():
    for route in ("/", "/healthz"):
        assert get(route, Settings(token="t0ken")).status_code == 200
        assert post(route, {}, Settings(token="t0ken")).status_code == 401
        assert post(route, {}).status_code == 405


def test_a_body_that_does_not_arrive_is_not_waited_for():
    async def use(client: httpx.AsyncClient, _: LengthJudge) -> httpx.Response:
        async def body():
            yield b"{"
            await asyncio.sleep(3600)

        return await client.post("/v1/score", content=body(), headers={"Content-Type": "application/json"})

    response = run(use, Settings(Limits(max_seconds=1)))
    assert response.status_code == 408 and "--max-seconds" in error_of(response)


def test_a_body_that_is_cut_off_is_not_judged():
    async def main() -> list[int]:
        incoming = [{"type": "http.disconnect"}, {"type": "http.request", "body": json.dumps(PAIR).encode(), "more_body": True}]
        sent = []

        async def receive() -> dict[str, Any]:
            return incoming.pop()

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/score", "query_string": b""}
        await create_app(LengthJudge())(scope | {"headers": [(b"content-type", b"application/json")]}, receive, send)
        return [message["status"] for message in sent if "status" in message]

    assert asyncio.run(main()) == [499]


def test_behind_a_prefix_the_same_routes_are_public_and_take_lines():
    async def main() -> list[int]:
        app = create_app(LengthJudge(), Settings(token="t0ken"))
        transport = httpx.ASGITransport(app, root_path="/judge")
        async with asyncio.timeout(60), httpx.AsyncClient(transport=transport, base_url="http://judge") as client:
            lines = {"content": json.dumps(PAIR), "headers": {"Content-Type": "application/jsonl", "Authorization": "Bearer t0ken"}}
            answers = [
                await client.get("/judge/healthz"),
                await client.get("/judge/docs"),
                await client.get("/judgehealthz"),
                await client.post("/judge/v1/score/batch", **lines),
            ]
            return [one.status_code for one in answers]

    assert asyncio.run(main()) == [200, 401, 401, 200]


@pytest.mark.parametrize(
    ("host", "status"), [("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("rebound.example", 403), ("[", 403)]
)
def test_without_a_token_only_the_own_name_is_answered(host, status):
    hosts = own_names("127.0.0.1")
    assert own_names("0.0.0.0") is None
    for route in ("/v1/score", "/v1/score/stream"):
        assert post(route, PAIR, Settings(hosts=hosts), Host=host).status_code == status
        assert post(route, PAIR, Settings(token="t0ken", hosts=hosts), Host=host, Authorization="Bearer t0ken").status_code == 200


def test_a_path_cannot_write_a_log_line_of_its_own(caplog):
    caplog.set_level(logging.INFO, "rlsys.serving.requests")
    response = get("/x%0AINFO%20forged%1B[2J")
    assert response.status_code == 404
    assert len(caplog.records) == 1 and "\n" not in caplog.messages[0] and "\x1b" not in caplog.messages[0]


def test_a_batch_answers_every_line_with_its_number():
    good = [PAIR | {"id": f"r{number}", "responses": ["a", "b" * number]} for number in range(1, 40)]
    lines = [json.dumps(row) for row in good]
    lines[5:5] = [
        "{not json",
        "",
        json.dumps(PAIR | {"id": "odd", "conversations": "x"}),
        "[]",
        json.dumps(PAIR | {"conversation": "break"}),
    ]
    lines += [json.dumps({"id": wrong}) for wrong in (float("nan"), ["x"], True, 7)]
    lines += ["x" * ((1 << 20) + 1), json.dumps(PAIR | {"id": "many", "k": 65})]

    async def use(client: httpx.AsyncClient, _: LengthJudge) -> list[dict[str, Any]]:
        headers = {"Content-Type": "application/jsonl"}
        response = await client.post("/v1/score/batch", content="\n".join(lines), headers=headers)
        assert response.status_code == 200 and response.headers["content-type"].startswith("application/jsonl")
        return [json.loads(line, parse_constant=pytest.fail) for line in response.text.splitlines()]

    found = {row["line"]: row for row in run(use, Settings(Limits(max_pending=4, max_body_mib=1)))}
    assert sorted(found) == [number for number in range(1, len(lines) + 1) if number != 7]
    for number, line in enumerate(lines, 1):
        if number in (6, 8, 9, 10) or number > len(lines) - 6:
            assert "scores" not in found[number] and found[number]["error"]["message"]
        elif number != 7:
            row = json.loads(line)
            assert (found[number]["id"], found[number]["scores"]) == (row["id"], [1.0, float(len(row["responses"][1]))])
    assert [found[len(lines) - back]["id"] for back in (5, 4, 3, 2)] == [None, None, None, 7]
    assert found[8]["id"] == "odd" and "conversations" in found[8]["error"]["message"]
    assert found[len(lines)]["error"]["code"] == 422 and found[len(lines) - 1]["error"]["code"] == 413


def test_a_batch_leaves_half_of_the_places_to_others():
    async def use(client: httpx.AsyncClient, judge: LengthJudge) -> None:
        lines = "\n".join(json.dumps(PAIR | {"conversation": "wait"}) for _ in range(20))
        batch = asyncio.ensure_future(client.post("/v1/score/batch", content=lines, headers={"Content-Type": "application/jsonl"}))
        await until(lambda: judge.running == 4)
        assert (await client.post("/v1/score", json=PAIR)).status_code == 200
        await asyncio.sleep(0.05)
        assert judge.running == 4
        judge.release.set()
        rows = [json.loads(line) for line in (await batch).text.splitlines()]
        assert len(rows) == 20 and all(row["scores"] == [1.0, 3.0] for row in rows)

    run(use, Settings(Limits(max_pending=8)))


def test_more_batches_than_the_limit_are_refused_until_one_ends():
    async def use(client: httpx.AsyncClient, judge: LengthJudge) -> None:
        def batch() -> Any:
            lines = json.dumps(PAIR | {"conversation": "wait"})
            return client.post("/v1/score/batch", content=lines, headers={"Content-Type": "application/jsonl"})

        open_batches = [asyncio.ensure_future(batch()) for _ in range(2)]
        await until(lambda: judge.running == 2)
        refused = await batch()
        assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1 and "--max-batches" in error_of(refused)
        open_batches[0].cancel()  # a client that goes away
        await until(lambda: judge.running == 1)
        judge.release.set()
        assert (await batch()).status_code == (await open_batches[1]).status_code == 200

    run(use, Settings(Limits(max_batches=2)))


def events(text: str) -> list[tuple[str, Any]]:
    parts = [block.split("\n") for block in text.strip().split("\n\n")]
    assert all(len(part) == 2 for part in parts)
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in parts]


def test_a_stream_sends_texts_samples_and_the_response_last():
    response = post("/v1/score/stream", PAIR)
    found = events(response.text)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert [name for name, _ in found] == ["text", "text", "sample"] * 2 + ["score"]
    assert "".join(data["text"] for name, data in found if name == "text" and data["sample"] == 1) == "critique\u2028"
    assert found[-1][1] == post("/v1/score", PAIR).json()


class BrokenMeta(LengthJudge):
    async def score(self, request):
        found = await super().score(request)
        samples = [SampleResult(**sample.model_dump() | {"meta_reward": math.nan}) for sample in found.samples]
        return found.model_copy(update={"samples": samples, "margin": math.inf})


def test_a_meta_reward_that_is_no_number_is_null_on_every_route():
    messages = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "a"}]

    async def main() -> list[Any]:
        async with asyncio.timeout(60), client_of(create_app(BrokenMeta())) as client:
            whole = await client.post("/v1/score", json=PAIR)
            chat = await client.post("/v1/chat/completions", json={"model": "length:judge", "messages": messages})
            lines = await client.post("/v1/score/batch", content=json.dumps(PAIR), headers={"Content-Type": "application/jsonl"})
            return [json.loads(answer.text, parse_constant=pytest.fail) for answer in (whole, chat, lines)]

    whole, chat, line = asyncio.run(main())
    assert whole["samples"][0]["meta_reward"] is chat["choices"][0]["meta_reward"] is line["samples"][0]["meta_reward"] is None
    assert whole["margin"] is chat["judgement"]["margin"] is line["margin"] is None


def test_a_stream_that_fails_midway_ends_with_an_error():
    found = events(post("/v1/score/stream", PAIR | {"conversation": "midway"}).text)
    assert [name for name, _ in found] == ["text", "error"] and found[-1][1]["error"]["code"] == 503


@pytest.mark.parametrize("route", ["/v1/score", "/v1/score/stream", "/v1/score/batch"])
def test_a_client_that_goes_away_stops_the_work(route):
    """By the ASGI protocol: the server says http.disconnect once the body is read."""

    async def main() -> None:
        judge, body = LengthJudge(), json.dumps(PAIR | {"conversation": "wait"}).encode()
        app, gone = create_app(judge), asyncio.Event()
        incoming = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if incoming:
                return incoming.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            pass

        kind = b"application/jsonl" if "batch" in route else b"application/json"
        scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST", "path": route}
        scope |= {"raw_path": route.encode(), "query_string": b"", "root_path": "", "headers": [(b"content-type", kind)], "scheme": "http"}
        call = asyncio.ensure_future(app(scope, receive, send))
        await until(lambda: judge.running == 1)
        gone.set()
        await until(lambda: judge.cancelled == 1 and judge.running == 0)
        await asyncio.wait_for(call, 30)
        assert app.state.guard.in_progress == 0

    asyncio.run(main())


def test_metrics_count_requests_samples_tokens_and_failures():
    async def use(client: httpx.AsyncClient, _: LengthJudge) -> str:
        await client.post("/v1/score", json=PAIR | {"k": 3})
        await client.post("/v1/score", json=PAIR | {"k": 0})
        await client.get("/made/up")
        return (await client.get("/metrics")).text

    lines = run(use).splitlines()
    for line in (
        'rlsys_serve_requests_total{route="/v1/score",status="200"} 1.0',
        'rlsys_serve_requests_total{route="/v1/score",status="400"} 1.0',
        'rlsys_serve_requests_total{route="other",status="404"} 1.0',
        'rlsys_serve_samples_total{outcome="parsed"} 2.0',
        'rlsys_serve_samples_total{outcome="cut_off"} 1.0',
        'rlsys_serve_parse_failures_total{reason="no_box"} 1.0',
        'rlsys_serve_tokens_total{kind="generated"} 13.0',
        'rlsys_serve_tokens_total{kind="prompt"} 7.0',
        'rlsys_serve_seconds_count{route="/v1/score"} 2.0',
        "rlsys_serve_in_progress 0.0",
    ):
        assert line in lines, line


def test_the_reference_page_describes_every_route_and_field_without_other_hosts():
    page = get("/docs").text
    for word in ("/v1/score/batch", "/readyz", "ScoreRequest", "critiques", "Voting strategy", "SampleResult"):
        assert word in page, word
    assert "http://" not in page and "https://" not in page and "<script" not in page


def test_readiness_is_the_backends_and_ends_with_draining():
    async def main() -> None:
        state = ["the engines are starting."]

        async def ready() -> None:
            if state:
                raise ServingError(state[0], 503, 5)

        app = create_app(LengthJudge(), ready=ready)
        async with client_of(app) as client:
            starting = await client.get("/readyz")
            assert (starting.status_code, error_of(starting), starting.headers["Retry-After"]) == (503, state[0], "5")
            state.clear()
            assert (await client.get("/readyz")).json()["model"] == "length"
            app.state.guard.drain()
            for refused in (await client.get("/readyz"), await client.post("/v1/score", json=PAIR)):
                assert refused.status_code == 503 and "shutting down" in error_of(refused)
            assert (await client.get("/healthz")).status_code == 200

    asyncio.run(main())


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_a_limit_that_is_not_a_positive_integer_is_refused(value):
    with pytest.raises(ValueError, match="max_k.*at least 1"):
        Limits(max_k=value)
