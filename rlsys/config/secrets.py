"""Keys inside URLs: settings that have one are refused, and messages do not show it."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

_KEY = re.compile(r"(?<=://)[^/@\s]*:[^@\s]*(?=@)|(?<=[?&])(?:client_secret|sig)=[^&\s'\"]+")


def _refuse_key(url: str) -> str:
    if _KEY.search(url):
        raise ValueError("expected a URL without a key in it; give credentials in the environment, for example AWS_SECRET_ACCESS_KEY")
    return url


KeylessUrl = Annotated[str, AfterValidator(_refuse_key)]
"""A URL that is saved in config.yaml and shown in messages: without a password, or a parameter that is one."""


def without_keys(text: str) -> str:
    """Replace the keys of all URLs in a text by ***."""
    return _KEY.sub("***", text)
