"""The table that a run ends with: what each cell says, worked out by hand."""

from __future__ import annotations

import io

from rich.console import Console

from rlsys.documents.runs import RunSummary
from rlsys.reporting.summary import STAGES, summary_table


def stage(**changes: object) -> dict:
    whole = {
        "n": 40,
        "samples": 80,
        "reward": -0.25,
        "reward_ci95": [-0.5, 0.0],
        "accuracy": 0.375,
        "accuracy_ci95": [0.25, 0.5],
        "accuracy_parsed": 0.5,
        "accuracy_parsed_ci95": [0.375, 0.625],
        "parse_failures": {},
        "cut_off": 0,
        "families": {"all": {"n": 40, "accuracy": 0.375, "parsed": 0.75}},
    }
    return whole | changes


def summary(**changes: object) -> dict:
    whole = {
        "heldout": {"base": stage()},
        "baselines": {"chance": 0.5, "first": 0.4375, "longer": 0.5625, "pairs_n": 32},
        "paired": {},
        "seconds": {"rollout": 12.4, "learner": 7.6},
    }
    return whole | changes


def shown(told: dict) -> list[str]:
    """The lines of what is printed."""
    file = io.StringIO()
    Console(file=file, width=220, markup=False, emoji=False, highlight=False).print(summary_table(RunSummary.model_validate(told)))
    return file.getvalue().splitlines()


def cells(told: dict) -> list[list[str]]:
    """The cells of all rows of all tables."""
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in shown(told) if line.startswith("│")]


def test_a_stage_by_hand() -> None:
    found = cells(summary())
    assert found[0] == ["base model", "-0.250 (-0.500 to +0.000)", "37.5% (25.0% to 50.0%)", "50.0% (37.5% to 62.5%)", "none"]
    assert found[1:4] == [
        ["baseline: chance", "", "50.0%", "", ""],
        ["baseline: first position", "", "43.8%", "", "over 32 rows of 2 or more"],
        ["baseline: longer wins", "", "56.2%", "", "over 32 rows of 2 or more"],
    ]
    assert found[4:] == [["12", "8"]]
    assert any(line.strip() == "Held-out: 40 rows, 95% intervals" for line in shown(summary()))


def test_what_there_is_too_little_of_is_said() -> None:
    told = stage(reward_ci95=None, accuracy_ci95=None, accuracy_parsed=None, accuracy_parsed_ci95=None)
    told |= {"parse_failures": {"truncated": 3, "no_box": 12}, "cut_off": 2}
    baselines = {"chance": 1.0, "first": None, "longer": None, "pairs_n": 0}
    found = cells(summary(heldout={"base": told}, baselines=baselines))
    assert found[0][1:] == ["-0.250 (too few rows)", "37.5% (too few rows)", "none", "no_box 12, truncated 3; 2 cut off"]
    assert found[1] == ["baseline: chance", "", "100.0%", "", ""] and len(found) == 3
    told = stage(parse_failures={"no_box": 1})
    del told["cut_off"]  # as older runs have it
    assert cells(summary(heldout={"base": told}))[0][-1] == "no_box 1"


def test_stages_stand_in_the_order_in_which_they_were_reached() -> None:
    heldout = {name: stage(accuracy=number / 8) for number, name in enumerate(("rl", "base", "rft", "cold_start"), 1)}
    found = cells(summary(heldout=heldout))[:4]
    assert [row[0] for row in found] == ["base model", "after the cold start", "after rejective fine-tuning", "after RL"]
    assert [row[2].split()[0] for row in found] == ["25.0%", "50.0%", "37.5%", "12.5%"]
    assert [row[0] for row in cells(summary(heldout={"rl": stage()}))][:2] == [STAGES["rl"], "baseline: chance"]


def test_paired_differences_in_words() -> None:
    paired = {
        "rl_minus_cold_start": {"mean": 0.125, "ci95": [-0.0625, 0.25], "accuracy_parsed": {"mean": -0.0625, "ci95": None}},
        "cold_start_minus_base": {"mean": 0.5, "ci95": None},
    }
    lines = [line.strip() for line in shown(summary(paired=paired))]
    assert (
        "after RL minus after the cold start, paired: reward +0.125 (-0.062 to +0.250); accuracy where both parsed -6.2% (too few rows)"
        in lines
    )
    assert "after the cold start minus base model, paired: reward +0.500 (too few rows)" in lines


def test_families_are_compared_over_all_stages() -> None:
    base = {"math": {"n": 30, "accuracy": 0.25, "parsed": 1.0}, "code": {"n": 10, "accuracy": 0.754, "parsed": 1.0}}
    after = {"code": {"n": 9, "accuracy": 1.0, "parsed": 1.0}}
    heldout = {"base": stage(families=base), "rl": stage(families=after)}
    found = cells(summary(heldout=heldout))
    assert found[-3:-1] == [["math", "30", "25%", ""], ["code", "10", "75%", "100%"]]
    assert not any("Accuracy by family" in line for line in shown(summary()))  # one family is all rows


def test_accounts_and_the_teacher_are_reported() -> None:
    account = {"rows": 1200, "used": 1000, "set_aside": {"too long": 150, "malformed": 50}}
    rows = {"train": {"a [bold]": account}, "heldout": {"b": {"rows": 5, "used": 5, "set_aside": {}}}}
    lines = [line.strip() for line in shown(summary(rows=rows, teacher="tasks"))]
    assert "training rows, a [bold]: 1,200 rows: 1,000 used; set aside: 150 too long, 50 malformed" in lines
    assert "held-out rows, b: 5 rows: 5 used" in lines and "cold start's teacher: tasks" in lines
    assert not any("teacher" in line or "training rows" in line for line in shown(summary(teacher=None)))
