"""`rlsys report`, end to end; the contents of the page are tested in tests/rlsys/reporting/test_page.py."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from commands import rlsys

ROOT = Path(__file__).resolve().parents[2]
RUNG = {"title": "base model", "seed": 0, "minus_previous": None, "tokens_per_item": None, "ablation": False}
LADDER = {
    "benchmark": "tasks",
    "n": 400,
    "rungs": [RUNG | {"name": "base", "value": 0.5, "ci95": [0.45, 0.55]}, RUNG | {"name": "rl", "value": 0.7, "ci95": [0.65, 0.75]}],
    "notes": [],
}


report = partial(rlsys, "report")


@pytest.fixture
def ladder(tmp_path: Path) -> Path:
    folder = tmp_path / "ladder"
    folder.mkdir()
    (folder / "ladder.json").write_text(json.dumps(LADDER))
    return folder


def test_one_command_writes_the_page_and_its_companions(ladder: Path, tmp_path: Path) -> None:
    result = report(ladder, "--output", tmp_path / "out" / "first.html", "--title", "First <try>")
    assert result.returncode == 0, result.stderr
    assert str(tmp_path / "out" / "first.html") in result.stdout and "1 plot(s)" in result.stdout
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["first-accuracy-by-rung-tasks-400-rows.png", "first.html", "first.json", "first.md"]
    assert "<h1>First &lt;try&gt;</h1>" in (tmp_path / "out" / "first.html").read_text()


def test_json_is_the_document_in_page_json(ladder: Path, tmp_path: Path) -> None:
    result = report(ladder, "--json", "-o", tmp_path / "page.html")
    document = json.loads(result.stdout)
    assert document == json.loads((tmp_path / "page.json").read_text())
    assert (document["title"], document["made_by"]) == ("rlsys: ladder", "rlsys report")


@pytest.mark.parametrize("content", [None, '{"rungs": ['])
def test_unusable_input_is_one_message_and_no_page(ladder: Path, tmp_path: Path, content: str | None) -> None:
    (ladder / "ladder.json").unlink()
    if content:
        (ladder / "ladder.json").write_text(content)
    result = report(ladder, "--output", tmp_path / "out" / "page.html")
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {ladder}") and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_help_needs_no_heavy_import() -> None:
    heavy = ("torch", "pyarrow", "numpy", "matplotlib", "jinja2")
    program = (
        "import sys; from launch.app import app\nsys.argv = ['rlsys', 'report', '--help']\n"
        f"try:\n    app()\nexcept SystemExit:\n    print('HEAVY', sorted(set({heavy!r}) & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert "PAGE.html" in result.stdout
    assert result.stdout.rstrip().endswith("HEAVY []"), result.stderr
