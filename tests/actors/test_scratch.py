"""Temporary folders of engines."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from commands import ROOT

from actors.rollout.scratch import Scratch


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_files_go_to_the_folder_and_nothing_is_left(temporary):
    one, two = Scratch(), Scratch()
    with one.in_use():
        Path(tempfile.mkstemp()[1]).write_text("x")
        assert os.environ["VLLM_RPC_BASE_PATH"] == os.environ["TMPDIR"] == str(one.path)
    assert len(list(one.path.iterdir())) == 1 and os.environ.get("TMPDIR") != str(one.path)
    one.remove()
    one.remove()
    assert two.path.is_dir() and not one.path.exists()
    two.remove()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("trap", ["link", "open"])
def test_nothing_is_removed_from_a_place_that_belongs_to_others(temporary, trap):
    victim = temporary / "victim"
    (victim / "engine-thesis").mkdir(parents=True)
    root = temporary / f"rlsys-engines-{os.getuid()}"
    if trap == "link":
        root.symlink_to(victim)
    else:
        victim.rename(root)
        root.chmod(0o777)
    with pytest.raises(OSError):
        Scratch()
    assert (root / "engine-thesis").is_dir()


def test_the_next_engine_removes_what_a_killed_one_left_and_nothing_else(temporary):
    code = "import sys; from actors.rollout.scratch import Scratch; s = Scratch(); print(s.path, flush=True); sys.stdin.read()"
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        left = Path(other.stdout.readline().strip())
        assert left.parent == temporary / f"rlsys-engines-{os.getuid()}"
        (left / "socket").write_text("")
        mine = Scratch()
        assert left.is_dir()
        other.send_signal(signal.SIGKILL)
    mine.remove()
    Scratch().remove()
    assert list(temporary.iterdir()) == []
