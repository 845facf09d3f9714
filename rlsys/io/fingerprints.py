"""Fingerprints of a run's data files, by which a run that is resumed recognises that one has changed."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from rlsys.config.schema import Config
from rlsys.data.datasets import GENERATED
from rlsys.data.readers import DataError
from rlsys.data.readers.folders import HUB
from rlsys.data.readers.sources import open_source
from rlsys.data.trajectories import trajectory_files
from rlsys.io.checksums import fingerprint


def fingerprints(config: Config) -> dict[str, str]:
    """Return the fingerprint of every file that a run reads rows or its template from, by path.

    Generated rows have none, nor have pipes, datasets of the Hugging Face Hub, and what the run itself writes (its trajectories may be
    `meta_rm.data`). What cannot be read is left to its reader to report.
    """
    found, own = dict[str, str](), config.run.dir.absolute()
    for path in _files(config):
        with suppress(OSError):
            if path.is_file() and own not in path.absolute().parents:
                found[str(path)] = fingerprint(path)
    return found


def _files(config: Config) -> list[Path]:
    sources = [source.path for source in (*config.data.sources("train"), *config.data.sources("heldout"))]
    lists = [path for path in (config.data.exclude, config.sft.data) if path is not None]
    files = lists if re.fullmatch(r"\w+", config.prompt.template) else [*lists, Path(config.prompt.template)]
    for path in (*sources, config.rft.instruction_data):
        # The name of a dataset on the hub is no path that exists, with or without a split.
        on_hub = HUB.fullmatch(str(path)) and not any(Path(name).exists() for name in (str(path), str(path).partition(":")[0]))
        if path is not None and not str(path).startswith(GENERATED) and not on_hub:
            with suppress(DataError):
                files += open_source(path).files
    with suppress(DataError):
        files += trajectory_files(config.meta_rm.data)
    return files
