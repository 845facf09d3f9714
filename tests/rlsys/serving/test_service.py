"""The settings of a service: tokens, replicas, versions, and the mistakes that are found before anything starts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from rlsys.config.schema import ConfigError
from rlsys.models.loading import build_tiny
from rlsys.serving.limits import Limits
from rlsys.serving.service import ServiceArguments, read_token, service_config, version_of


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("models") / "tiny-random")


def test_a_token_is_read_from_the_file_else_from_the_environment(tmp_path):
    file = tmp_path / "token"
    file.write_text(" s3cret\n")
    assert read_token(file, {"RLSYS_TOKEN": "other"}) == "s3cret"
    assert read_token(None, {"RLSYS_TOKEN": "other"}) == "other"
    assert read_token(None, {}) is None


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", "schlüssel".encode(), b"\xff\xfe", b"bell\x07"])
def test_an_unusable_token_is_refused_and_not_shown(tmp_path, content):
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="token") as caught:
        read_token(file)
    assert "words" not in str(caught.value) and "bell" not in str(caught.value)


def test_a_missing_token_file_and_an_empty_variable_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_token(tmp_path / "none")
    with pytest.raises(ConfigError, match="RLSYS_TOKEN"):
        read_token(None, {"RLSYS_TOKEN": ""})


def test_arguments_are_checked():
    assert ServiceArguments(model="m", min_replicas=2).replicas == (2, 2)
    assert ServiceArguments(model="m", max_replicas=3).replicas == (1, 3)
    for wrong in ({"min_replicas": 3, "max_replicas": 2}, {"modle": "m"}, {"limits": {"max_k": 0}}, {"k": 0}):
        with pytest.raises(ValidationError):
            ServiceArguments.model_validate({"model": "m"} | wrong)


def test_mistakes_are_listed_together(model):
    arguments = ServiceArguments(model=str(model), strategy="meta", k=9, limits=Limits(max_k=8), settings=["prompt.templat=x"])
    _, _, problems = service_config(arguments)
    assert len(problems) == 3
    for words in ("templat", "--meta-rm", "max_k=8"):
        assert any(words in problem for problem in problems), problems


def test_the_version_is_that_of_the_weights_and_of_what_samples_depend_on(model, tmp_path):
    arguments = ServiceArguments(model=str(model))
    config, _, _ = service_config(arguments)
    version = version_of(arguments, config, None)
    copied = tmp_path / "copy"
    shutil.copytree(model, copied)
    same, _, _ = service_config(ServiceArguments(model=str(copied)))
    assert version_of(arguments, same, None) == version
    longer, _, _ = service_config(ServiceArguments(model=str(model), settings=["rollout.max_tokens=7"]))
    weights = copied / "model.safetensors"
    with weights.open("r+b") as opened:
        opened.seek(os.path.getsize(weights) // 2)
        opened.write(b"\x55" * (1 << 18))
    others = [version_of(arguments, *of) for of in ((longer, None), (same, None), (config, str(copied)))]
    # What a request may leave out.
    changes = ({"k": 7}, {"strategy": "mean"}, {"temperature": 0.4})
    others += [version_of(arguments.model_copy(update=change), config, None) for change in changes]
    assert len({version, *others}) == 7
