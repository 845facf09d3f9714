"""Preference rows from the samples of a policy: what its judge will see, labelled by the checks of the prompts."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlsys.config.files import load_config
from rlsys.data.mixtures import open_mixture
from rlsys.data.readers import DataError
from rlsys.data.records import Record
from rlsys.data.tasks.remarks import judgement
from rlsys.data.trajectories import read_trajectories, rows_of

COLUMNS = ("step", "group", "prompt_id", "source", "text", "gold")


def preference_rows(
    run: Path, responses: Sequence[int] = (2, 3, 4), per_group: int = 2, seed: int = 0, families: Sequence[str] = ()
) -> Iterator[Record]:
    """Yield rows of one sample that passed its checks and one or more that failed, of the same prompt and step, in the order of steps.

    A row's number of responses is one of `responses`, as far as the group has so many different samples that failed. Each row has a
    teacher's judgement (`Record.worked`). Groups of which all samples passed, or none, have nothing to compare and yield no row.

    Args:
        run: folder of a run of `rlsys policy` whose prompts have checks.
        per_group: largest number of rows per group. They take turns with the samples that passed, and never compare the same samples.
        families: only prompts of these; empty means all.

    Raises:
        DataError: the run has no samples that were checked, its prompts are no longer in its data, or it has no prompt of a family.
    """
    files = sorted((run / "trajectories").glob("step_*.parquet"))
    if not files:
        raise DataError(f"{run}: expected the folder of a run of `rlsys policy`, with trajectories/step_*.parquet; found none.")
    groups = [group for file in files for group in _groups(file)]
    if not any(sample["gold"] is not None for group in groups for sample in group):
        raise DataError(f"{run}: no sample was checked: its prompts have no checks, so nothing labels the samples.")
    records = _records(run, {(group[0]["source"], group[0]["prompt_id"]) for group in groups})
    known = {str(record.family) for record in records.values()}
    if unknown := [family for family in families if family not in known]:
        raise DataError(f"{run}: no prompt of the family {', '.join(unknown)}; expected some of {', '.join(sorted(known))}.")
    for group in groups:
        first = group[0]
        record = records[first["source"], first["prompt_id"]]
        if families and record.family not in families:
            continue
        rng = random.Random(f"{seed}/{first['step']}/{record.id}")
        yield from _rows_of(record, f"{run.resolve().name}/{record.id}/{first['step']}", group, responses, per_group, rng)


def _groups(file: Path) -> Iterator[list[dict[str, Any]]]:
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in rows_of(read_trajectories(file, COLUMNS), file):
        groups.setdefault(row["group"], []).append(row)
    yield from groups.values()


def _records(run: Path, keys: set[tuple[str, str]]) -> dict[tuple[str, str], Record]:
    """Find the prompts of a run in its data."""
    config = load_config(run / "config.yaml")
    ids = {name for _, name in keys}
    found: dict[tuple[str, str], Record] = {}
    for part in open_mixture(config.data, "train", config.seed).parts:
        for record in part.find(ids):
            if record.key in keys:
                found.setdefault(record.key, record)
    if missing := keys - found.keys():
        source, name = min(missing)
        raise DataError(f"{run}: {len(missing)} of its prompts, such as prompt {name} ({source}), are no longer in the run's data.train.")
    return found


def _rows_of(
    record: Record, name: str, samples: Sequence[dict[str, Any]], responses: Sequence[int], per_group: int, rng: random.Random
) -> Iterator[Record]:
    verdicts: dict[str, set[bool]] = {}
    for sample in samples:
        if sample["gold"] is not None:
            verdicts.setdefault(sample["text"], set()).add(sample["gold"])
    # A text that passed once and was cut off another time, at the same words, has no single verdict.
    sides = {side: [text for text, found in verdicts.items() if found == {side}] for side in (True, False)}
    right, wrong = (rng.sample(sides[side], len(sides[side])) for side in (True, False))
    compared: set[tuple[str, ...]] = set()
    for number in range(per_group if right and wrong else 0):
        text = right[number % len(right)]
        shown = [text, *rng.sample(wrong, min(rng.choice(responses) - 1, len(wrong)))]
        if (key := tuple(sorted(shown))) in compared:
            continue
        compared.add(key)
        rng.shuffle(shown)
        passed = [one == text for one in shown]
        yield Record(
            id=f"{name}/{number}",
            source=record.source,
            context=record.context,
            responses=tuple(shown),
            rewards=tuple(map(float, passed)),
            family=record.family,
            checks=record.checks,
            worked=judgement(record.checks, shown, passed),
        )
