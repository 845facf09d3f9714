"""The page of `rlsys view` in a real browser, by mouse and by keyboard."""

from __future__ import annotations

import re

import pytest
from browser import chromium_driven, driven, in_a_browser
from page_folders import HOSTILE
from view_folders import STEP, sample, serving, table

from rlsys.reporting.view.tables import open_sources
from rlsys.reporting.view.viewer import TEXT, Viewer

pytestmark = [in_a_browser, driven]
WAIT_MS = 20_000


@pytest.fixture(scope="module")
def browser():
    with chromium_driven() as one:
        yield one


@pytest.fixture
def folder(tmp_path):
    trajectories = tmp_path / "run/trajectories"
    table(trajectories / "step_000001.parquet", [row for group in STEP for row in group])
    table(trajectories / "heldout_base.parquet", [sample(i, 0, [9, 2]) for i in range(3)])
    table(trajectories / "heldout_rl.parquet", [sample(i, 0, [9, 2] if i != 1 else [2, 9]) for i in range(3)])
    return tmp_path / "run"


@pytest.fixture
def opened(browser, folder):
    """Return `opened(state)`, which opens the page, without its policy: escaping has to do. It may have nothing to complain of."""
    with serving(Viewer(open_sources([folder], ["run"]))) as port:
        context = browser.new_context(viewport={"width": 1280, "height": 800}, bypass_csp=True)
        complaints: list[str] = []

        def visit(state: str = ""):
            page = context.new_page()
            page.set_default_timeout(WAIT_MS)
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("dialog", lambda dialog: complaints.append(dialog.message))
            page.goto(f"http://127.0.0.1:{port}/#{state}")
            page.wait_for_selector("#detail h2")
            return page

        yield visit
        context.close()
        assert complaints == []


def chosen(page) -> str:
    return page.locator("#list [aria-current=true] .id").inner_text()


def listed(page) -> list[str]:
    return page.locator("#list .id").all_inner_texts()


def until(page, state: str) -> None:
    """Wait until the page's address holds `state`, and its group is shown."""
    page.wait_for_function("part => location.hash.includes(part)", arg=state)
    page.wait_for_function(
        "document.querySelector('#detail h2')?.textContent === document.querySelector('#list [aria-current=true] .id')?.textContent"
    )


def test_groups_are_walked_by_keyboard(opened) -> None:
    page = opened("table=step_000001")
    assert listed(page) == ["row-0", "row-1", "row-2", "row-3"] and chosen(page) == "row-0"
    for key, place in (("j", 1), ("j", 2), ("k", 1), ("G", 3), ("j", 3), ("g", 0), ("ArrowDown", 1)):
        page.keyboard.press(key)
        until(page, f"place={place}")
        assert chosen(page) == f"row-{place}"
    assert page.locator("article").count() == 2
    assert page.locator("article .scores .best").all_inner_texts() == ["[1] 2", "[1] 4"]
    assert not page.locator("details.prompt").evaluate("one => one.open")
    page.keyboard.press("p")
    assert page.locator("details.prompt pre").inner_text() == "prompt 1"
    page.keyboard.press("?")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()


def test_filters_by_mouse_and_by_keyboard(opened) -> None:
    page = opened("table=step_000001")
    assert page.locator("#filters button").all_inner_texts() == [
        "all 4",
        "wrong and confident 3",
        "unparsed 1",
        "cut off 1",
        "right and wrong 1",
    ]
    page.click("[data-filter=unparsed]")
    until(page, "filter=unparsed")
    assert listed(page) == ["row-2"]
    page.keyboard.press("F")
    until(page, "filter=wrong")
    assert listed(page) == ["row-1", "row-2", "row-3"]
    page.select_option("#family", "b")
    until(page, "family=b")
    assert listed(page) == ["row-1", "row-3"]
    page.keyboard.press("/")
    page.keyboard.type("3")
    until(page, "search=3")
    assert listed(page) == ["row-3"]
    page.keyboard.press("Escape")
    page.keyboard.press("]")
    until(page, "table=heldout_rl")


def test_two_tables_side_by_side_on_the_same_rows(opened) -> None:
    page = opened("table=heldout_base&other_table=heldout_rl&filter=changed")
    assert listed(page) == ["row-1"] and page.locator(".side h2").all_inner_texts() == ["row-1", "row-1"]
    assert [words.split(":")[1].split()[0] for words in page.locator(".side h3").all_inner_texts()] == ["wrong", "correct"]
    assert "Δ +2.00" in page.locator("#list").inner_text()
    page.keyboard.press("x")
    page.wait_for_function("document.querySelector('#list').textContent.includes('Δ −2.00')")
    assert page.locator("#table").input_value() == "heldout_rl"


def test_a_running_run_is_followed(opened, folder) -> None:
    page = opened("table=step_000001")
    page.keyboard.press("n")
    until(page, "table=heldout_rl")
    table(folder / "trajectories/heldout_zz.parquet", STEP[2])
    until(page, "table=heldout_zz")
    assert listed(page) == ["row-2"]
    table(folder / "trajectories/heldout_zz.parquet", STEP[2] + STEP[3])  # written again: shown without being asked
    page.wait_for_function("document.querySelectorAll('#list .id').length === 2")
    (folder / "trajectories/heldout_zz.parquet").unlink()
    until(page, "table=heldout_rl")


@pytest.mark.parametrize("width", [1280, 400])
def test_hostile_texts_stay_texts_and_fit(opened, folder, width) -> None:
    million = "z" * 1_000_000
    hostile = {"text": HOSTILE, "prompt": HOSTILE, "prompt_id": HOSTILE, "family": HOSTILE, "source": HOSTILE}
    rows = [sample(0, 0, None, parse_failure=HOSTILE, **hostile), sample(0, 1, [2, 9], **hostile | {"text": million})]
    table(folder / "trajectories/step_000002.parquet", rows)
    page = opened("table=step_000002")
    page.set_viewport_size({"width": width, "height": 800})
    page.keyboard.press("p")
    assert page.title() == "rlsys view"
    assert page.locator("script").count() == 1 and page.locator("img").count() == 0
    assert "<script>document.title = 'taken'</script>" in page.locator("article pre").first.inner_text()
    assert not re.search("[\x1b\u202e]", page.locator("body").inner_text())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("article pre").nth(1).evaluate("one => one.scrollWidth <= one.clientWidth")
    more = page.locator("article button.more")
    assert more.inner_text() == "show more (980,000 of 1,000,000 characters left)"
    more.click()
    page.wait_for_function("document.querySelector('article button.more').textContent.includes('960,000')")
    assert page.locator("article pre").nth(1).evaluate("one => one.textContent.length") == 2 * TEXT


def test_the_page_keeps_its_own_policy(browser, folder) -> None:
    """As served: a script, a style or a request that the policy forbids would be reported on the console."""
    with serving(Viewer(open_sources([folder], ["run"]))) as port:
        page = browser.new_page(color_scheme="dark")
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("article", timeout=WAIT_MS)
        page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'document.title = 1'}))")
        assert page.title() == "rlsys view"
        assert len(said) == 1 and "Content Security Policy" in said[0]
        page.close()
