"""Export of a run's model into a folder that is complete by itself."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rlsys.config.files import load_config
from rlsys.config.schema import ConfigError
from rlsys.io.files import apply_umask
from rlsys.io.model_form import form_of, read_form
from rlsys.io.run_folder import resolve_model
from rlsys.models.folder import check_model_folder
from rlsys.prompts.rendering import FORM_FILE
from rlsys.reporting.model_card import write_model_card


def export_model(model: str, output: Path) -> list[str]:
    """Copy a model of a run to `output`, with its form and a card of all results of the run; returns the names of its files.

    A model that was saved without a form gets that of its run's config.

    Raises:
        ConfigError: `model` belongs to no run, or `output` exists.
        rlsys.models.loading.ModelError: the model is incomplete.
    """
    place, _ = resolve_model(model)
    folder = Path(place)
    run = next((parent for parent in folder.absolute().parents[:3] if (parent / "config.yaml").is_file()), None)
    if run is None:
        raise ConfigError(f"{model}: no model of a run; name a run folder, RUN@best, RUN@cold_start or RUN@step_10.")
    if output.exists():
        raise ConfigError(f"--output {output}: exists already; name a new folder.")
    check_model_folder(str(folder), None)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(folder, partial)
        if read_form(partial) is None:
            (partial / FORM_FILE).write_text(form_of(load_config(run / "config.yaml")).to_text(), encoding="utf-8")
        write_model_card(run, partial, folder)
        apply_umask(partial)
        os.rename(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(path.name for path in output.iterdir())
