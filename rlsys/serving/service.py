"""The settings of a service: what `rlsys serve` and the config file of `serve deploy` may set, checked and resolved."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rlsys.config.schema import Config, ConfigError
from rlsys.io.checksums import fingerprint
from rlsys.io.run_folder import resolve_model
from rlsys.judging.setup import judge_config, sampling_settings
from rlsys.judging.voting import find_strategy
from rlsys.serving.judging import JudgeSettings, missing_of
from rlsys.serving.limits import Limits

TOKEN_VARIABLE = "RLSYS_TOKEN"
_BLOCKS, _BLOCK_BYTES = 16, 1 << 16
"""Of each file, so that models of many gigabytes take no time."""
_NO_WEIGHTS = {".lock", "state.json", "training_args.bin"}


class ServiceArguments(BaseModel):
    """Arguments of the service; in a config file of `serve deploy`, its `args`."""

    model_config = ConfigDict(extra="forbid")

    model: str
    """Run folder, model folder or hub name, which every machine of the cluster can read."""
    meta_rm: str | None = None
    """Meta reward model: run folder of `rlsys meta-rm`, or a model folder."""
    settings: list[str] = []
    """Overrides of the run's settings, KEY=VALUE."""
    seed: Annotated[int, Field(ge=0)] = 0
    """The engines'; requests have seeds of their own."""
    k: Annotated[int, Field(ge=1)] = 8
    """Samples of a request that names no k."""
    strategy: str | None = None
    """Strategy of a request that names none; null: vote, or meta with a meta reward model."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.5
    """Sampling temperature of a request that names none."""
    min_replicas: Annotated[int, Field(ge=1)] = 1
    """Engines that always run."""
    max_replicas: Annotated[int, Field(ge=1)] | None = None
    """Engines that run when many requests wait; null: as many as `min_replicas`."""
    token_file: Path | None = None
    """File with the bearer token; null: the environment variable RLSYS_TOKEN."""
    anonymous: bool = False
    """Answer requests without a token if there is neither a token file nor the variable."""
    limits: Limits = Limits()
    """See `rlsys.serving.limits.Limits`."""
    logs: Path | None = None
    """Folder for the engines' logs; null: Ray's."""

    @model_validator(mode="after")
    def _check_replicas(self) -> ServiceArguments:
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas={self.max_replicas}: expected at least min_replicas={self.min_replicas}.")
        return self

    @property
    def replicas(self) -> tuple[int, int]:
        """Smallest and largest number of engines."""
        return self.min_replicas, self.max_replicas or self.min_replicas


def service_config(arguments: ServiceArguments) -> tuple[Config, str | None, list[str]]:
    """Return the engines' config, the meta reward model's folder, and the mistakes in the arguments."""
    config, problems = judge_config(arguments.model, arguments.seed, arguments.settings)
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"actors": arguments.replicas[1]})})
    meta_rm = None if arguments.meta_rm is None else resolve_model(arguments.meta_rm)[0]
    strategy = find_strategy(default_strategy(arguments))
    if missing := missing_of(strategy, meta_rm is not None, config.rollout.self_certainty):
        problems = [*problems, f"strategy: {missing}"]
    if arguments.k > arguments.limits.max_k:
        problems = [*problems, f"k={arguments.k}: the limit of a request is max_k={arguments.limits.max_k}; raise it, or lower k."]
    return config, meta_rm, problems


def default_strategy(arguments: ServiceArguments) -> str:
    """Return the strategy of a request that names none."""
    return arguments.strategy or ("meta" if arguments.meta_rm else "vote")


def judge_settings(arguments: ServiceArguments, config: Config, meta_rm: str | None, longest_token: int) -> JudgeSettings:
    """Return what the judge uses where a request says nothing.

    Args:
        longest_token: characters of the longest token.
    """
    return JudgeSettings(
        model=arguments.model,
        version=version_of(arguments, config, meta_rm),
        k=arguments.k,
        strategy=default_strategy(arguments),
        temperature=arguments.temperature,
        top_p=config.rollout.top_p,
        max_prompt_tokens=config.prompt.max_tokens,
        max_prompt_chars=config.prompt.max_tokens * longest_token,
        max_tokens=config.rollout.max_tokens,
        meta_rm=meta_rm is not None,
        self_certainty=config.rollout.self_certainty,
    )


def read_token(file: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the bearer token in `file`, else in RLSYS_TOKEN, else None.

    Raises:
        ConfigError: there is no such file; or the token is empty, or has characters that a header cannot have.
    """
    where = TOKEN_VARIABLE if file is None else str(file)
    try:
        token = environment.get(TOKEN_VARIABLE) if file is None else file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        problem = (error.strerror or type(error).__name__) if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"token file {where}: cannot be read ({problem}).") from error
    if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        raise ConfigError(f"{where}: expected a token of visible ASCII characters, found {'none' if not token else 'other characters'}.")
    return token


def version_of(arguments: ServiceArguments, config: Config, meta_rm: str | None) -> str:
    """Return a digest of the models' files, of all settings that every sample depends on, and of what a request may leave out.

    Each file counts with its `fingerprint`. A model of a hub is known by its name.
    """
    digest = hashlib.blake2b(digest_size=8)
    settings = sampling_settings(config, meta_rm)
    for key in ("model", "meta_rm"):
        folder = Path(settings[key] or "")
        if settings[key] and folder.is_dir():
            files = filter(_counts, sorted(folder.iterdir()))
            settings[key] = [[file.name, fingerprint(file, _BLOCKS, _BLOCK_BYTES)] for file in files]
    settings |= {"k": arguments.k, "strategy": default_strategy(arguments), "temperature": arguments.temperature}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def _counts(file: Path) -> bool:
    return file.is_file() and file.name not in _NO_WEIGHTS
