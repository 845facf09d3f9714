"""Data sets of several files, read as one: folders of shards, patterns, what `Dataset.save_to_disk` wrote, and the Hugging Face hub."""

from __future__ import annotations

import glob
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rlsys.data.readers.fields import DataError
from rlsys.data.readers.json_files import SPLITS
from rlsys.data.readers.packed import bare_name
from rlsys.data.readers.raw import Raw, Source

METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}
"""Files of JSON that lie beside the rows of a data set and hold none."""
HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+)(?=:))?(?::(?P<split>[\w.-]+))?")
"""owner/name, owner/name:split or owner/name:config:split."""
_SHARD = re.compile(r"(?P<name>.+?)[-_](?P<number>\d{5})-of-(?P<count>\d{5})\b.*")


class Shards:
    """Several sources as one, in their order. A row's number is unique: its own, behind all numbers of the sources before it.

    `passed_over` names the files beside them that are not read.
    """

    def __init__(self, sources: Sequence[Source], passed_over: Sequence[Path] = ()):
        self._sources = list(sources)
        self.files = tuple(file for source in self._sources for file in source.files)
        self.passed_over = tuple(passed_over)
        self._bases = [0]
        """The number behind which the rows of each source are counted, as far as is known."""

    def __len__(self) -> int:
        return sum(map(len, self._sources))

    @property
    def last(self) -> int:
        return sum(source.last for source in self._sources)

    def scan(self) -> Iterator[tuple[int, Raw]]:
        base = 0
        for position, source in enumerate(self._sources):
            number = 0
            if position == len(self._bases):
                self._bases.append(base)
            for number, raw in source.scan():
                yield base + number, raw
            base += number

    def fetch(self, indices: Sequence[int], upcoming: Sequence[int] = ()) -> list[tuple[int, Raw]]:
        starts = [0]
        for source in self._sources:
            starts.append(starts[-1] + len(source))
        for position in range(len(self._bases), len(self._sources)):
            self._bases.append(self._bases[-1] + self._sources[position - 1].last)
        found: dict[int, tuple[int, Raw]] = {}
        for source, base, start, end in zip(self._sources, self._bases, starts, starts[1:]):
            mine = sorted({index for index in indices if start <= index < end})
            soon = [index - start for index in upcoming if start <= index < end]
            if mine:
                rows = source.fetch([index - start for index in mine], soon)
                found.update(zip(mine, ((base + number, raw) for number, raw in rows), strict=True))
        return [found[index] for index in indices]

    def place(self, number: int) -> tuple[Path, int]:
        position = bisect_left(self._bases, number) - 1
        return self._sources[position].place(number - self._bases[position])


def folder_files(folder: Path, split: str | None, kind_of: Callable[[Path], str | None]) -> tuple[list[Path], list[Path]]:
    """(the files of rows below a folder, in the order of their names; the files that are passed over).

    Hidden files and those that begin with an underscore, as marks of success and metadata do, do not count. Empty files, and such as are
    no rows by their names, are passed over, and so are JSON documents beside files of another kind.

    Raises:
        DataError: no such file; files of several splits and none chosen; several kinds of files, or one under two names; a missing shard.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _read(folder / "dataset_dict.json").get("splits") or []
        return folder_files(folder / _chosen(splits, split, folder), None, kind_of)
    if (folder / "state.json").is_file():
        return [folder / str(entry.get("filename")) for entry in _read(folder / "state.json").get("_data_files") or []], []
    found = [file for file in sorted(folder.rglob("*")) if not _hidden(file.relative_to(folder))]
    _refuse_dangling([file for file in found if kind_of(file)])
    files = [file for file in found if file.is_file()]
    kinds = {file: kind_of(file) for file in files if file.name not in METADATA and file.stat().st_size}
    kinds = {file: kind for file, kind in kinds.items() if kind}
    if len(set(kinds.values())) > 1:
        kinds = {file: kind for file, kind in kinds.items() if kind != "JSON"}
    if len(several := sorted(set(kinds.values()))) > 1:
        raise DataError(f"holds {' and '.join(several)}: name the files to read, as in {folder}/*.parquet.", file=str(folder))
    groups: dict[str, list[Path]] = {}
    for file in kinds:
        groups.setdefault(_group(file.relative_to(folder)), []).append(file)
    if not groups:
        raise DataError("the folder holds no file of rows.", file=str(folder))
    taken = groups[_chosen(list(groups), split, folder)]
    _check_whole(taken, folder)
    chosen = {file for group in groups.values() for file in group}
    return taken, [file for file in files if file not in chosen and file.name not in METADATA]


def pattern_files(pattern: str) -> tuple[list[Path], list[Path]]:
    """(the files that a pattern with *, ? or [ names, in the order of their names; what else it names: folders and empty files).

    ** stands for any folders.
    """
    found = sorted(map(Path, glob.glob(pattern, recursive=True)))
    _refuse_dangling(found)
    files = [file for file in found if file.is_file() and file.stat().st_size]
    return files, [file for file in found if file not in set(files) and not (file.is_dir() and "**" in pattern)]


def _refuse_dangling(files: list[Path]) -> None:
    lost = next((file for file in files if file.is_symlink() and not file.exists()), None)
    if lost is not None:
        raise DataError("is a link to a file that is not there: fetch it, or take the link away.", file=str(lost))


def hub_files(address: re.Match[str]) -> list[Path]:
    """The Arrow files of a data set of the Hugging Face hub, downloaded by the `datasets` library into its cache.

    Raises:
        DataError: the library is not installed; no such data set; several splits, and none is named.
    """
    name, config, split = address["name"], address["config"], address["split"]
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "there is no such file or folder. To read it from the Hugging Face hub takes the library `datasets` (pip install datasets); "
            f"or download it (hf download --repo-type dataset {name} --local-dir FOLDER) and name the folder.",
            file=address[0],
        ) from error
    try:
        found = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"the hub's data set cannot be had: {error}", file=address[0]) from error
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
    raise DataError(f"holds several splits ({known}): name one behind a colon, as in {where}:{example}.", file=str(where))


def _group(file: Path) -> str:
    """The split that a file belongs to by its name; '' where that says nothing. Shards are told apart by their folders, too."""
    shard = _SHARD.fullmatch(file.name)
    if shard:
        return (file.parent / shard["name"]).as_posix()
    words = re.split(r"[/\\_.\- ]", file.as_posix().lower())
    return next((word for word in reversed(words) if word in SPLITS), "")


def _check_whole(files: list[Path], folder: Path) -> None:
    names = [file.parent / Path(bare_name(file.name)).stem for file in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise DataError(f"holds {twice.name} under several names, so that its rows would count twice: name one of them.", file=str(folder))
    shards = [match for file in files if (match := _SHARD.fullmatch(file.name))]
    missing = {number for shard in shards for number in range(int(shard["count"]))} - {int(shard["number"]) for shard in shards}
    if shards and missing:
        told = ", ".join(map(str, sorted(missing)[:5]))
        problem = f"lacks shard {told} of {shards[0]['count']}: fetch it, or name those that are there, as in {folder}/*."
        raise DataError(problem, file=str(folder))


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _read(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"expected JSON as Dataset.save_to_disk writes it, found: {error}.", file=str(path)) from error
    if not isinstance(found, dict) or found.get("_indices_data_files") or found.get("_indices_files"):
        raise DataError("expected what Dataset.save_to_disk writes today: load it and save it again.", file=str(path))
    return found
