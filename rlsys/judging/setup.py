"""The config of the engines that judge with a trained model."""

from __future__ import annotations

from typing import Any

from rlsys.config.endpoint import Endpoint
from rlsys.config.files import load_config
from rlsys.config.schema import Config, ConfigError
from rlsys.io.model_form import hub_form
from rlsys.io.run_folder import resolve_model


def judge_config(model: str | None, seed: int, overrides: list[str] | None) -> tuple[Config, list[str]]:
    """Return the config of the engines, and the mistakes in `overrides`.

    Template and lengths come from the model's rlsys.json, or from the run that trained it; then `overrides` apply, invalid ones left out.

    Args:
        model: None if an endpoint answers and no run gives the form.
    """
    path, run = (Config().model.path, None) if model is None else resolve_model(model)
    run = run or hub_form(path) or Config()
    start = Config(
        seed=seed,
        model=run.model.model_copy(update={"path": path}),
        prompt=run.prompt,
        rollout=Config().rollout.model_copy(update={name: getattr(run.rollout, name) for name in ("max_tokens", "max_num_seqs")}),
    )
    try:
        return load_config(None, overrides, start), []
    except ConfigError as error:
        return error.rest or start, list(error.problems)


def sampling_settings(config: Config, meta_rm: str | None, endpoint: Endpoint | None = None) -> dict[str, Any]:
    """Return all settings that every sample depends on, apart from the request itself."""
    if endpoint is not None:
        asked = endpoint.model_dump(mode="json", include={"url", "model", "body"})
        prompt = config.prompt.model_dump(mode="json", exclude={"max_tokens", "chat_template_args"})
        return {"endpoint": asked, "prompt": prompt, "top_p": config.rollout.top_p, "max_tokens": config.rollout.max_tokens}
    return {
        "model": config.model.path,
        "meta_rm": meta_rm,
        "prompt": config.prompt.model_dump(mode="json"),
        "top_p": config.rollout.top_p,
        "max_tokens": config.rollout.max_tokens,
        "dtype": config.model.dtype,
        "self_certainty": config.rollout.self_certainty,
    }
