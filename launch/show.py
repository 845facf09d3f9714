"""`rlsys show`: the best and worst samples of a step, readably."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.panel import Panel
from rich.rule import Rule
from rich.text import Text

from launch.console import UserError, only_json, say, to_stdout
from launch.options import AsJson
from rlsys.texts import plain


def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run (its run.dir).")],
    step: Annotated[int, typer.Option("--step", min=0, help="Which step's samples.")],
    best: Annotated[int, typer.Option("--best", min=0, help="How many of the best samples.")] = 2,
    worst: Annotated[int, typer.Option("--worst", min=0, help="How many of the worst samples.")] = 2,
    prompt: Annotated[bool, typer.Option("--prompt/--no-prompt", help="Print what the model was asked, responses included.")] = True,
    as_json: AsJson = False,
) -> None:
    """Print the best and the worst samples of a step.

    Each with what was asked, what was said, the scores, the reward, the advantage, or why it could not be parsed. Best means
    the highest reward, then the highest advantage (right where the rest of its group was wrong).

    Example: rlsys show runs/latest --step 12 --best 1 --worst 3
    """
    rows = read_step(run, step)
    with only_json(as_json) as write_json:
        top, bottom = choose(rows, best, worst)
        mean = sum(row["reward"] for row in rows) / len(rows) if rows else None
        write_json({"run": str(run), "step": step, "samples": len(rows), "reward": mean, "best": top, "worst": bottom})
        if as_json:
            return
        console = to_stdout()
        failed = sum(row["parse_failure"] is not None for row in rows)
        correct = sum(bool(row["correct"]) for row in rows)
        say(console, f"step {step} of {run}: {len(rows)} samples, {correct} correct, {failed} parse failures")
        for title, chosen, colour in (("best", top, "green"), ("worst", bottom, "red")):
            for number, row in enumerate(chosen, 1):
                console.print(_panel(f"{title} {number}", row, colour, prompt))


def read_step(run: Path, step: int) -> list[dict[str, Any]]:
    """The trajectory rows (columns of rlsys.trajectories.TRAJECTORIES) of one step.

    Raises:
        UserError: no such run, no such step (the message lists those that exist), or a table that cannot be read.
    """
    folder = run / "trajectories"
    if not folder.is_dir():
        raise UserError(f"{run}: not the folder of a run (it has no trajectories/); give the run.dir of `rlsys train`.")
    path = folder / f"step_{step:06d}.parquet"
    if not path.is_file():
        found = sorted(int(match[1]) for name in folder.iterdir() if (match := re.fullmatch(r"step_(\d+)\.parquet", name.name)))
        there = f"steps with samples: {_ranges(found)}" if found else "no step has been written yet"
        raise UserError(f"{run}: no samples of step {step}; {there}.")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({error}).") from error


def choose(rows: list[dict[str, Any]], best: int, worst: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The `best` best and `worst` worst rows, best and worst first; no row is in both."""
    ranked = sorted(rows, key=lambda row: (-row["reward"], -(row["advantage"] or 0.0), row["group"], row["sample"]))
    top = ranked[:best]
    rest = ranked[len(top) :]
    return top, rest[::-1][:worst]


def _ranges(numbers: list[int]) -> str:
    """Sorted `numbers` as "1-20, 25, 30-40"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _panel(title: str, row: dict[str, Any], colour: str, with_prompt: bool) -> Panel:
    facts = [
        f"{row['prompt_id']}  family {row['family'] or '-'}  group {row['group']}  sample {row['sample']}",
        f"reward {row['reward']:+.0f}  advantage {_number(row['advantage'])}  "
        + (f"parse failure: {row['parse_failure']}" if row["parse_failure"] else f"scores {row['scores']} (in the record's own order)"),
        f"shown in order {row['order']}  {row['token_count']} tokens, {row['finish_reason']}  weights {row['weight_version']}  "
        f"log-probability: rollout {_number(row['rollout_logprob'])}, trainer {_number(row['trainer_logprob'])}, "
        f"reference {_number(row['reference_logprob'])}",
    ]
    parts: list[Any] = [Text(plain("\n".join(facts)))]
    if with_prompt:
        parts += [Rule("prompt", style="dim"), Text(plain(row["prompt"]).strip(), style="dim")]
    parts += [Rule("generation", style=colour), Text(plain(row["text"]).strip())]
    return Panel(Group(*parts), title=title, title_align="left", border_style=colour)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"
