"""The page at / in a real browser: by mouse and keyboard, narrow, dark, with a token, and with texts that attack it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from browser import chromium_driven, driven, in_a_browser
from page_folders import HOSTILE
from scripted_judge import ScriptedJudge, served

from rlsys.judging.voting import Options, Samples, find_strategy
from rlsys.serving.app import Settings, create_app
from rlsys.serving.limits import Limits

WAIT_MS = 20_000
ANSWERS = ["judo score=2", "saw score=9", "beige score=9"]


def test_the_files_of_the_page_need_no_token_and_load_nothing_from_elsewhere():
    with served(create_app(ScriptedJudge(), Settings(token="secret"))) as address:
        for path, kind in (
            ("/", "text/html"),
            ("/serve.css", "text/css"),
            ("/serve.js", "text/javascript"),
            ("/votes.js", "text/javascript"),
        ):
            answer = httpx.get(address + path)
            assert answer.status_code == 200 and answer.headers["Content-Type"] == f"{kind}; charset=utf-8"
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self';")
            assert not re.search(r"https?://|innerHTML|insertAdjacent|document\.write|style=", answer.text)
        assert httpx.get(f"{address}/v1/models").status_code == 401


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium_driven() as one:
        yield one


@contextmanager
def opened(
    browser: Any, judge: ScriptedJudge, settings: Settings | None = None, expected: tuple[str, ...] = (), **context: Any
) -> Iterator[Any]:
    """Open the page of a service over the judge. It may complain of nothing in the console but what contains one of `expected`."""
    with served(create_app(judge, settings)) as address:
        visitor = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
        complaints: list[str] = []
        page = visitor.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.goto(address)
        shows(page, "#model", "scripted · version v1")
        try:
            yield page
        finally:
            visitor.close()
        assert [text for text in complaints if not any(part in text for part in expected)] == []


def fill(page: Any, question: str, answers: list[str], k: int = 4) -> None:
    page.fill("#question", question)
    while page.locator("#responses textarea").count() < len(answers):
        page.click("#add")
    for place, answer in enumerate(answers):
        page.locator("#responses textarea").nth(place).fill(answer)
    page.fill("#k", str(k))


def shows(page: Any, selector: str, text: str) -> None:
    """Wait until the element holds the text."""
    # Not wait_for_function, which the page's content policy stops.
    page.locator(selector, has_text=text).wait_for()


def said(page: Any, text: str) -> None:
    shows(page, "#status", text)


def rows(page: Any, part: str) -> list[list[str]]:
    return [[cell.strip() for cell in row.split("\t")] for row in page.locator(f"#votes {part}").inner_text().splitlines()]


def reached(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def numbers(values: Any) -> list[str]:
    return [f"{value:g}" if value == int(value) else f"{value:.2f}" for value in values]


@in_a_browser
@driven
def test_a_judgement_is_shown_with_every_sample_and_both_votes(browser):
    judge = ScriptedJudge(meta_rewards=True)
    with opened(browser, judge) as page:
        fill(page, "Which word is a tool?", ANSWERS, k=5)
        page.click("#judge")
        said(page, "A tie at the top; response 2 by lot (by vote, 5 of 5 samples parsed).")
        (asked,) = judge.requests
        assert (asked.conversation, asked.responses, asked.k, asked.seed, asked.critiques) == ("Which word is a tool?", ANSWERS, 5, 0, True)
        assert [row[1:4] for row in rows(page, "tbody")] == [["2", "9", "9"]] * 5
        assert [row[0] for row in rows(page, "tfoot")] == ["Vote", "Guided vote"]
        texts, facts = page.locator("article pre").all_inner_texts(), page.locator("article .facts").all_inner_texts()
        assert len(texts) == 5 and all("Response 1: " in text and "\\boxed{" in text for text in texts)
        for text, fact in zip(texts, facts):
            shown = [int(place) - 1 for place in re.search(r"shown in the order ([\d, ]+)", fact)[1].split(", ")]
            assert [text.index(ANSWERS[index]) for index in shown] == sorted(text.index(answer) for answer in ANSWERS)
            assert "meta reward" in fact and "4 tokens" in fact


@in_a_browser
@driven
def test_the_votes_of_the_page_are_those_of_the_voting_strategies(browser):
    """The page computes them from the samples, for the guided vote to appear beside the other one; ties and failures included."""
    rng = np.random.default_rng(0)
    with opened(browser, ScriptedJudge()) as page:
        for _ in range(200):
            k, n = rng.integers(1, 8), rng.integers(1, 5)
            scores = rng.integers(1, 11, (k, n)).astype(float)
            scores[rng.random(k) < 0.3] = np.nan
            meta_reward = rng.integers(0, 4, k).astype(float)
            samples = Samples(scores, meta_reward=meta_reward)
            lists = [
                {"scores": None if np.isnan(row[0]) else row.tolist(), "meta_reward": meta}
                for row, meta in zip(scores, meta_reward.tolist())
            ]
            found = page.evaluate(
                "async samples => { const m = await import('/votes.js'); return [m.vote(samples), m.guidedVote(samples)] }", lists
            )
            for name, vote in zip(("vote", "meta"), found):
                levels = find_strategy(name)(samples, Options()).levels
                assert (vote is None and np.isnan(levels).all()) or vote == pytest.approx(levels.tolist())


@in_a_browser
@driven
def test_a_judgement_needs_no_mouse(browser):
    judge = ScriptedJudge()
    with opened(browser, judge) as page:
        focused = "document.activeElement.id || document.activeElement.tagName"
        page.focus("#question")
        page.keyboard.type("Please wait")
        page.keyboard.press("Tab")
        page.keyboard.type("judo score=2")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Remove response 1"
        page.keyboard.press("Tab")
        page.keyboard.type("saw score=9")
        page.keyboard.press("Control+Enter")
        said(page, "Judging")
        reached(lambda: judge.running == 1)
        page.keyboard.press("Escape")
        said(page, "Stopped.")
        reached(lambda: judge.cancelled == 1)
        page.focus("#add")
        page.keyboard.press("Enter")
        page.keyboard.type("beige score=5")
        page.fill("#question", "Which?")
        page.focus("#question")
        judge.release.set()
        page.keyboard.press("Control+Enter")
        said(page, "Response 2 is best, 4 ahead")
        assert judge.requests[-1].responses == ["judo score=2", "saw score=9", "beige score=5"]
        page.click("[aria-label='Remove response 1']")
        assert page.evaluate(focused) == "add" and page.locator(".response label span").all_inner_texts() == ["Response 1", "Response 2"]


@in_a_browser
@driven
def test_texts_are_shown_and_never_run(browser):
    """Without its content policy, so that escaping alone has to do."""
    attack = HOSTILE + " </pre><img src=x onerror=alert(1)> \u202egnp.exe\u2066 score=9"
    judge = ScriptedJudge()
    judge.model = "scripted"
    with opened(browser, judge, bypass_csp=True) as page:
        before = page.evaluate("document.querySelectorAll('script, img, iframe, svg').length")
        fill(page, attack, [attack, "fine score=2"], k=2)
        page.click("summary")
        page.fill("#principles", attack)
        page.click("#judge")
        said(page, "Response 1 is best, 7 ahead")
        assert attack in page.evaluate("document.querySelector('article pre').textContent")
        assert page.evaluate("document.querySelectorAll('script, img, iframe, svg').length") == before
        judge.release.set()
        page.fill("#question", "unparsed " + attack)
        page.click("#judge")
        said(page, "No verdict: no sample could be parsed (2 samples).")
        assert [row[1] for row in rows(page, "tbody")] == ["not parsed: no_box"] * 2


@in_a_browser
@driven
def test_what_goes_wrong_is_said(browser):
    lost = "Failed to load resource"
    with opened(browser, ScriptedJudge(), Settings(Limits(max_k=8)), expected=(lost,)) as page:
        fill(page, "Which?", ANSWERS, k=9)
        page.click("#judge")
        page.wait_for_selector("#error:visible")
        assert "k: 9" in page.locator("#error").inner_text() and "--max-k" in page.locator("#error").inner_text()
        fill(page, "lost", ANSWERS, k=2)
        page.click("#judge")
        shows(page, "#error", "the engine was lost.")
        assert page.locator("article").count() == 2 and page.locator("article[aria-busy]").count() == 0
        fill(page, "Which?", ANSWERS, k=2)
        page.click("#judge")
        said(page, "A tie")
        assert page.locator("#error:visible").count() == 0


@in_a_browser
@driven
def test_a_token_is_asked_for_where_one_is_needed(browser):
    with opened(browser, ScriptedJudge(), Settings(token="secret"), expected=("401",)) as page:
        assert page.locator("#token:visible").count() == 0
        fill(page, "Which?", ANSWERS)
        page.click("#judge")
        page.wait_for_selector("#token:visible")
        assert "Authorization" in page.locator("#error").inner_text() and page.evaluate("document.activeElement.id") == "token"
        page.keyboard.type("secret")
        page.keyboard.press("Enter")
        said(page, "A tie")


@in_a_browser
@driven
@pytest.mark.parametrize("width", [320, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_narrow_screens_and_follows_the_scheme(browser, width, scheme):
    with opened(browser, ScriptedJudge(meta_rewards=True), viewport={"width": width, "height": 700}, color_scheme=scheme) as page:
        fill(page, "Which?" + "x" * 300, [*ANSWERS, "y" * 300, *ANSWERS])
        page.click("#judge")
        said(page, "A tie")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        light = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert (min(light) > 200) == (scheme == "light")
        controls = "[...document.querySelectorAll('button, input, textarea')].filter(one => one.offsetParent)"
        assert page.evaluate(f"Math.max(...{controls}.map(one => one.getBoundingClientRect().right))") <= width


@in_a_browser
@driven
def test_the_example_can_be_judged_at_once(browser):
    judge = ScriptedJudge()
    with opened(browser, judge) as page:
        page.click("#example")
        assert page.evaluate("document.activeElement.id") == "judge"
        page.keyboard.press("Enter")
        said(page, "A tie")
        assert judge.requests[0].responses == ["whiskey", "saw"]
