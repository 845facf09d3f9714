"""Settings of an OpenAI-compatible endpoint: a judge or a teacher that another server runs."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from rlsys.config.section import Section

RESERVED = ("messages", "stream", "n")
"""Fields of a request that `body` may not set."""


class Endpoint(Section):
    """An OpenAI-compatible endpoint (`/chat/completions`), for example vLLM's server. The key itself is never part of a config."""

    url: str | None = None
    """Base URL, for example http://127.0.0.1:8000/v1. null: no endpoint."""
    model: str | None = None
    """Name of the model at the endpoint; required for `rft.teacher`. null: the only one that it lists."""
    api_key_env: str | None = None
    """Environment variable that holds the key. null: none is sent."""
    concurrency: PositiveInt = 16
    """Maximum number of requests in flight."""
    timeout_s: PositiveFloat = 300.0
    """Timeout of one attempt of a request, in seconds."""
    retries: Annotated[int, Field(ge=0, le=100)] = 8
    """Further attempts after a timeout, a lost connection, or an answer 408, 409, 429 or 5xx. The pauses between them double from 0.5 to 8
    seconds, or are those of the Retry-After header."""
    body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every request. They replace those of rlsys (temperature, top_p, max_tokens, seed); null removes one, for example
    {max_tokens: null, max_completion_tokens: 2048}."""
    price_prompt: NonNegativeFloat | None = None
    """Price of a million prompt tokens, in any currency."""
    price_completion: NonNegativeFloat | None = None
    """Price of a million generated tokens, in the same currency."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        if url is not None and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", url):
            raise ValueError("expected a base URL without a key in it, for example http://127.0.0.1:8000/v1")
        return None if url is None else url.rstrip("/")

    @field_validator("body")
    @classmethod
    def _check_body(cls, body: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted({*RESERVED, "model"} & body.keys()):
            raise ValueError(f"{', '.join(taken)} cannot be set here")
        return body

    def key(self) -> str | None:
        """Return the key, from the environment.

        Raises:
            ValueError: the variable is not set.
        """
        if self.api_key_env is None:
            return None
        if not (key := os.environ.get(self.api_key_env, "").strip()):
            raise ValueError(f"the environment variable {self.api_key_env}, which should hold the key of {self.url}, is not set.")
        return key

    def cost(self, prompt_tokens: int, tokens: int) -> float | None:
        """Return the price of these tokens; None if a price is not given."""
        if self.price_prompt is None or self.price_completion is None:
            return None
        return (prompt_tokens * self.price_prompt + tokens * self.price_completion) / 1e6
