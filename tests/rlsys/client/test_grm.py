"""`GRM` against a service over HTTP and against a judge in this process."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser

import pytest
from judge_services import FakeJudge, fake_answer, fake_service, odd_service
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse

from rlsys import GRM, ScoreRequest, ServingError, Verdict

ROWS = [{"conversation": f"question {i}", "responses": [f"answer {i}", "no", "maybe"], "id": str(i), "seed": 5 + i} for i in range(20)]
MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}, {"role": "user", "content": "why"}]


@pytest.fixture(scope="module")
def service():
    judge = FakeJudge()
    with fake_service(judge) as url:
        yield url, judge


@pytest.fixture
def grm(service):
    with GRM.connect(service[0], timeout_s=30) as grm:
        yield grm


def expected(**fields) -> ScoreRequest:
    return ScoreRequest.model_validate({"k": 8, "strategy": "vote"} | fields)


def test_a_request_arrives_as_it_was_made_and_its_answer_comes_back(grm, service):
    given = {"critiques": True, "principles": "brevity", "seed": 2**32 - 1, "temperature": 0.25, "max_tokens": 7, "id": "r ü \n 1"}
    verdict = grm.score(MESSAGES, ["a", "", "a\u2028</td>"], 3, "mean", **given)
    request = expected(conversation=MESSAGES, responses=["a", "", "a\u2028</td>"], k=3, strategy="mean", **given)
    assert service[1].asked[-1] == request
    assert isinstance(verdict, Verdict) and verdict == Verdict.of(fake_answer(request), request.responses)
    assert verdict.best_response == request.responses[verdict.best]
    grm.score("why", ("a", "b"))
    assert service[1].asked[-1] == expected(conversation="why", responses=["a", "b"])


def test_a_service_and_a_judge_in_this_process_give_equal_verdicts(grm):
    with GRM.over(FakeJudge()) as local:
        there, here = grm.score_many(ROWS, k=2, critiques=True), local.score_many(ROWS, k=2, critiques=True)
    assert there == here == [Verdict.of(fake_answer(expected(**row, k=2, critiques=True)), row["responses"]) for row in ROWS]
    assert len({tuple(verdict.scores) for verdict in here}) > 10, "the rows have answers of their own"


def test_async_twins_work_in_any_event_loop(grm):
    async def ask() -> list[Verdict]:
        many = await grm.ascore_many(ROWS[:3])
        return [*many, await grm.ascore(ROWS[3]["conversation"], ROWS[3]["responses"], id="3", seed=8)]

    assert asyncio.run(ask()) == asyncio.run(ask()) == grm.score_many(ROWS[:4])

    async def in_a_notebook() -> Verdict:  # a loop is running in this thread
        return grm.score("why", ["a", "b"])

    assert asyncio.run(in_a_notebook()) == grm.score("why", ["a", "b"])


def test_rows_take_what_they_lack_from_the_arguments(grm, service):
    grm.score_many([{"conversation": "q", "responses": ["a"], "k": 2}, ScoreRequest(conversation="r", responses=["b"])], 5, seed=3)
    asked = sorted(service[1].asked[-2:], key=lambda request: request.conversation)
    assert asked[0] == expected(conversation="q", responses=["a"], k=2, seed=3)
    assert asked[1] == ScoreRequest(conversation="r", responses=["b"])


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"conversation": "q", "responses": "a"}, "row 1: responses: "),
        ({"conversation": "q", "responses": []}, "row 1: responses: "),
        ({"conversation": "q", "responses": ["a", None]}, "row 1: responses.1: "),
        ({"conversation": "q", "responses": ["\ud800"]}, "row 1: responses.0: "),
        ({"responses": ["a"]}, "row 1: conversation: "),
        ({"conversation": "q", "responses": ["a"], "n": 1}, "row 1: n: .* The fields are conversation, responses, k"),
        ({"conversation": [{"role": "user"}], "responses": ["a"]}, r"row 1: conversation.*content: "),
        ({"conversation": "q", "responses": ["a"], "k": 0}, "row 1: k: "),
        (["q", "a"], "row 1: expected a dict with conversation and responses, found list"),
    ],
)
def test_an_invalid_row_is_named_before_anything_is_sent(grm, service, row, named):
    before = len(service[1].asked)
    with pytest.raises(ValueError, match=named):
        grm.score_many([ROWS[0], row])
    assert len(service[1].asked) == before


def test_a_refused_row_is_named_and_can_stand_in_its_place(grm):
    rows = [*ROWS[:3], {"conversation": "q", "responses": ["a"] * 33}, *ROWS[3:]]
    with pytest.raises(ServingError, match=r"row 3: http://127.0.0.1:\d+/v1/score: HTTP 422: responses: 33: the limit is 32") as error:
        grm.score_many(rows)
    assert error.value.status == 422
    results = grm.score_many(rows, return_exceptions=True)
    assert [number for number, one in enumerate(results) if isinstance(one, ServingError)] == [3]
    assert results[4].id == "3" and "row 3" in str(results[3])


def test_a_busy_service_is_asked_again_after_the_time_it_names():
    times = []

    def busy(request):
        times.append(time.monotonic())
        if len(times) < 3:
            raise ServingError("busy", [429, 503][len(times) - 1], retry_after_s=1)

    with fake_service(FakeJudge(busy)) as url, GRM.connect(url, timeout_s=60) as grm:
        assert grm.score("q", ["a"]).best == 0
    assert len(times) == 3 and all(later - earlier >= 1 for earlier, later in zip(times, times[1:]))


@pytest.mark.parametrize("header", [{"Retry-After": "3600"}, {}, {"Retry-After": "0"}, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}])
def test_waiting_for_a_busy_service_is_bounded(header):
    tries = []

    async def busy(http):
        tries.append(1)
        return PlainTextResponse("too busy", 429, header)

    with odd_service(busy) as url, GRM.connect(url, timeout_s=2) as grm:
        with pytest.raises(ServingError, match=r"not answered within timeout_s=2, .*HTTP 429: too busy.* Raise timeout_s") as error:
            grm.score("q", ["a"])
    assert error.value.status == 504
    assert len(tries) == 1 if header == {"Retry-After": "3600"} else 1 < len(tries) < 10


def test_an_answer_that_takes_too_long_is_given_up_and_its_work_stopped():
    judge = FakeJudge(seconds=60)
    with fake_service(judge) as url, GRM.connect(url, timeout_s=0.5) as grm:
        with pytest.raises(ServingError, match="not answered within timeout_s=0.5"):
            grm.score("q", ["a"])
        wait_until(lambda: judge.cancelled == 1)


def test_cancelling_the_caller_stops_the_work():
    judge = FakeJudge(seconds=60)
    with fake_service(judge) as url, GRM.connect(url) as grm:

        async def ask() -> None:
            task = asyncio.ensure_future(grm.ascore_many(ROWS[:3]))
            while judge.at_once < 3:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(asyncio.wait_for(ask(), 30))
        wait_until(lambda: judge.cancelled == 3)


def test_one_failure_stops_the_other_rows():
    judge = FakeJudge(seconds=60)

    def fail(request):
        if request.id == "3":
            raise ServingError("no", 500)

    judge.before = fail
    with GRM.over(judge) as grm:
        with pytest.raises(ServingError, match="row 3: no"):
            grm.score_many(ROWS[:4])
        wait_until(lambda: judge.cancelled == 3)


@pytest.mark.parametrize(
    ("reply", "status", "message"),
    [
        (PlainTextResponse("no", 404), 404, "HTTP 404: no Is this the address of `rlsys serve`"),
        (
            JSONResponse({"error": {"message": "expected the header Authorization."}}, 401),
            401,
            "Authorization. Pass token=..., or set RLSYS_TOKEN",
        ),
        (JSONResponse({"detail": "the log says why"}, 500), 500, "HTTP 500: the log says why"),
        (RedirectResponse("http://127.0.0.1:9/"), 307, "HTTP 307"),
        (PlainTextResponse("<html>"), 502, "/v1/score: the body: .*Is this `rlsys serve`"),
        (JSONResponse({"id": "x"}), 502, "/v1/score: scores: Field required"),
    ],
)
def test_other_answers_are_errors_that_name_the_address(reply, status, message):
    asked = []

    async def answer(http):
        asked.append(1)
        return reply

    with odd_service(answer) as url, GRM.connect(url, timeout_s=30) as grm:
        with pytest.raises(ServingError, match=message) as error:
            grm.score("q", ["a"])
        assert error.value.status == status and url in str(error.value)
        assert len(asked) == 1, "is not sent again"


def test_an_answer_of_a_newer_service_is_read():
    async def newer(http):
        answer = fake_answer(ScoreRequest.model_validate(await http.json())).model_dump()
        answer["samples"][0]["new"] = answer["newer"] = 1
        return JSONResponse(answer)

    with odd_service(newer) as url, GRM.connect(url) as grm:
        assert grm.score("q", ["a", "b"]).parsed == 8


def test_a_service_that_is_not_there_is_named_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with (
            GRM.connect(url) as grm,
            pytest.raises(ServingError, match=f"{url}: cannot be reached .*Is `rlsys serve` running there") as error,
        ):
            grm.score("q", ["a"])
    assert error.value.status == 503


def test_a_connection_that_breaks_later_is_tried_again():
    """A proxy in front of the service breaks the second connection."""
    judge = FakeJudge()
    with fake_service(judge) as url, socket.create_server(("127.0.0.1", 0)) as proxy:
        port = int(url.rpartition(":")[2])

        def forward() -> None:
            for number in range(3):
                connection, _ = proxy.accept()
                with connection:
                    asked = connection.recv(1 << 16)
                    if number == 1:
                        continue
                    while b"\r\n\r\n" not in asked or len(asked.split(b"\r\n\r\n", 1)[1]) < 30:
                        asked += connection.recv(1 << 16)
                    with socket.create_connection(("127.0.0.1", port)) as upstream:
                        upstream.sendall(asked.replace(b"Connection: keep-alive", b"Connection: close"))
                        while part := upstream.recv(1 << 16):
                            connection.sendall(part)

        thread = threading.Thread(target=forward, daemon=True)
        thread.start()
        with GRM.connect(f"http://127.0.0.1:{proxy.getsockname()[1]}", timeout_s=30) as grm:
            assert grm.score("q", ["a"]) == grm.score("q", ["a"])
        thread.join(20)
        assert not thread.is_alive() and len(judge.asked) == 2


def test_the_token_is_sent_and_never_shown(monkeypatch):
    monkeypatch.delenv("RLSYS_TOKEN", raising=False)
    with fake_service(FakeJudge(), token="s3cret") as url:
        with GRM.connect(url) as grm, pytest.raises(ServingError, match="Pass token=..., or set RLSYS_TOKEN") as error:
            grm.score("q", ["a"])
        assert error.value.status == 401
        with GRM.connect(f"{url}/v1/", token="s3cret") as grm:
            assert grm.score("q", ["a"]).best == 0
            assert "s3cret" not in repr(grm) and url in repr(grm)
        monkeypatch.setenv("RLSYS_TOKEN", "s3cret")
        with GRM.connect(url) as grm:
            assert grm.score("q", ["a"]).best == 0
        with GRM.connect(url, token="") as grm, pytest.raises(ServingError, match="found none"):
            grm.score("q", ["a"])
    with pytest.raises(ValueError) as error:
        GRM.connect(url, token="s3cret\n")
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x", "http://", "http://x:99999", "http://x?a=1", "http://[", "runs/first"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="expected the address of a service"):
        GRM.connect(url)


def test_requests_in_progress_are_bounded():
    scorer = FakeJudge(seconds=0.01)
    with GRM.over(scorer, concurrency=3) as grm:
        assert len(grm.score_many(ROWS)) == 20
    assert scorer.most_at_once == 3
    with pytest.raises(ValueError, match="concurrency=0"):
        GRM.over(scorer, concurrency=0)


def test_closing_stops_what_is_in_progress_and_can_be_repeated():
    scorer = FakeJudge(seconds=60)
    grm = GRM.over(scorer)
    failures = []

    def ask() -> None:
        try:
            grm.score("q", ["a"])
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: scorer.at_once == 1)
    grm.close()
    grm.close()
    thread.join(20)
    assert scorer.closed and scorer.cancelled == 1 and len(failures) == 1 and repr(grm) == "GRM(fake, closed)"
    with pytest.raises(RuntimeError, match="it is closed"):
        grm.score("q", ["a"])


def test_a_forked_process_is_reported_to_make_its_own():
    with GRM.over(FakeJudge()) as grm:
        child = os.fork()
        if not child:
            try:
                grm.score("q", ["a"])
            except RuntimeError as error:
                os._exit(0 if "make one in each process" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def wait_until(there) -> None:
    deadline = time.monotonic() + 30
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_verdict_reads_well():
    request = expected(conversation="q", responses=["a", "b"], k=2)
    verdict = Verdict.of(fake_answer(request), request.responses).model_copy(update={"scores": [9.0, 2.5], "best": 0})
    assert repr(verdict) == str(verdict) == "Verdict(best=0, scores=[9, 2.5], 2 of 2 samples parsed)"
    nothing = Verdict.of(fake_answer(expected(conversation="q", responses=["unparsable"], k=2)), ["unparsable"])
    assert repr(nothing) == "Verdict(best=None, scores=None, 0 of 2 samples parsed)" and nothing.best_response is None
    assert repr(verdict.model_copy(update={"tied": True})).endswith(", tied)")


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def test_a_notebook_shows_responses_as_text():
    hostile = ["<script>alert(1)</script>", "</td></tr></table><img src=x onerror=alert(1)>", "\u202egnp", "a" * 5000]
    request = expected(conversation="q", responses=hostile, k=2, critiques=True, strategy="vote")
    page = Tags()
    page.feed(Verdict.of(fake_answer(request), hostile)._repr_html_())
    assert set(page.tags) == {"table", "caption", "tr", "th", "td", "b", "details", "summary", "pre"}
    assert page.tags.count("tr") == 5 and page.tags.count("details") == 2
    assert hostile[0] in page.text and hostile[1] in page.text and "fake <model>" in page.text and "critique 1 <b>" in page.text
    assert "\u202e" not in page.text and "a" * 301 not in page.text


def test_importing_rlsys_is_light():
    """None of the heavy libraries, nor the names' own modules, are loaded until they are used; a client needs none of the heavy ones."""
    code = """
import sys, rlsys
assert rlsys.__doc__ and set(rlsys.__all__) <= set(dir(rlsys))
assert not {"httpx", "pydantic", "asyncio"} & set(sys.modules), sys.modules
assert rlsys.__version__
rlsys.GRM.connect("http://127.0.0.1:9").close()
assert all(hasattr(rlsys, name) for name in rlsys.__all__) and not hasattr(rlsys, "nothing")
heavy = {"torch", "ray", "transformers", "vllm", "numpy", "pyarrow", "scipy", "actors", "launch"} & set(sys.modules)
assert not heavy, heavy
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


def test_without_engines_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr("rlsys.client.grm.entry_points", lambda group: [])
    with pytest.raises(RuntimeError, match=r"GRM\('runs/first'\): no engines are installed here.*GRM.connect"):
        GRM("runs/first")
