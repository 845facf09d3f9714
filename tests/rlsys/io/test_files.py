"""Atomic writes: the target holds the old content or the new, and no temporary file is left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rlsys.io.files import atomic_output, atomic_write, write_text_atomically


@pytest.mark.parametrize("concurrent", [False, True])
def test_target_is_replaced_only_when_the_block_succeeds(tmp_path: Path, concurrent: bool) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path, concurrent=concurrent) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and (str(os.getpid()) in temporary.name) == concurrent
    assert path.read_text() == "new"
    with pytest.raises(RuntimeError), atomic_write(path, concurrent=concurrent) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_leftover_of_a_killed_writer_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".file.partial").write_text("a longer leftover")
    write_text_atomically(tmp_path / "file", "über")
    assert (tmp_path / "file").read_bytes() == "über".encode() and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_output_follows_links_and_creates_the_folder(tmp_path: Path) -> None:
    target, link = tmp_path / "new" / "file", tmp_path / "link"
    link.symlink_to(target)
    with atomic_output(link) as temporary:
        temporary.write_text("text")
    assert link.is_symlink() and target.read_text() == "text"


def test_output_writes_devices_directly_and_rejects_folders(tmp_path: Path) -> None:
    with atomic_output(Path(os.devnull)) as path:
        path.write_text("text")
    assert path == Path(os.devnull) and not path.is_file()
    with pytest.raises(ValueError, match="is a folder"), atomic_output(tmp_path):
        pass
