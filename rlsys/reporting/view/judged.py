"""JSON Lines of `rlsys judge` and `rlsys eval` as tables of samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlsys.data.readers import DataError
from rlsys.data.readers.fields import as_number, as_object, wrong
from rlsys.data.readers.json_files import JsonLines
from rlsys.data.trajectories import check_judgement
from rlsys.reporting.view.tables import Row
from rlsys.rewards.rules import is_correct, unshuffle


class JudgedLines:
    """One line per row, with its samples; a line without samples (a row that was set aside) is one sample without a text.

    An incomplete last line, which is being written, is left out.
    """

    def __init__(self, path: Path):
        self._path = path
        self._lines = JsonLines(path)

    def summaries(self) -> Iterator[Row]:
        for index, (number, line) in enumerate(self._lines.scan()):
            if isinstance(line, DataError):
                if number == self._lines.last:
                    return
                raise line.at(str(self._path), number)
            yield from (row | {"text": None} for row in _samples(index, line, self._path, number))

    def samples(self, place: int, first: int, count: int) -> list[Row]:
        ((number, line),) = self._lines.fetch([place])
        if isinstance(line, DataError):
            raise line.at(str(self._path), number)
        return list(_samples(place, line, self._path, number))


def _samples(group: int, line: dict[str, Any], path: Path, number: int) -> Iterator[Row]:
    try:
        yield from _checked_samples(group, line)
    except DataError as error:
        raise error.at(str(path), number) from error


def _checked_samples(group: int, line: dict[str, Any]) -> Iterator[Row]:
    if not isinstance(line.get("samples"), list) or line.get("id") is None:
        raise DataError("has no id and samples; expected the output of `rlsys judge` or `rlsys eval`.")
    about = {"group": group, "prompt_id": str(line["id"]), "source": _text(line, "source")}
    for number, sample in enumerate(line["samples"] or [{"failure": line.get("skipped", "no samples")}]):
        judged = _judgement(as_object(sample, f"samples[{number}]"), line.get("gold"))
        measured = {name: None if sample.get(key) is None else as_number(sample[key], key) for name, key in MEASURED.items()}
        texts = {"parse_failure": _text(sample, "failure"), "text": _text(sample, "text")}
        ended = "length" if sample.get("truncated") else "stop"
        yield about | {"sample": number, **judged, **texts, "finish_reason": ended, **measured}


MEASURED = {"token_count": "tokens", "meta_reward": "meta_reward"}
"""Column -> key of a sample."""


def _text(row: dict[str, Any], key: str) -> str | None:
    """Return the text under `key`, which may hold any characters."""
    value = row.get(key)
    if not isinstance(value, str | None):
        raise wrong(key, "text or null", value)
    return value


def _judgement(sample: dict[str, Any], gold: Any) -> Row:
    """Return order, scores in the record's own order, ground truth, and whether they agree."""
    order, scores = sample.get("order"), sample.get("scores")
    for name, value, kinds in (("order", order, {int}), ("scores", scores, {int, float})):
        if value is not None and not (isinstance(value, list) and set(map(type, value)) <= kinds):
            raise wrong(name, "a list of numbers or null", value)
    check_judgement({"order": order, "scores": scores})
    if scores is not None and order is not None:
        scores = unshuffle(scores, order)
    n = len(order or ())
    truth = [float(response == gold) for response in range(n)] if n > 1 and gold in range(n) else None
    correct = None if truth is None else scores is not None and is_correct(scores, truth)
    return {"order": order, "scores": scores, "ground_truth": truth, "correct": correct}
