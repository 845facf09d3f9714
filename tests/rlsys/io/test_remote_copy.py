"""The copy of a run folder is complete at any moment, and all that another machine needs: in a local store, and in an S3 server."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from rlsys.config.files import load_config
from rlsys.config.schema import ConfigError
from rlsys.io.remote_copy import RemoteCopy, RemoteCopyError
from rlsys.io.run_folder import RunFolder


@pytest.fixture(params=["file", "s3"])
def url(request, tmp_path) -> str:
    """URL of an empty place in a local folder or in moto's S3 server (skipped where moto is not installed)."""
    store = f"file://{tmp_path}/store/runs" if request.param == "file" else request.getfixturevalue("s3_store")
    return f"{store}/first"


def config(folder: Path, url: str, *overrides: str):
    return load_config(None, [f"run.dir={folder}", f"run.copy_to={url}", *overrides])


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name[0] != "."}


def fetched(url: str, tmp_path: Path) -> dict[str, bytes]:
    """What another machine gets."""
    shutil.rmtree(tmp_path / "other", ignore_errors=True)
    (tmp_path / "other").mkdir()
    RemoteCopy(url, tmp_path / "other").restore()
    return files(tmp_path / "other")


def checkpoint(run: RunFolder, step: int, keep: int = 2) -> None:
    partial = run.begin_checkpoint(step)
    (partial / "model").mkdir()
    (partial / "model/weights").write_bytes(bytes([step]) * 10_000)
    run.commit_checkpoint(step, {"step": step}, keep)


def test_another_machine_gets_the_run_as_it_was_at_the_last_update(url, tmp_path):
    with RunFolder(config(tmp_path / "run", url)) as run:
        checkpoint(run, 1)
        (run.path / "metrics.jsonl").write_text('{"step": 1}\n')
        run.update_copy()
        assert fetched(url, tmp_path) == files(run.path)
        for step in (2, 3):
            checkpoint(run, step)
        (run.path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
        run.begin_checkpoint(4)  # not complete
        run.update_copy()
        assert fetched(url, tmp_path) == files(run.path)
        assert {path.name for path in run.checkpoints()} == {"step_000002", "step_000003"}
    with RunFolder(config(tmp_path / "elsewhere", url)) as other:
        assert other.restored == len(files(other.path)) > 4
        assert other.latest_state(pytest.fail) == (other.path / "checkpoints/step_000003", {"step": 3})
        checkpoint(other, 4)
    # The first machine is behind now.
    with pytest.raises(ConfigError, match=r"holds step_000004 of this run, .* only step_000003. Remove the folder"):
        RunFolder(config(tmp_path / "run", url))


def test_a_checkpoint_that_was_not_uploaded_whole_does_not_count(url, tmp_path):
    with RunFolder(config(tmp_path / "run", url)) as run:
        checkpoint(run, 1)
        run.update_copy()
        checkpoint(run, 2)
        (run.path / "checkpoints/cold_start/model").mkdir(parents=True)
        (run.path / "checkpoints/cold_start/model/weights").write_bytes(b"cold")
        uploaded: list[str] = []
        upload = run._copy._upload

        def killed(name: str) -> None:
            if name == "checkpoints/step_000002/state.json":
                raise KeyboardInterrupt
            uploaded.append(name)
            upload(name)

        run._copy._upload = killed
        with pytest.raises(KeyboardInterrupt):
            run.update_copy()
        assert "checkpoints/step_000002/model/weights" in uploaded
        found = fetched(url, tmp_path)
        assert not [name for name in found if "step_000002" in name or "cold_start" in name]
        assert {"checkpoints/step_000001/model/weights", "checkpoints/step_000001/state.json", "config.yaml"} <= found.keys()
        run._copy._upload = upload
        run.write_json("cold_start.json", {})
        run.update_copy()
        assert fetched(url, tmp_path) == files(run.path)


def test_unchanged_files_are_not_sent_again(url, tmp_path):
    with RunFolder(config(tmp_path / "run", url)) as run:
        checkpoint(run, 1)
        for path in filter(Path.is_file, run.path.rglob("*")):
            os.utime(path, (time.time() - 60,) * 2)  # S3 rounds times to seconds: what is younger than one is sent once more.
        run.update_copy()
    again = RemoteCopy(url, tmp_path / "run")
    sent: list[str] = []
    again._upload = sent.append
    again.update()
    assert sent == []
    (tmp_path / "run/metrics.jsonl").write_text("more")
    again.update()
    assert sent == ["metrics.jsonl"]


def test_what_is_not_this_run_s_copy_is_neither_used_nor_overwritten(url, tmp_path):
    with RunFolder(config(tmp_path / "run", url)) as run:
        checkpoint(run, 1)
    with RunFolder(config(tmp_path / "new", f"{url}-new", "seed=2")) as new:
        checkpoint(new, 5)
    with pytest.raises(ConfigError, match=r"holds a run with another config \(seed: 0 before, 2 now\). Choose another URL"):
        RunFolder(config(tmp_path / "new", url, "seed=2"))
    assert json.loads(fetched(url, tmp_path)["checkpoints/step_000001/state.json"])["step"] == 1
    with pytest.raises(ConfigError, match=r"holds first.*, but no run \(config.yaml\). Choose a URL that holds nothing"):
        RunFolder(config(tmp_path / "third", url.removesuffix("/first")))


def test_a_copy_without_completed_work_accepts_another_config(url, tmp_path):
    with RunFolder(config(tmp_path / "run", url)):
        pass
    with RunFolder(config(tmp_path / "run", url, "seed=2")) as run:
        assert run.was_reset
    assert fetched(url, tmp_path) == files(tmp_path / "run")


def test_a_url_that_nothing_understands_and_a_store_that_does_not_answer(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="run.copy_to=nosuch://bucket: .*Expected the URL of a folder, for example s3://"):
        RunFolder(config(tmp_path / "run", "nosuch://bucket"))
    (tmp_path / "file").write_text("")
    with pytest.raises(RemoteCopyError, match="run.copy_to: cannot write file:///.*/file/under/config.yaml: .* the same command continues"):
        with RunFolder(config(tmp_path / "run", f"file://{tmp_path}/file/under")):
            pass
    # The first error is the one to report.
    with pytest.raises(ZeroDivisionError) as failure, RunFolder(config(tmp_path / "run", f"file://{tmp_path}/file/under")):
        raise ZeroDivisionError
    assert "cannot write file:///" in failure.value.__notes__[0]
