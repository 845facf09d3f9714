"""Read folders into validated sources; the kind of a folder is recognised by its files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlsys.data.readers import DataError
from rlsys.data.readers.json_files import JsonLines
from rlsys.data.trajectories import REWARD_COLUMNS
from rlsys.documents.core import AnyDocument, checked, cleaned, read_document, read_json
from rlsys.documents.evaluation import EvalReport
from rlsys.documents.progress import Progress
from rlsys.documents.runs import LadderReport, RunSummary, Stage
from rlsys.documents.scalar import ScalarReport
from rlsys.io.progress import read_progress
from rlsys.prompts.reading import PromptReader
from rlsys.prompts.rendering import PromptError, UserTurns
from rlsys.system.printable import printable

EXPECTED = "a run of `rlsys train` or `rlsys meta-rm`, an evaluation (eval.json) or a ladder (ladder.json)"


@dataclass(frozen=True)
class Ladder:
    name: str
    path: Path
    report: LadderReport


@dataclass(frozen=True)
class Evaluation:
    name: str
    path: Path
    report: EvalReport


@dataclass(frozen=True)
class ScalarRun:
    """A trained scalar reward model: a meta RM or a Bradley-Terry one."""

    name: str
    path: Path
    report: ScalarReport


@dataclass(frozen=True)
class TrainingRun:
    """A run folder, complete or not."""

    name: str
    path: Path
    model: str
    metrics: list[dict[str, Any]]
    """One row per step: `step` and its metrics."""
    heldout: dict[str, Stage]
    """Results by stage, in order of evaluation."""
    summary: RunSummary | None = None
    """summary.json; None if the run is incomplete."""
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Trajectories of the held-out evaluations by stage, without those between steps but for the last."""
    progress: Progress | None = None
    """progress.json."""
    reader: PromptReader | None = None
    """Reads the prompts; None if they are not known to be of a judge's template."""

    @property
    def is_policy(self) -> bool:
        """Whether the run trains a policy that answers, instead of a judge (`rlsys policy`)."""
        return any(not row.keys().isdisjoint(REWARD_COLUMNS.names) for rows in (self.metrics, *self.tables.values()) for row in rows[:1])

    @property
    def stages(self) -> dict[str, Stage]:
        """Results without those between steps."""
        return {stage: result for stage, result in self.heldout.items() if step_of(stage) is None}

    @property
    def judged(self) -> dict[str, list[dict[str, Any]]]:
        """Trajectories of a judge by stage, without those between steps; empty for a policy and where the ground truth is not known."""
        known = {stage: rows for stage, rows in self.tables.items() if step_of(stage) is None and rows[0]["ground_truth"] is not None}
        return {} if self.is_policy else known


Source = Ladder | Evaluation | ScalarRun | TrainingRun


def collect(folders: Sequence[Path]) -> list[Source]:
    """Read the sources in `folders`, in order, named by the shortest path suffixes that are unique.

    Raises:
        DataError: a path is not a folder, has nothing to report, or its files are corrupt or incomplete.
    """
    names = unique_names(folders)
    return [source for folder, name in zip(folders, names, strict=True) for source in _sources(folder, name)]


def _sources(folder: Path, name: str) -> list[Source]:
    if not folder.is_dir():
        raise DataError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; give the folder of {EXPECTED}.")
    found: list[Source] = []
    if (ladder := _document(folder / "ladder.json", LadderReport)) is not None:
        found.append(Ladder(name, folder, ladder))
    if (evaluation := _document(folder / "eval.json", EvalReport)) is not None:
        found.append(Evaluation(name, folder, evaluation))
    if (scalar := _document(folder / "report.json", ScalarReport)) is not None:
        found.append(ScalarRun(name, folder, scalar))
    # Next to other sources, a config belongs to a run only if it trained; the training of a scalar model is not an RL run.
    trained = not found or (folder / "metrics.jsonl").is_file()
    if (folder / "config.yaml").is_file() and trained and not any(isinstance(one, ScalarRun) for one in found):
        found.append(_training_run(folder, name))
    if not found:
        inside = sorted({path.parent.relative_to(folder).as_posix() for path in _marks(folder)})
        hint = f" These folders in it do: {', '.join(inside[:12])}." if inside else ""
        raise DataError(f"{folder}: holds none of config.yaml, report.json, eval.json, ladder.json; expected {EXPECTED}.{hint}")
    return found


def _document(path: Path, kind: type[AnyDocument]) -> AnyDocument | None:
    """Return the validated document at `path`; None if there is none, or it is the JSON of an earlier report page."""
    if not path.is_file():
        return None
    document = read_json(path)
    if isinstance(document, dict) and "made_by" in document:
        return None
    return checked(path, document, kind)


def _marks(folder: Path) -> Iterator[Path]:
    """Yield files that identify subfolders of `folder`, up to two levels down, as sources."""
    for file in ("config.yaml", "eval.json", "ladder.json"):
        yield from folder.glob(f"*/{file}")
        yield from folder.glob(f"*/*/{file}")


# --- training runs --------------------------------------------------------------------------------------------------


def _training_run(folder: Path, name: str) -> TrainingRun:
    metrics = list(_metrics(folder / "metrics.jsonl"))
    tables = heldout_tables(folder / "trajectories")
    path = folder / RunSummary.FILE
    summary = read_document(path, RunSummary) if path.exists() else None
    if not (tables or summary or any("reward" in row for row in metrics)):
        raise DataError(
            f"{folder}: this run has no evaluation (trajectories/heldout_*.parquet), no step with a reward (metrics.jsonl) and no "
            "report.json yet; wait until it has one."
        )
    summarised = summary.heldout if summary else {}
    stages = in_order(tables.keys() | summarised.keys())
    heldout = {stage: summarised.get(stage) or _summarise(tables[stage]) for stage in stages}
    shown = [stage for stage in tables if step_of(stage) is None or stage == next(reversed(tables))]
    samples = {stage: cleaned(_samples(tables[stage])) for stage in shown}
    model, reader = _config(folder / "config.yaml")
    return TrainingRun(name, folder, model, metrics, heldout, summary, samples, read_progress(folder), reader)


def _samples(path: Path) -> list[dict[str, Any]]:
    from rlsys.data.trajectories import rows_of

    return list(rows_of(_read(path, CRITIQUES), path))


def _config(path: Path) -> tuple[str, PromptReader | None]:
    """Return the model that the run begins with, and what reads its prompts."""
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        return printable(str(config["model"]["path"])), _reader(config.get("prompt"))
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: not the config of a run (expected YAML with model.path): {error}.") from error


def _reader(prompt: Any) -> PromptReader | None:
    """Return what reads the prompts of a run with these settings; None if its template is not there any more."""
    from rlsys.config.schema import Prompt

    try:
        return PromptReader(UserTurns.for_endpoint(Prompt.model_validate(prompt or {})))
    except (PromptError, ValidationError):
        return None


def _metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of metrics.jsonl, without an incomplete last line."""
    if not path.exists():
        return
    lines = JsonLines(path)
    for number, row in lines.scan():
        if isinstance(row, DataError):
            if number == lines.last:
                return
            raise row.at(str(path), number)
        if type(row.get("step")) is not int:
            raise DataError("expected an object with the integer `step`.", file=str(path), row=number)
        yield cleaned(row)


def heldout_tables(folder: Path) -> dict[str, Path]:
    """Return stage -> file, in order of evaluation."""
    stages = {path.stem.removeprefix("heldout_"): path for path in folder.glob("heldout_*.parquet")}
    return {stage: stages[stage] for stage in in_order(stages)}


def in_order(stages: Iterable[str]) -> list[str]:
    """Sort stages in order of evaluation: base model, cold start, RL steps, final model."""
    first = {"base": 0, "cold_start": 1}
    return sorted(stages, key=lambda stage: (first.get(stage, 2 if step_of(stage) is not None else 3), step_of(stage) or 0, stage))


def step_of(stage: str) -> int | None:
    """Return the step of an evaluation during RL; None for other stages."""
    match = re.fullmatch(r"step_(\d+)", stage)
    return int(match[1]) if match else None


CRITIQUES = ("prompt_id", "family", "order", "ground_truth", "prompt", "text", "scores", "parse_failure", "correct")
"""Columns of `rlsys.data.trajectories.TRAJECTORIES` that rows, critiques and their breakdown need."""
LATER = ("ground_truth",)
"""Columns missing from tables of earlier versions; null there."""
RESULTS = ("prompt_id", "family", "parse_failure", "correct", "reward", "token_count")
"""Columns that held-out results need."""
NEVER_NULL = ("prompt_id", "prompt", "text", "correct", "reward", "token_count")
"""Those of both that every row has."""
OPTIONAL = ("group", "source", "finish_reason", "gold")
"""Columns that distinguish rows with the same id, why generation ended, and whether a policy's answer passes its checks, if present."""


def _read(path: Path, columns: Sequence[str]) -> Any:
    import pyarrow as pa

    from rlsys.data.trajectories import read_trajectories

    table = read_trajectories(path, [name for name in columns if name not in LATER], [name for name in NEVER_NULL if name in columns])
    for name in LATER:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows))
    if not table.num_rows:
        raise DataError(f"{path}: no rows; expected the trajectories of a held-out evaluation.")
    return table.select([*columns, *(name for name in OPTIONAL if name in table.column_names)])


def _summarise(path: Path) -> Stage:
    from rlsys.evaluation.heldout import summarise

    return checked(path, cleaned(summarise(_read(path, RESULTS)).to_json()), Stage)


def unique_names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that are unique.

    Raises:
        DataError: a path occurs twice.
    """
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        twice = next(folder for folder, path in zip(folders, paths) if paths.count(path) > 1)
        raise DataError(f"{twice}: given twice; list each folder once.")
    for length in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return [printable(name) for name in names]
