"""Load a benchmark from its files."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rlsys.data.readers import READERS, DataError, Report, check
from rlsys.data.readers.fields import Row
from rlsys.data.readers.files import MESSAGES
from rlsys.data.readers.sources import SUFFIXES, open_source
from rlsys.data.records import NoUniqueBest, Record
from rlsys.documents.evaluation import BenchmarkRows
from rlsys.evaluation.benchmarks import formats, graphs, outcomes
from rlsys.evaluation.benchmarks.core import Benchmark, Cluster, Item
from rlsys.evaluation.benchmarks.folders import SkippedFiles, files_of
from rlsys.evaluation.benchmarks.formats import Adapter, Draft, FileLocation
from rlsys.evaluation.benchmarks.schemes import Means, RocAuc, Scheme

PREFIX = "format:"
"""`format:NAME` is a file in any reader format, scored by plain accuracy."""
BEST_FIRST = {
    "trl_preference", "sharegpt", "hh_rlhf", "ultrafeedback_binarized", "skywork", "rewardbench", "rewardbench2", "rm_bench", "rmb_pair",
    "rmb_bon",
}  # fmt: skip
"""Reader formats that list the best response first."""


@dataclass(frozen=True)
class Spec:
    """How to read and score a benchmark."""

    read: Adapter
    scheme: Scheme
    best_first: bool = False
    files: str = "*"
    """In a folder: pattern of the files to read; if none matches, all are read."""
    skip: str = ""
    """In a folder: the name of a file that is not part of the benchmark."""
    finish: Callable[[list[Draft], Report], list[Draft]] = lambda drafts, report: drafts
    """Post-processing once all rows are read."""


_REWARDBENCH2 = Spec(formats.rewardbench2, Means(outcomes.rewardbench2, overall="subsets"), best_first=True, finish=formats.pair_ties)
_RMBENCH = Spec(graphs.rmbench, Means(outcomes.style_matrix, overall="subsets"), best_first=True, files="total_dataset*")
_BEST_OF_K = Means(outcomes.picked_reward, overall="subsets")

BENCHMARKS: dict[str, Spec] = {
    "rewardbench": Spec(formats.rewardbench, Means(overall="sections", weights=formats.REWARDBENCH_WEIGHTS), True, files="filtered*"),
    "rewardbench2": _REWARDBENCH2,
    "rewardbench2_ratings": replace(_REWARDBENCH2, read=partial(formats.rewardbench2, alone=True)),
    "rmb": Spec(formats.rmb, Means(overall="sections"), best_first=True),
    "rmb_pairs": Spec(partial(formats.rmb, pairs=True), Means(outcomes.all_right, overall="sections"), best_first=True),
    "ppe_preference": Spec(formats.ppe_preference, Means()),
    "ppe_correctness": Spec(formats.ppe_correctness, Means(overall="subsets")),
    **{f"ppe_best_of_{k}": Spec(partial(formats.ppe_best_of_k, k=k), _BEST_OF_K) for k in (2, 4, 8, 16, 32)},
    "judgebench": Spec(formats.judgebench, Means(outcomes.judgebench)),
    "realmistake": Spec(formats.realmistake, RocAuc(), skip="example.jsonl"),
    "llmbar": Spec(
        formats.llmbar,
        Means(outcomes.both_orders, overall="subsets", weights=dict.fromkeys(formats.LLMBAR_SUBSETS.values(), 1.0)),
        files="dataset.json*",
    ),
    "rmbench": _RMBENCH,
    "rmbench_ratings": replace(_RMBENCH, read=partial(graphs.rmbench, alone=True)),
    "evalbiasbench": Spec(graphs.evalbiasbench, Means(outcomes.decided_orders)),
    "ifrewardbench": Spec(graphs.ifrewardbench, Means(outcomes.preference_graph, overall="subsets")),
    "pandalm": Spec(formats.pandalm, Means(outcomes.pandalm, extras=outcomes.pandalm_macro)),
}
"""Benchmarks by name; docs/benchmarks.md describes each."""


def load(name: str, path: str | Path, limit: int | None = None, strict: bool = False) -> Benchmark:
    """Load a benchmark.

    Args:
        name: a name in BENCHMARKS, or `format:NAME` with a name in `rlsys.data.readers.READERS`.
        path: a file (see `rlsys.data.readers.read`) or a folder, whose files are read recursively. Files in a folder that cannot be read,
            have no usable rows or only duplicates of another file's rows are skipped: see `Benchmark.rows`.
        limit: keep only this many clusters of each subset, the first ones.
        strict: raise at the first malformed row instead of counting it in `Benchmark.report`.

    Raises:
        DataError: an unknown name; no file; a file that cannot be read or has no usable rows; with `strict`, a malformed row. The message
            names file, row and key.
        ValueError: the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected at least 1 unit of each subset, found {limit}.")
    path = Path(path)
    spec, report = _spec(name), Report(file=str(path), format=name)
    drafts, passed = _read_all(path, spec, report, strict)
    drafts = spec.finish(drafts, report)
    if strict and report.malformed:
        raise DataError(report.malformed[0][1])
    if not drafts:
        problems = [message for _, message in report.malformed] + [f"{file}: {why}" for file, why in passed]
        first = f" The first: {problems[0]}" if problems else ""
        raise DataError(f"none of the {report.rows:,} rows is usable as {name}.{first}", file=str(path))
    seen: Counter[str] = Counter()
    kept = []
    for draft in drafts:
        seen[draft.subset] += 1
        if limit is None or seen[draft.subset] <= limit:
            kept.append(draft)
    used, usable = (sum(draft.rows for draft in group) for group in (kept, drafts))
    rows = BenchmarkRows(
        read=report.rows,
        used=used,
        beyond_limit=usable - used,
        no_unique_best=report.no_unique_best,
        malformed=report.malformed_count,
        passed_over=tuple(passed),
    )
    return _build(name, spec, kept, report, rows)


def _spec(name: str) -> Spec:
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    format = name.removeprefix(PREFIX)
    if name.startswith(PREFIX) and format in READERS:
        return Spec(partial(formats.any_format, format=format), Means(), best_first=format in BEST_FIRST)
    known = [*BENCHMARKS, *(PREFIX + reader for reader in READERS)]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    raise DataError(f"unknown benchmark {name!r}.{hint} Known: {', '.join(BENCHMARKS)}, and {PREFIX}NAME with a format's name.")


def _read_all(path: Path, spec: Spec, report: Report, strict: bool) -> tuple[list[Draft], SkippedFiles]:
    """Return the usable rows of a file or folder and the skipped files; other rejected rows are counted in the report."""
    if not path.is_dir():
        return _read(path, path, spec, report), []
    files, passed = files_of(path, spec.files, spec.skip)
    if not files:
        raise DataError(f"the folder holds no file that ends in {', '.join(SUFFIXES)}.", file=str(path))
    drafts: list[Draft] = []
    known: dict[tuple[object, ...], str] = {}
    for file in files:
        name, own = str(file.relative_to(path)), Report(file=report.file, format=report.format)
        try:
            found = _read(file, path, spec, own)
        except DataError as error:
            if own.records or strict:
                raise
            passed.append((name, error.problem))
            continue
        if not found and not own.no_unique_best and not strict:
            why = own.malformed[0][1].removeprefix(f"{file}, ") if own.malformed else "it holds no rows"
            passed.append((name, f"none of its {own.rows:,} rows is usable; the first: {why}"))
            continue
        contents = [draft.contents for draft in found]
        copied = known.get(contents[0]) if contents else None
        if copied is not None and all(content in known for content in contents):
            passed.append((name, f"it holds the same rows as {copied}"))
            continue
        known.update(dict.fromkeys(contents, name))
        drafts += found
        _add(report, own)
    return drafts, passed


def _add(report: Report, own: Report) -> None:
    """Add one file's counts to the report."""
    report.rows += own.rows
    report.no_unique_best += own.no_unique_best
    report.malformed_count += own.malformed_count
    report.malformed += own.malformed[: MESSAGES - len(report.malformed)]


def _read(file: Path, root: Path, spec: Spec, report: Report) -> list[Draft]:
    """Return the usable rows of a file and count all rows in the report."""
    location = FileLocation(file, root)
    drafts: list[Draft] = []
    for number, raw in open_source(file).scan():
        report.rows += 1
        try:
            if isinstance(raw, DataError):
                raise raw
            row = Row(formats.written(raw), f"{file.name.partition('.')[0]}:{number}")
            draft = spec.read(row, location)
            for record, _ in draft.inputs:
                _check(record)
        except NoUniqueBest:
            report.no_unique_best += 1
        except DataError as error:
            report.malformed_count += 1
            if len(report.malformed) < MESSAGES:
                report.malformed.append((number, str(error.at(str(file), number))))
        else:
            drafts.append(draft if row.has_id else replace(draft, own_id=False))
            report.records += 1
    return drafts


def _check(record: Record) -> None:
    """Check a record to be judged. The query may be empty, as published rows are scored as they are."""
    last = record.context[-1] if record.context else {}
    if last.get("role") == "user" and not last["content"].strip():
        record = replace(record, context=(*record.context[:-1], last | {"content": "(empty)"}))
    try:
        check(record)
    except NoUniqueBest:  # Each benchmark decides how to score several best or identical responses.
        pass


def _build(name: str, spec: Spec, drafts: list[Draft], report: Report, rows: BenchmarkRows) -> Benchmark:
    """Build the benchmark from `drafts`, making ids unique with the subset as prefix and, if necessary, a number as suffix."""
    singles = {record.n == 1 for draft in drafts for record, _ in draft.inputs}
    scheme = spec.scheme
    if name.startswith(PREFIX) and True in singles:
        if False in singles:
            problem = "holds rows of one response and rows of several, which no one figure scores: expected one kind. Split the file."
            raise DataError(problem, file=report.file)
        scheme = RocAuc()
    items: list[Item] = []
    clusters: list[Cluster] = []
    seen: Counter[str] = Counter()
    for draft in drafts:
        cluster_id = f"{draft.subset}/{draft.id}"
        seen[cluster_id] += 1
        if seen[cluster_id] > 1:
            cluster_id = f"{cluster_id}@{seen[cluster_id]}"
        for position, (record, order) in enumerate(draft.inputs):
            item_id = cluster_id if len(draft.inputs) == 1 else f"{cluster_id}#{position}"
            items.append(Item(item_id, record, len(clusters), draft.subset, order, draft.pairs))
            report.responses[record.n] = report.responses.get(record.n, 0) + 1
        clusters.append(Cluster(cluster_id, draft.subset, draft.section))
    report.records = len(items)
    return Benchmark(name, tuple(items), tuple(clusters), scheme, spec.best_first, report, rows)
