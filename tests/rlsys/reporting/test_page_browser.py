"""The page of `rlsys report` in a real browser."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, in_a_browser
from page_folders import plots, write

PROBE = """
<!doctype html><meta charset="utf-8"><body><script>
const text = PAGE, told = {}
for (const width of [1280, 390]) {
  const frame = document.createElement('iframe')
  frame.style = `width: ${width}px; height: 900px; border: 0`
  frame.onload = () => {
    const inner = frame.contentDocument, root = inner.documentElement
    inner.querySelectorAll('details').forEach(one => one.open = true)
    const pictures = [...inner.querySelectorAll('figure svg')].filter(one => one.getClientRects().length)
    const outside = []
    for (const picture of pictures) {
      const box = picture.getBoundingClientRect()
      for (const words of picture.querySelectorAll('text')) {
        const at = words.getBoundingClientRect()
        if (at.left < box.left - 2 || at.right > box.right + 2 || at.bottom > box.bottom + 2) outside.push(words.textContent)
      }
    }
    const ids = [...inner.querySelectorAll('[id]')].map(one => one.id)
    told[width] = {
      width: root.clientWidth, content: root.scrollWidth, title: inner.title, outside,
      pictures: pictures.map(one => [one.getBoundingClientRect().width, one.getBoundingClientRect().height]),
      figures: [...inner.querySelectorAll('figure')].map(one => one.getBoundingClientRect())
        .map(box => [box.left, box.top, box.right].map(Math.round)),
      unscrolled: [...inner.querySelectorAll('table')].filter(one => getComputedStyle(one.parentElement).overflowX != 'auto').length,
      images: [...inner.images].map(one => one.naturalWidth), scripts: inner.scripts.length,
      twice: ids.filter((id, place) => ids.indexOf(id) !== place),
      missing: [...inner.querySelectorAll('use, a')].map(one => one.getAttribute('xlink:href') || one.getAttribute('href'))
        .filter(place => !place.startsWith('#') || !inner.getElementById(place.slice(1))),
      critiques: [...inner.querySelectorAll('article pre, article .turn, article td div')].map(one => one.textContent),
    }
    document.body.dataset.told = JSON.stringify(told)
  }
  frame.srcdoc = text
  document.body.append(frame)
}
</script>
"""


def chromium(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module", params=["page", "page_of_runs"])
def shown(request) -> Path:
    """Both pages."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def laid_out(shown, tmp_path_factory) -> dict[str, dict]:
    """What a browser makes of a page at 1280 and at 390 pixels. Its policy against scripts is taken out: escaping has to do."""
    folder = tmp_path_factory.mktemp("browser")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", shown.read_text())
    probe = write(folder / "probe.html", PROBE.replace("PAGE", json.dumps(text).replace("</", "<\\/")))
    result = chromium(folder, "--virtual-time-budget=10000", "--dump-dom", probe.as_uri())
    told = re.search(r'data-told="([^"]*)"', result.stdout)
    assert told, result.stderr
    return json.loads(html.unescape(told[1]))


@in_a_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_page(laid_out, shown, width) -> None:
    told = laid_out[str(width)]
    assert told["width"] == width and told["content"] <= width
    document = json.loads(shown.with_suffix(".json").read_text())
    assert len(told["pictures"]) == len(plots(document)) > 10
    assert all(wide > 200 and high > 100 for wide, high in told["pictures"])
    assert told["outside"] == [] and told["unscrolled"] == 0


@in_a_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_charts_fill_the_width(laid_out, width) -> None:
    """Every row of charts begins and ends where the others do."""
    figures = laid_out[str(width)]["figures"]
    rows = {top: [box for box in figures if box[1] == top] for _, top, _ in figures}
    assert {min(left for left, _, _ in row) for row in rows.values()} == {min(left for left, _, _ in figures)}
    assert {max(right for _, _, right in row) for row in rows.values()} == {max(right for _, _, right in figures)}
    assert max(map(len, rows.values())) == (2 if width == 1280 else 1)


@in_a_browser
def test_texts_stay_texts(laid_out) -> None:
    for told in laid_out.values():
        assert told["scripts"] == 0 and told["images"] == []
        assert "<script>document.title = 'taken'</script>" in told["title"]
        assert any("<script>" in text and "{{ 7 * 7 }}" in text for text in told["critiques"])
        assert not any("\x1b" in text or "\u202e" in text for text in told["critiques"])


@in_a_browser
def test_ids_and_references_fit(laid_out) -> None:
    for told in laid_out.values():
        assert told["twice"] == [] and told["missing"] == []


@in_a_browser
def test_the_browser_has_nothing_to_complain_of(shown, tmp_path) -> None:
    """The page as it is: a script, a request or a style that its policy forbids would be said on the console."""
    assert "default-src 'none'" in shown.read_text()
    result = chromium(tmp_path, "--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom", shown.as_uri())
    assert "</html>" in result.stdout
    assert not [line for line in result.stderr.splitlines() if "CONSOLE" in line]


@in_a_browser
def test_a_screenshot_shows_something_by_day_and_by_night(page, tmp_path) -> None:
    from matplotlib.image import imread

    backgrounds = []
    for scheme in (1, 0):  # light, dark
        picture = tmp_path / f"{scheme}.png"
        chromium(
            tmp_path, f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1200,4000", f"--screenshot={picture}", page.as_uri()
        )
        pixels = imread(picture)[..., :3]
        assert pixels.shape[:2] == (4000, 1200)
        background = pixels[5, 5]
        assert 0.03 < (np.abs(pixels - background).max(axis=-1) > 0.3).mean() < 0.5
        backgrounds.append(float(background.mean()))
    assert backgrounds[0] > 0.9 and backgrounds[1] < 0.2
