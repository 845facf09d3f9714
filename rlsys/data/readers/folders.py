"""Datasets of several files read as one: folders of shards, glob patterns, `Dataset.save_to_disk` folders, the Hugging Face Hub."""

from __future__ import annotations

import glob
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rlsys.data.readers.compression import without_codec_suffix
from rlsys.data.readers.fields import DataError
from rlsys.data.readers.json_files import SPLITS
from rlsys.data.readers.raw import RawRow, Source

METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}
"""JSON files of a dataset that have no rows."""
HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+)(?=:))?(?::(?P<split>[\w.-]+))?")
"""owner/name, owner/name:split or owner/name:config:split."""
_SHARD = re.compile(r"(?P<name>.+?)[-_](?P<number>\d{5})-of-(?P<count>\d{5})\b.*")


class Shards:
    """Several sources as one, in order. Row numbers continue from one source to the next, so that each is unique."""

    def __init__(self, sources: Sequence[Source], skipped_files: Sequence[Path] = ()):
        self._sources = list(sources)
        self.files = tuple(file for source in self._sources for file in source.files)
        self.skipped_files = tuple(skipped_files)
        self.hint = next((source.hint for source in self._sources if source.hint), "")
        self._bases = [0]
        """For each source, as far as is known, the sum of the last row numbers of the sources before it."""

    def __len__(self) -> int:
        return sum(map(len, self._sources))

    @property
    def last(self) -> int:
        return sum(source.last for source in self._sources)

    def scan(self) -> Iterator[tuple[int, RawRow]]:
        base = 0
        for position, source in enumerate(self._sources):
            number = 0
            if position == len(self._bases):
                self._bases.append(base)
            for number, raw in source.scan():
                yield base + number, raw
            base += number

    def fetch(self, indices: Sequence[int], upcoming: Sequence[int] = ()) -> list[tuple[int, RawRow]]:
        starts = [0]
        for source in self._sources:
            starts.append(starts[-1] + len(source))
        for position in range(len(self._bases), len(self._sources)):
            self._bases.append(self._bases[-1] + self._sources[position - 1].last)
        found: dict[int, tuple[int, RawRow]] = {}
        for source, base, start, end in zip(self._sources, self._bases, starts, starts[1:]):
            mine = sorted({index for index in indices if start <= index < end})
            soon = [index - start for index in upcoming if start <= index < end]
            if mine:
                rows = source.fetch([index - start for index in mine], soon)
                found.update(zip(mine, ((base + number, raw) for number, raw in rows), strict=True))
        return [found[index] for index in indices]

    def locate(self, number: int) -> tuple[Path, int]:
        position = bisect_left(self._bases, number) - 1
        return self._sources[position].locate(number - self._bases[position])


def folder_files(folder: Path, split: str | None, kind_of: Callable[[Path], str | None]) -> tuple[list[Path], list[Path]]:
    """Return (the data files below a folder, sorted by name; the files that are skipped).

    Hidden files and files that begin with an underscore (success markers, metadata) are ignored. Empty files, files that are no data files
    by their names, and JSON documents beside files of another kind are skipped.

    Raises:
        DataError: no data file; several splits and none selected; several kinds of files; one file under two names; a missing shard.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _read(folder / "dataset_dict.json").get("splits") or []
        return folder_files(folder / _chosen(splits, split, folder), None, kind_of)
    if (folder / "state.json").is_file():
        return [folder / str(entry.get("filename")) for entry in _read(folder / "state.json").get("_data_files") or []], []
    found = [file for file in sorted(folder.rglob("*")) if not _hidden(file.relative_to(folder))]
    _refuse_dangling([file for file in found if kind_of(file)])
    files = [file for file in found if file.is_file()]
    kinds = {file: kind for file in files if file.name not in METADATA and file.stat().st_size and (kind := kind_of(file))}
    if len(set(kinds.values())) > 1:
        kinds = {file: kind for file, kind in kinds.items() if kind != "JSON"}
    if len(several := sorted(set(kinds.values()))) > 1:
        raise DataError(f"has {' and '.join(several)} files: name the ones to read, as in {folder}/*.parquet.", file=str(folder))
    groups: dict[str, list[Path]] = {}
    for file in kinds:
        groups.setdefault(_group(file.relative_to(folder)), []).append(file)
    if not groups:
        raise DataError("the folder has no data file.", file=str(folder))
    taken = groups[_chosen(list(groups), split, folder)]
    _check_whole(taken, folder)
    chosen = {file for group in groups.values() for file in group}
    return taken, [file for file in files if file not in chosen and file.name not in METADATA]


def pattern_files(pattern: str) -> tuple[list[Path], list[Path]]:
    """Return (the files that a glob pattern matches, sorted by name; its other matches: folders and empty files).

    ** matches any number of folders.
    """
    found = sorted(map(Path, glob.glob(pattern, recursive=True)))
    _refuse_dangling(found)
    files = [file for file in found if file.is_file() and file.stat().st_size]
    return files, [file for file in found if file not in set(files) and not (file.is_dir() and "**" in pattern)]


def _refuse_dangling(files: list[Path]) -> None:
    dangling = next((file for file in files if file.is_symlink() and not file.exists()), None)
    if dangling is not None:
        raise DataError("is a link to a file that does not exist: fetch it, or remove the link.", file=str(dangling))


def hub_files(address: re.Match[str]) -> list[Path]:
    """Return the Arrow files of a Hugging Face Hub dataset, downloaded by the `datasets` library into its cache.

    Raises:
        DataError: the library is not installed; there is no such dataset; it has several splits and none is selected.
    """
    name, config, split = address["name"], address["config"], address["split"]
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "there is no such file or folder. Reading it from the Hugging Face Hub requires the library `datasets` (pip install datasets); "
            f"or download it (hf download --repo-type dataset {name} --local-dir FOLDER) and name the folder.",
            file=address[0],
        ) from error
    try:
        found = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"the Hub dataset cannot be loaded: {error}", file=address[0]) from error
    if isinstance(found, dict):
        found = found[_chosen(list(found), None, address[0])]
    return [Path(file["filename"]) for file in found.cache_files]


def _chosen(names: list[str], split: str | None, where: Path | str) -> str:
    fitting = names if split is None else [name for name in names if name == split or name.endswith(f"/{split}")]
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(name or "(none)" for name in sorted(names))
    if split is not None:
        raise DataError(f"expected one split {split!r}, found {known}.", file=str(where))
    example = next((name for name in names if name), "train")
    raise DataError(f"has several splits ({known}): select one after a colon, as in {where}:{example}.", file=str(where))


def _group(file: Path) -> str:
    """Return the split that a file's name indicates, or ''. For shards it includes the folder."""
    shard = _SHARD.fullmatch(file.name)
    if shard:
        return (file.parent / shard["name"]).as_posix()
    words = re.split(r"[/\\_.\- ]", file.as_posix().lower())
    return next((word for word in reversed(words) if word in SPLITS), "")


def _check_whole(files: list[Path], folder: Path) -> None:
    names = [file.parent / Path(without_codec_suffix(file.name)).stem for file in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise DataError(f"has {twice.name} under several names, so that its rows would count twice: name one of them.", file=str(folder))
    shards = [match for file in files if (match := _SHARD.fullmatch(file.name))]
    missing = {number for shard in shards for number in range(int(shard["count"]))} - {int(shard["number"]) for shard in shards}
    if shards and missing:
        listed = ", ".join(map(str, sorted(missing)[:5]))
        problem = f"lacks shard {listed} of {shards[0]['count']}: fetch it, or name the existing ones, as in {folder}/*."
        raise DataError(problem, file=str(folder))


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"expected JSON written by Dataset.save_to_disk, found: {error}.", file=str(path)) from error
    if not isinstance(found, dict) or found.get("_indices_data_files") or found.get("_indices_files"):
        raise DataError("expected the current layout of Dataset.save_to_disk: load the dataset and save it again.", file=str(path))
    return found
