"""Keys inside URLs: settings that have one are refused, and messages do not show it."""

from __future__ import annotations

import re

_KEY = re.compile(r"(?<=://)[^/@\s]*:[^@\s]*(?=@)|(?<=[?&])(?:client_secret|sig)=[^&\s'\"]+")


def has_key(url: str) -> bool:
    """Return whether a URL holds a password, or a parameter that is one."""
    return _KEY.search(url) is not None


def without_keys(text: str) -> str:
    """Replace the keys of all URLs in a text by ***."""
    return _KEY.sub("***", text)
