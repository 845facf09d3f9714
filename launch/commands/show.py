"""`rlsys show`: print the best and worst samples of a step or of a held-out evaluation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.text import Text

from launch.console import UserError, only_json, print_text, to_stdout
from launch.options import AsJson
from rlsys.reporting.ground_truth import describe_ground_truth
from rlsys.system.printable import printable
from rlsys.system.terminal import panel


def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run (its run.dir).")],
    step: Annotated[int | None, typer.Option("--step", min=0, help="Show samples of this step.")] = None,
    heldout: Annotated[
        str | None,
        typer.Option("--heldout", metavar="STAGE", help="Show held-out samples of this stage: base, cold_start, rl or step_000010."),
    ] = None,
    best: Annotated[int, typer.Option("--best", min=0, help="Number of best samples.")] = 2,
    worst: Annotated[int, typer.Option("--worst", min=0, help="Number of worst samples.")] = 2,
    prompt: Annotated[bool, typer.Option("--prompt/--no-prompt", help="Print the prompts, including the responses.")] = True,
    as_json: AsJson = False,
) -> None:
    """Print the best and worst samples of a step or of a held-out evaluation.

    Each is shown with its prompt, generation, ground truth, scores, reward and advantage, or the reason for its parse failure. Samples
    are ranked by reward, then by advantage (right where the rest of the group was wrong).

    Examples: rlsys show runs/latest --step 12 --best 1 --worst 3; rlsys show runs/latest --heldout rl
    """
    if (step is None) == (heldout is None):
        raise UserError("give exactly one of --step N and --heldout STAGE.")
    name, what = (f"heldout_{heldout}", f"held-out {heldout}") if step is None else (f"step_{step:06d}", f"step {step}")
    rows = read_samples(run, name, what)
    with only_json(as_json) as write_json:
        top, bottom = choose(rows, best, worst)
        rewards = [row["reward"] for row in rows if row["reward"] is not None]
        mean = sum(rewards) / len(rewards) if rewards else None
        about = {"step": step} if heldout is None else {"heldout": heldout}
        write_json({"run": str(run), **about, "samples": len(rows), "reward": mean, "best": top, "worst": bottom})
        if as_json:
            return
        console = to_stdout()
        failed = sum(row["parse_failure"] is not None for row in rows)
        correct = sum(bool(row["correct"]) for row in rows)
        print_text(console, f"{what} of {run}: {len(rows)} samples, {correct} correct, {failed} parse failures")
        for title, chosen, colour in (("best", top, "green"), ("worst", bottom, "red")):
            for number, row in enumerate(chosen, 1):
                console.print(_panel(f"{title} {number}", row, colour, prompt))


def read_samples(run: Path, name: str, what: str) -> list[dict[str, Any]]:
    """Read the rows (rlsys.data.trajectories.TRAJECTORIES) of a run's table, such as `step_000012` or `heldout_rl`.

    Args:
        what: the table in words, for error messages.

    Raises:
        UserError: there is no such run, or no such table (the message lists existing ones).
        DataError: the table cannot be read.
    """
    folder = run / "trajectories"
    if not folder.is_dir():
        raise UserError(f"{run}: not a run folder (no trajectories/ in it); give the run.dir of `rlsys train`.")
    path = folder / f"{name}.parquet"
    if not path.is_file():
        available = sorted(file.stem for file in folder.glob("*.parquet"))
        steps = [int(match[1]) for stem in available if (match := re.fullmatch(r"step_(\d+)", stem))]
        stages = ", ".join(stem.removeprefix("heldout_") for stem in available if stem.startswith("heldout_"))
        found = "; ".join([*([f"steps {_ranges(steps)}"] if steps else []), *([f"held-out {stages}"] if stages else [])])
        raise UserError(f"{run}: no samples of {what}; {'found ' + found if found else 'none have been written yet'}.")
    from rlsys.data.trajectories import TRAJECTORIES, read_trajectories, rows_of

    never_null = ("group", "sample", "prompt_id", "prompt", "text", "token_count")
    # Tables of earlier versions have neither ground truth nor source.
    required = set(TRAJECTORIES.names) - {"ground_truth", "source", "prompt_token_count"}
    return list(rows_of(read_trajectories(path, sorted(required), never_null), path))


def choose(rows: list[dict[str, Any]], best: int, worst: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the best rows, best first, and the worst rows, worst first; no row is in both."""
    ranked = sorted(rows, key=lambda row: (-(row["reward"] or 0.0), -(row["advantage"] or 0.0), row["group"], row["sample"]))
    top = ranked[:best]
    rest = ranked[len(top) :]
    return top, rest[::-1][:worst]


def _ranges(numbers: list[int]) -> str:
    """Format sorted `numbers` as "1-20, 25, 30-40"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _panel(title: str, row: dict[str, Any], colour: str, with_prompt: bool) -> RenderableType:
    order = row["order"]
    # Tables of earlier versions have neither ground truth nor source.
    truth = f"  ground truth: {describe_ground_truth(row['ground_truth'], order)}" if row.get("ground_truth") else ""
    source = f"  source {row['source']}" if row.get("source") else ""
    shown = f"shown in order {order}  " if order else ""
    reward = "-" if row["reward"] is None else f"{row['reward']:+g}"
    facts = [
        f"{row['prompt_id']}{source}  family {row['family'] or '-'}  group {row['group']}  sample {row['sample']}",
        f"reward {reward}  advantage {_number(row['advantage'])}  {_result(row)}{truth}",
        f"{shown}{row['token_count']} tokens, {row['finish_reason']}  weights {row['weight_version']}  "
        f"log-probability: rollout {_number(row['rollout_logprob'])}, trainer {_number(row['trainer_logprob'])}, "
        f"reference {_number(row['reference_logprob'])}",
    ]
    parts: list[Any] = [Text(printable("\n".join(facts)))]
    if with_prompt:
        parts += [Rule("prompt", style="dim"), Text(printable(row["prompt"]).strip(), style="dim")]
    parts += [Rule("generation", style=colour), Text(printable(row["text"]).strip())]
    return panel(title, Group(*parts), colour)


def _result(row: dict[str, Any]) -> str:
    """Return the scores, the reason for the parse failure or, of a policy's sample, what was measured."""
    order, scores = row["order"], row["scores"]
    if scores is not None:
        return f"scores as shown {[scores[place] for place in order]}"
    if row["parse_failure"] is not None:
        return f"parse failure: {row['parse_failure']}"
    checks = {True: "passes its checks", False: "fails its checks", None: "has no checks"}[row.get("gold")]
    return f"judge {_number(row.get('judge_score'))}  Bradley-Terry {_number(row.get('bt'))}  {checks}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"
