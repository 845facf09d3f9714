"""The form of a trained judge: `rlsys.json` beside the weights, so that a copied or pushed folder is asked as it was trained.

A model folder without its run has neither template nor lengths; `resolve_model` reads them from this file.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import urllib.request
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError

from rlsys.config.schema import Config, ConfigError, Scores
from rlsys.config.section import Section
from rlsys.models.loading import HUB_TIMEOUT_S, is_built_on_demand
from rlsys.prompts.rendering import FORM_FILE, TEMPLATES, template_source


class SamplingDefaults(Section):
    """How a judge is sampled where nothing else is said."""

    temperature: float = 0.5
    """Of the samples of a vote (arXiv 2504.02495)."""
    top_p: float = 1.0


class ModelForm(Section):
    """Content of `rlsys.json`. Keys of later versions are ignored."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True, protected_namespaces=())

    rlsys: str
    """Version that wrote it."""
    template: str
    """The template's text."""
    template_name: str
    """Its name, or that of its file."""
    principles: bool
    scores: Scores
    chat_template_args: dict[str, Any]
    max_prompt_tokens: int
    """Longest prompt in training, in tokens."""
    max_tokens: int
    """Longest judgement in training, in tokens."""
    dtype: str
    trained_from: str
    """model.path of the run; of an absolute path, the last part."""
    sampling: SamplingDefaults = SamplingDefaults()

    def to_text(self) -> str:
        """Return the content of the file."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"

    def config(self, folder: Path) -> Config:
        """Return the settings with which the model in `folder` is asked.

        Raises:
            ConfigError: a value is invalid.
        """
        named = TEMPLATES / f"{self.template_name}.jinja"
        # The template of this version, if it is still the same.
        same = named.is_file() and named.read_text(encoding="utf-8") == self.template
        tree = {
            "model": {"path": str(folder), "dtype": self.dtype},
            "prompt": {
                "template": self.template_name if same else str(folder / FORM_FILE),
                "principles": self.principles,
                "max_tokens": self.max_prompt_tokens,
                "chat_template_args": self.chat_template_args,
                "scores": self.scores.model_dump(),
            },
            "rollout": {"max_tokens": self.max_tokens},
        }
        try:
            return Config.model_validate(tree)
        except ValidationError as error:
            raise _unusable(folder / FORM_FILE, error) from error


def form_of(config: Config) -> ModelForm:
    """Return the form of the models that a run with `config` trains."""
    prompt = config.prompt
    return ModelForm(
        rlsys=_version(),
        template=template_source(prompt.template),
        template_name=Path(prompt.template).name,
        principles=prompt.principles,
        scores=prompt.scores,
        chat_template_args=prompt.chat_template_args,
        max_prompt_tokens=prompt.max_tokens,
        max_tokens=config.rollout.max_tokens,
        dtype=config.model.dtype,
        # A folder that is pushed need not tell where it was trained.
        trained_from=Path(config.model.path).name if Path(config.model.path).is_absolute() else config.model.path,
    )


def read_form(folder: Path) -> ModelForm | None:
    """Read the form of the model in `folder`; None if it has none.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    file = folder / FORM_FILE
    try:
        return ModelForm.model_validate_json(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # pydantic's and Unicode errors are ValueErrors
        raise _unusable(file, error) from error


def hub_form(model: str) -> Config | None:
    """Return the form of a model on the hub; None if it has none, is a folder, or the hub cannot be asked.

    Raises:
        ConfigError: its file holds something else.
    """
    if Path(model).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) or is_built_on_demand(model):
        return None
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import build_hf_headers

    try:
        found = try_to_load_from_cache(model, FORM_FILE)
        if not isinstance(found, str):
            if found is not None or constants.HF_HUB_OFFLINE:  # known not to be there, or nobody may be asked
                return None
            address = f"{constants.ENDPOINT}/{model}/resolve/main/{FORM_FILE}"
            asked = urllib.request.Request(address, method="HEAD", headers=build_hf_headers())
            urllib.request.urlopen(asked, timeout=HUB_TIMEOUT_S).close()
            found = hf_hub_download(model, FORM_FILE)
    except (HfHubHTTPError, OSError, ValueError):  # no such file or model, no network; loading the model reports the latter two
        return None
    file = Path(found)
    form = read_form(file.parent)
    return form.config(file.parent) if form else None


def _unusable(file: Path, error: Exception) -> ConfigError:
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        reason = ": ".join(filter(None, [".".join(map(str, problem["loc"])), problem["msg"]]))
    else:
        reason = str(error)
    return ConfigError(f"{file}: not the form of a model ({reason}). Copy it again, or remove it and give prompt.template and lengths.")


def _version() -> str:
    try:
        return importlib.metadata.version("rlsys")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
