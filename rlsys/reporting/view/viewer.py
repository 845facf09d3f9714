"""Answers to the questions of the page, as JSON documents. Every text in them is cut to a bounded length and sanitised."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from rlsys.data.readers import DataError
from rlsys.reporting.ground_truth import describe_ground_truth
from rlsys.reporting.view.groups import FILTERS, Group, Pair, change, families, matched, mean_scores, ordered, summarise
from rlsys.reporting.view.judged import JudgedLines
from rlsys.reporting.view.tables import ParquetTable, Row, Source, Table, TableFile
from rlsys.system.printable import printable

TEXT = 20_000
"""Characters of a text that are sent at once; `Viewer.text` returns the rest in pieces of this length."""
PAGE = 500
"""Groups that are listed at once, at most."""
CACHED = 16
"""Tables whose summaries are kept in memory."""
NUMBERS = (
    "sample", "correct", "reward", "advantage", "weight_version", "prompt_token_count", "token_count", "rollout_logprob",
    "trainer_logprob", "reference_logprob", "meta_reward", "hinted", "kept",
)  # fmt: skip
"""Columns of a sample that are sent as they are."""
LABEL = re.compile(r"^[ \t*#]*(Specific Criteria|Analysis|Scores)[ \t*]*:[ \t*]*", re.MULTILINE)
"""Headings that the built-in templates ask for."""


class NotFound(DataError):
    """The question is about a run, table or group that is not there, or not any more."""


class Viewer:
    """Reads tables on demand; safe to be used by several threads.

    Args:
        sources: the runs and files to show.
    """

    def __init__(self, sources: Sequence[Source]):
        self.sources = list(sources)
        self._cache: OrderedDict[TableFile, tuple[Table, list[Group]]] = OrderedDict()
        self._lock = Lock()

    def runs(self, query: Mapping[str, str]) -> dict[str, Any]:
        """List the runs with their tables, oldest first: {runs: [{name, path, complete, tables: [{name, changed}]}], filters}."""
        runs = [
            {
                "name": printable(source.name),
                "path": printable(str(source.path)),
                "complete": (source.path / "summary.json").is_file(),
                "tables": [{"name": printable(table.name), "changed": table.changed} for table in source.tables()],
            }
            for source in self.sources
        ]
        return {"runs": runs, "filters": {name: label for name, (label, _) in FILTERS.items()}}

    def groups(self, query: Mapping[str, str]) -> dict[str, Any]:
        """List the groups of a table, or of two tables on the same rows.

        Args:
            query: run, table; other_run, other_table to compare; filter, family, search (part of an id); offset, limit.

        Returns:
            {total (groups that pass), counts (by filter), families, unmatched (groups without a partner), groups: [...]}.
        """
        _, groups = self._table(query)
        pairs: list[Pair] = [(group, None) for group in groups]
        if "other_table" in query:
            pairs = matched(groups, self._table(query, "other_")[1])
        family, search = query.get("family"), query.get("search", "").casefold()
        kept = [pair for pair in pairs if family in (None, pair[0].family) and search in pair[0].id.casefold()]
        passed = {name: [pair for pair in kept if test(pair)] for name, (_, test) in FILTERS.items()}
        name = query.get("filter", "all")
        if name not in passed:
            raise NotFound(f"filter {name}: expected one of {', '.join(FILTERS)}.")
        offset, limit = _integer(query, "offset", 0), min(_integer(query, "limit", PAGE), PAGE)
        return {
            "total": len(passed[name]),
            "counts": {name: len(found) for name, found in passed.items()},
            "families": [entry | {"name": printable(entry["name"])} for entry in families(pairs)],
            "unmatched": len(groups) - len(pairs),
            "groups": [_listed(pair) for pair in ordered(passed[name], name)[offset : offset + limit]],
        }

    def group(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Return one group with its prompts and samples. `query`: run, table, place.

        `truth` and `means` number the responses as shown if all samples show the same order (`order`), else as in the record.
        """
        group, rows = self._group(query)
        parsed = [row for row in rows if row.get("scores") is not None]
        order, truth = rows[0].get("order"), rows[0].get("ground_truth")
        common = order if all(row.get("order") == order for row in rows) else None
        places = common or range(len(truth or ()))
        means = mean_scores(parsed) if parsed else []
        prompts = list(dict.fromkeys(row.get("prompt") or "" for row in rows))
        return _summary(group) | {
            "order": common,
            "truth": describe_ground_truth(truth, places) if truth else None,
            "best": truth.index(max(truth)) if truth and len(truth) > 1 else None,
            "means": [means[response] for response in places] if means and places else means,
            "parsed": len(parsed),
            "prompts": [_text(prompt, number_of(prompt, rows), "prompt") for prompt in prompts if prompt],
            "samples": [_sample(row, number, prompts) for number, row in enumerate(rows)],
        }

    def text(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Return the part of a long text that starts at `start`. `query`: run, table, place, number (of the sample), column, start."""
        _, rows = self._group(query)
        number, column = _integer(query, "number", 0), query.get("column", "text")
        if not 0 <= number < len(rows) or column not in ("text", "prompt"):
            raise NotFound(f"sample {number}, column {column}: expected a sample below {len(rows)}, and text or prompt.")
        text, start = rows[number].get(column) or "", _integer(query, "start", 0)
        return {"text": printable(text[start : start + TEXT]), "length": len(text)}

    # --- tables --------------------------------------------------------------------------------------------------

    def _group(self, query: Mapping[str, str]) -> tuple[Group, list[Row]]:
        table, groups = self._table(query)
        place = _integer(query, "place", 0)
        if not 0 <= place < len(groups):
            raise NotFound(f"group {place}: the table has {len(groups)} groups.")
        group = groups[place]
        rows = table.samples(place, group.first, len(group.outcomes))
        if not rows:
            raise NotFound("the table has changed while it was read; look again.")
        return group, rows

    def _table(self, query: Mapping[str, str], prefix: str = "") -> tuple[Table, list[Group]]:
        """Return the table that a query names and its groups, from the cache unless its file changed."""
        run, name = _integer(query, f"{prefix}run", 0), query.get(f"{prefix}table")
        if not 0 <= run < len(self.sources):
            raise NotFound(f"run {run}: there are {len(self.sources)} runs.")
        file = next((table for table in self.sources[run].tables() if table.name == name), None)
        if file is None:
            raise NotFound(f"{self.sources[run].path}: has no table {name}; a resumed run repeats its last steps.")
        with self._lock:
            if file not in self._cache:
                table = opened(file.path)
                self._cache[file] = table, list(summarise(table.summaries()))
            self._cache.move_to_end(file)
            while len(self._cache) > CACHED:
                self._cache.popitem(last=False)
            return self._cache[file]


def opened(path: Path) -> Table:
    """Open a table of trajectories, or the JSON Lines of `rlsys judge` and `rlsys eval`."""
    return ParquetTable(path) if path.suffix == ".parquet" else JudgedLines(path)


def _integer(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not re.fullmatch(r"-?\d{1,12}", text):
        raise NotFound(f"{name}={text}: expected an integer.")
    return int(text)


# --- documents ------------------------------------------------------------------------------------------------------


def _summary(group: Group) -> dict[str, Any]:
    return {
        "place": group.place,
        "group": group.group,
        "id": printable(group.id[:TEXT]),
        "source": group.source and printable(group.source),
        "family": group.family and printable(group.family),
        "outcomes": group.outcomes,
        "cut_off": group.cut_off,
        "reward": group.reward,
        "lead": group.lead,
        "versions": group.versions,
    }


def _listed(pair: Pair) -> dict[str, Any]:
    group, other = pair
    if other is None:
        return _summary(group)
    return _summary(group) | {"other": _summary(other), "change": change(pair)}


def _sample(row: Row, number: int, prompts: Sequence[str]) -> dict[str, Any]:
    scores, order = row.get("scores"), row.get("order")
    return {name: row[name] for name in NUMBERS if row.get(name) is not None} | {
        "order": order,
        "scores": scores,
        "shown": [scores[response] for response in order] if scores and order else None,
        "failure": row.get("parse_failure") and printable(row["parse_failure"][:TEXT]),
        "why": row.get("why") and printable(row["why"]),
        "cut_off": row.get("finish_reason") == "length",
        "prompt": prompts.index(row.get("prompt") or ""),
        "text": _text(row.get("text") or "", number, "text"),
    }


def number_of(prompt: str, rows: Sequence[Row]) -> int:
    """Return the number of the first sample with this prompt."""
    return next(number for number, row in enumerate(rows) if row.get("prompt") == prompt)


def _text(text: str, number: int, column: str) -> dict[str, Any]:
    """Return the start of a text, in its labelled parts, with what `Viewer.text` needs for the rest."""
    start = text[:TEXT]
    return {"parts": parts(printable(start)), "sent": len(start), "length": len(text), "number": number, "column": column}


def parts(text: str) -> list[dict[str, str]]:
    """Split a critique into parts {label, text}; what stands before the first label has the label "".

    Labels are those of the built-in templates; texts in another form are one part.
    """
    marks = list(LABEL.finditer(text))
    starts = [mark.start() for mark in marks]
    pieces = [{"label": "", "text": text[: starts[0] if starts else len(text)]}]
    for mark, end in zip(marks, [*starts[1:], len(text)]):
        pieces.append({"label": mark[1], "text": text[mark.end() : end].strip()})
    return [piece for piece in pieces if piece["label"] or piece["text"].strip()]
