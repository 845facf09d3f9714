"""A copy of a run folder in an object store (`run.copy_to`), from which the run continues on a machine that has nothing of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

import pyarrow as pa
from pyarrow import fs

from rlsys.config.schema import ConfigError

Result = TypeVar("Result")
LAST = ("state.json", "cold_start.json", "best.json", "summary.json")
"""Files that say that others are complete: each is uploaded after those, in this order, and downloaded only with them."""
FIRST = "config.yaml"
"""A folder without it holds no run: it is downloaded last."""


class RemoteCopyError(RuntimeError):
    """The object store cannot be reached, read or written; the run folder itself is unharmed."""


class _Version(NamedTuple):
    """State of a file: equal sizes and a copy that is not older are taken for equal contents."""

    size: int
    mtime_ns: int


class RemoteCopy:
    """Keeps `url` equal to a run folder, file by file. One process at a time may write a copy; nothing locks it.

    Args:
        url: of a folder, in any store that pyarrow knows: s3://BUCKET/PATH, gs://, abfs://, file://. Credentials come from the environment
            (AWS_ACCESS_KEY_ID, ...), region and endpoint from there (AWS_ENDPOINT_URL, ...) or from the URL's parameters.

    Raises:
        ConfigError: not such a URL.
        RemoteCopyError: the store does not answer, or refuses.
    """

    def __init__(self, url: str, folder: Path):
        self.url, self.folder = url.rstrip("/"), folder
        try:
            self._store, root = fs.FileSystem.from_uri(self.url)
        except (pa.ArrowInvalid, OSError) as error:
            raise ConfigError(f"run.copy_to={url}: {error}. Expected the URL of a folder, for example s3://BUCKET/PATH.") from error
        self._root = PurePosixPath(root)
        self._copied = self._list()

    @property
    def names(self) -> list[str]:
        """The files of the copy, as paths in the run folder."""
        return sorted(self._copied)

    # --- to the store --------------------------------------------------------------------------------------------

    def update(self) -> None:
        """Upload what is new or changed, checkpoints once they are complete, then delete the checkpoints that the folder no longer has.

        Raises:
            RemoteCopyError: the store does not answer, or refuses.
        """
        held = _complete(self._scan())
        for name in sorted(held, key=_rank):
            copied = self._copied.get(name)
            if copied is None or copied.size != held[name].size or copied.mtime_ns < held[name].mtime_ns:
                self._upload(name)
                self._copied[name] = held[name]
        # A checkpoint loses its mark of completeness before anything else.
        for name in sorted((name for name in self._copied.keys() - held.keys() if _mark(name)), key=_rank, reverse=True):
            self._attempt("delete", name, partial(self._store.delete_file, self._path(name)))
            del self._copied[name]

    def _upload(self, name: str) -> None:
        def upload() -> None:
            if isinstance(self._store, fs.LocalFileSystem):
                self._store.create_dir(str(PurePosixPath(self._path(name)).parent))
            fs.copy_files(str(self.folder / name), self._path(name), fs.LocalFileSystem(), self._store)

        self._attempt("write", name, upload)

    # --- from the store ------------------------------------------------------------------------------------------

    def restore(self) -> int:
        """Download the run into a folder that holds none; returns the number of files.

        Raises:
            ConfigError: the folder holds a run with older checkpoints than the copy, or the URL holds something else.
            RemoteCopyError: the store does not answer, or refuses.
        """
        if self._copied and FIRST not in self._copied:
            other = min(self._copied)
            raise ConfigError(f"run.copy_to={self.url}: holds {other}, but no run ({FIRST}). Choose a URL that holds nothing.")
        if (self.folder / FIRST).exists():
            self._require_not_ahead()
            return 0
        wanted = _complete(self._copied)
        for name in sorted(wanted, key=lambda name: (name == FIRST, _rank(name))):
            place = self.folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            self._attempt("read", name, partial(fs.copy_files, self._path(name), str(place), self._store, fs.LocalFileSystem()))
            os.utime(place, ns=(wanted[name].mtime_ns,) * 2)
        return len(wanted)

    def _require_not_ahead(self) -> None:
        here, there = (max(_steps(_complete(files)), default="") for files in (self._scan(), self._copied))
        if there > here:
            raise ConfigError(
                f"{self.url} holds {there} of this run, {self.folder} only {here or 'no checkpoint'}. Remove the folder to continue from "
                "the copy, or choose another run.copy_to."
            )

    def config(self) -> bytes | None:
        """Return the config.yaml of the copied run, or None."""
        if FIRST not in self._copied:
            return None
        return self._attempt("read", FIRST, lambda: bytes(self._store.open_input_file(self._path(FIRST)).read()))

    # --- both ----------------------------------------------------------------------------------------------------

    def _scan(self) -> dict[str, _Version]:
        """Return all files of the folder except hidden ones: locks, and what is still being written."""
        found = {}
        for place, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for path in (Path(place, name) for name in names if not name.startswith(".")):
                state = path.stat()
                found[path.relative_to(self.folder).as_posix()] = _Version(state.st_size, state.st_mtime_ns)
        return found

    def _list(self) -> dict[str, _Version]:
        selector = fs.FileSelector(str(self._root), recursive=True, allow_not_found=True)
        infos = self._attempt("list", "", lambda: self._store.get_file_info(selector))
        files = (info for info in infos if info.type == fs.FileType.File)
        return {PurePosixPath(info.path).relative_to(self._root).as_posix(): _Version(info.size, info.mtime_ns or 0) for info in files}

    def _path(self, name: str) -> str:
        return str(self._root / name)

    def _attempt(self, what: str, name: str, work: Callable[[], Result]) -> Result:
        try:
            return work()
        except OSError as error:
            place = f"{self.url}/{name}" if name else self.url
            raise RemoteCopyError(
                f"run.copy_to: cannot {what} {place}: {error}. {self.folder} is unharmed; later the same command continues."
            ) from error


def _rank(name: str) -> tuple[int, str]:
    """Sort key: `LAST` files last."""
    leaf = PurePosixPath(name).name
    return (LAST.index(leaf) + 1 if leaf in LAST else 0, name)


def _complete(files: dict[str, _Version]) -> dict[str, _Version]:
    """Leave out files of checkpoints that are not complete."""
    return {name: version for name, version in files.items() if (mark := _mark(name)) is None or mark in files}


def _mark(name: str) -> str | None:
    """Return the file that says that the checkpoint of `name` is complete; None: it is in no checkpoint."""
    parts = PurePosixPath(name).parts
    if len(parts) < 3 or parts[0] != "checkpoints":
        return None
    return "cold_start.json" if parts[1] == "cold_start" else f"checkpoints/{parts[1]}/state.json"


def _steps(files: dict[str, _Version]) -> set[str]:
    """Return the names of complete checkpoints of RL."""
    return {parts[1] for parts in (PurePosixPath(name).parts for name in files) if parts[0] == "checkpoints" and parts[-1] == "state.json"}
