"""Names from data, paths and errors are printed literally, on any console."""

from __future__ import annotations

import io
from collections import Counter

import pytest
from rich.console import Console
from rich.text import Text

from actors.loops.evaluation import grid_table
from actors.loops.progress import ProgressReporter
from launch.commands import config, data, judge, score, show, vote
from rlsys.data.accounts import RowCounts
from rlsys.data.trajectories import TRAJECTORIES
from rlsys.documents.runs import RunSummary
from rlsys.evaluation.tables import Grid
from rlsys.reporting.summary import summary_table
from rlsys.system import terminal as screen

HOSTILE = ("[/INST] style", "math [easy]", "math [hard]", "[bold]x[/bold]", ":smile:", "[link=https://a.b]c", "\\[d]", "[/]", "@x[red")


def printed(*what: object, markup: bool = True) -> str:
    """Return the console output; with `markup`, of a default rich console, which interprets markup and emoji."""
    file = io.StringIO()
    console = Console(file=file, width=500) if markup else screen._console(False, file=file)
    for each in what:
        console.print(each)
    return file.getvalue()


def summary(families: dict) -> dict:
    entry = {"n": 2, "accuracy": 0.5, "parsed": 1.0}
    interval = {"reward": 0.0, "reward_ci95": [-1, 1], "accuracy": 0.5, "accuracy_ci95": [0, 1], "accuracy_parsed": 0.5}
    stage = {"n": 6, "samples": 6, **interval, "accuracy_parsed_ci95": [0, 1], "parse_failures": {HOSTILE[0]: 1}, "cut_off": 0}
    return {
        "heldout": {"base": stage | {"families": dict.fromkeys(families, entry)}},
        "baselines": {"chance": 0.5, "first": None, "longer": None, "pairs_n": 0},
        "paired": {},
        "teacher": HOSTILE[1],
        "seconds": dict.fromkeys(families, 1.0),
    }


def tables() -> dict[str, object]:
    """Return every table and panel that shows names, with hostile names."""
    judged = dict.fromkeys(("rows", "samples", "parsed", "tokens", "prompt_tokens", "no_verdict", "skipped", "judged", "cut_off"), 1)
    row = dict.fromkeys(TRAJECTORIES.names) | {"reward": 1.0, "scores": [1], "order": [0], "finish_reason": ""}
    row |= {"prompt": "\n".join(HOSTILE), "prompt_id": HOSTILE[0], "family": HOSTILE[1], "text": "\n".join(HOSTILE)}
    return {
        "summary": summary_table(RunSummary.model_validate(summary(HOSTILE))),
        "judged": judge.render(judged | {"failures": dict.fromkeys(HOSTILE, 1), "account": dict.fromkeys(HOSTILE, 1), "accuracy": 0.5}),
        "evaluation": grid_table(Grid(HOSTILE[0], ("", *HOSTILE), (("", *HOSTILE),))),
        "keys": config._key_table([{"key": name, "value": name, "help": name} for name in HOSTILE]),
        "panel": show._panel("best 1", row, "green", True),
        "frame": screen.panel(" ".join(HOSTILE), "", "red"),
        "table": screen.Table(*HOSTILE, title=" ".join(HOSTILE), caption=" ".join(HOSTILE)),
    }


@pytest.mark.parametrize("name", tables())
def test_tables_show_names_literally(name: str) -> None:
    shown = printed(tables()[name])
    assert [each for each in HOSTILE if each not in shown] == []


def test_command_output_shows_names_literally(capsys: pytest.CaptureFixture[str]) -> None:
    reasons = dict.fromkeys(HOSTILE, 1)
    score._print({"rows": 1, "correct": 1, "accuracy": 1.0, "reward": 1.0, "set_aside": 0, "parse_failures": reasons})
    vote._print({key: " ".join(HOSTILE) for key in vote.LABELS}, RowCounts(1, 0, Counter({" ".join(HOSTILE): 1})))
    shown = capsys.readouterr().err
    assert [each for each in HOSTILE if each not in shown] == []
    counts = dict.fromkeys(("rows", "records", "no_unique_best", "dropped_responses", "unchecked_ids"), 1)
    malformed = [{"row": 1, "message": name} for name in HOSTILE]
    report = {"file": HOSTILE[0], "format": HOSTILE[1], "responses": {}, "malformed": malformed, "malformed_count": len(HOSTILE)}
    report |= {"passed_over": HOSTILE, "formats": []}
    data._print_report(counts | report)
    shown = capsys.readouterr().out
    assert [each for each in HOSTILE if each not in shown] == []


def test_log_lines_show_names_literally() -> None:
    file = io.StringIO()
    progress = ProgressReporter(Console(file=file, width=500), HOSTILE[0])
    for name in HOSTILE:
        progress.say(name)
        progress.warn(name)
        screen.print_text(progress.console, name, "bold")
        progress._status.update(screen.as_text(name))
    assert all(file.getvalue().count(name) == 3 for name in HOSTILE if name != "[/]")
    with screen.progress(Console(file=file, width=500, force_terminal=True)) as bar:
        bar.add_task(HOSTILE[0], total=1, pace=HOSTILE[1])


def test_consoles_interpret_no_markup() -> None:
    assert [each for each in HOSTILE if each not in printed(*HOSTILE, markup=False)] == []


def test_styles_are_separate_and_control_characters_removed() -> None:
    assert screen.as_text("[red]x\x1b[2J", "bold") == Text("[red]x\ufffd[2J", "bold")
    assert isinstance(screen.as_text(Text("x")), Text)
    assert "\x1b" not in printed(screen.Table("\x1b[31m", title="\x1b]0;x\x07"))
