"""The `data` section: sources of training and held-out rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag, ValidationInfo, field_validator, model_validator

from rlsys.config.section import Section


class Source(Section):
    """One source of rows. A path alone is enough."""

    path: Path
    """File, or `tasks:NAME` or `writing:NAME`."""
    format: str | None = None
    """Name of the reader. null: `data.format`."""
    columns: dict[str, str] | None = None
    """Column names in this file for keys of the format. null: `data.columns`."""
    weight: PositiveFloat = 1.0
    """Training only: sampling weight. The source's share of the rows is its weight divided by the sum of all weights, regardless of file
    sizes."""
    name: str | None = None
    """Name in metrics and reports, and prefix of the `source` of its rows. null: the file name without its suffix, or the whole path if
    another source has the same name."""

    @model_validator(mode="before")
    @classmethod
    def _accept_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str | Path) else value


FILE, SOURCE, SEVERAL = SOURCE_FORMS = ("a file", "a source", "several sources")
"""The forms of `data.train` and `data.heldout`; pydantic puts these tags into the locations of its errors."""
Sources = Annotated[
    Annotated[Path, Tag(FILE)] | Annotated[Source, Tag(SOURCE)] | Annotated[tuple[Source, ...], Tag(SEVERAL)],
    Discriminator(lambda value: SEVERAL if isinstance(value, list | tuple) else SOURCE if isinstance(value, dict | Source) else FILE),
]


class Data(Section):
    train: Sources = Path("tasks:train")
    """Training rows: a file, or `tasks:NAME` for generated tasks of that split (`data.families`), `writing:NAME` for writing tasks only,
    whose answers a program can check, or a mixture, as a list of
    {path, format, columns, weight, name}, for example [{path: a.jsonl, weight: 2}, b.parquet]. A single entry needs no list."""
    heldout: Sources = Path("tasks:heldout")
    """Held-out rows: a file, or `tasks:NAME`, or a list of {path, format, columns, name}, which are read in turn. The rows do not depend
    on the seed."""
    format: str = "rlsys"
    """Name of the reader for training and held-out files; `rlsys data check --help` lists them."""
    exclude: Path | None = None
    """JSONL of {id, source}, as written by `rlsys filter`: rows of `train` that RL skips."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Column names in the files where they differ from the keys of the format, for example {prompt: question, chosen: answers.best}."""
    max_unusable: float = Field(default=0.5, ge=0, le=1)
    """Largest share of malformed rows in a file. Above it the run ends: a wrong format or column name is likely."""
    strict: bool = False
    """Check every row before the run starts, and fail on the first malformed row instead of counting it."""
    may_change: bool = False
    """Resume a run although a file of its data, or its template, has changed since it began. false: refuse, and name the file."""
    heldout_rows: PositiveInt = 256
    """Maximum number of rows of `heldout` per evaluation."""
    families: tuple[str, ...] = ()
    """Families of generated tasks. Empty: all, or all writing tasks of `writing:NAME`."""
    level: PositiveInt = 1
    """Highest difficulty level of generated tasks, 1 to 3."""
    responses: tuple[int, ...] = (1, 2, 4)
    """Numbers of responses per generated task."""

    @field_validator("train", "heldout")
    @classmethod
    def _check_sources(cls, sources: Path | Source | tuple[Source, ...], field: ValidationInfo) -> Path | tuple[Source, ...]:
        if isinstance(sources, Path):
            return sources
        if isinstance(sources, Source):
            sources = (sources,)
        if not sources:
            raise ValueError("expected at least one source, found an empty list")
        problems = []
        if field.field_name == "heldout" and any(source.weight != 1 for source in sources):
            problems.append("held-out sources are read in turn: leave weight out")
        names = source_names(sources)
        for duplicate in dict.fromkeys(name for name in names if names.count(name) > 1):
            paths = [str(source.path) for source, name in zip(sources, names) if name == duplicate]
            leave_out = "leave one out, or " if len(set(paths)) < len(paths) else ""
            problems.append(
                f"{len(paths)} sources are called {duplicate} ({', '.join(paths)}): {leave_out}give each a unique name, for example "
                f"{{path: {paths[-1]}, name: {Path(duplicate).stem}-{len(paths)}}}"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return sources

    def sources(self, which: Literal["train", "heldout"]) -> tuple[Source, ...]:
        """Return the sources of `train` or `heldout` as a tuple, with name, format and columns filled in."""
        value = getattr(self, which)
        sources = (Source(path=value),) if isinstance(value, Path) else value
        return tuple(
            source.model_copy(
                update={
                    "name": name,
                    "format": source.format or self.format,
                    "columns": self.columns if source.columns is None else source.columns,
                }
            )
            for source, name in zip(sources, source_names(sources))
        )


def source_names(sources: Sequence[Source]) -> list[str]:
    """Return the name of each source: its own, else the stem of its file, else (where two would be equal) its path."""
    short = [source.name or re.sub(r"(?<=.)(\.(jsonl?|ndjson|jsonlines|parquet|csv|gz|zst))+$", "", source.path.name) for source in sources]
    return [name if source.name or short.count(name) == 1 else str(source.path) for source, name in zip(sources, short)]
