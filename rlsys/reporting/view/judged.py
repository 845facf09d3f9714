"""JSON Lines of `rlsys judge` and `rlsys eval` as tables of samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlsys.data.readers import DataError
from rlsys.data.readers.json_files import JsonLines
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
                raise DataError(f"{self._path}, line {number}: {line}")
            yield from (row | {"text": None} for row in _samples(index, line, self._path))

    def samples(self, place: int, first: int, count: int) -> list[Row]:
        ((number, line),) = self._lines.fetch([place])
        if isinstance(line, DataError):
            raise DataError(f"{self._path}, line {number}: {line}")
        return list(_samples(place, line, self._path))


def _samples(group: int, line: dict[str, Any], path: Path) -> Iterator[Row]:
    if not isinstance(line.get("samples"), list) or "id" not in line:
        raise DataError(f"{path}, row {group + 1}: has no id and samples; expected the output of `rlsys judge` or `rlsys eval`.")
    gold, n = line.get("gold"), line.get("n", 0)
    truth = None if gold is None or n < 2 else [float(response == gold) for response in range(n)]
    about = {"group": group, "prompt_id": str(line["id"]), "source": line.get("source"), "ground_truth": truth}
    for number, sample in enumerate(line["samples"] or [{"failure": line.get("skipped", "no samples")}]):
        shown, order = sample.get("scores"), sample.get("order")
        scores = None if shown is None else unshuffle(shown, order)
        yield about | {
            "sample": number,
            "order": order,
            "scores": scores,
            "parse_failure": sample.get("failure"),
            "correct": None if truth is None else scores is not None and is_correct(scores, truth),
            "finish_reason": "length" if sample.get("truncated") else "stop",
            "token_count": sample.get("tokens"),
            "meta_reward": sample.get("meta_reward"),
            "text": sample.get("text"),
        }
