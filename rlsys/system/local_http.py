"""What the project's own HTTP servers have in common: headers of their pages, and who may reach them."""

from __future__ import annotations

import ipaddress

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""Headers of a page that loads nothing from elsewhere."""
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def is_loopback(host: str) -> bool:
    """Return whether `host` can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def own_names(host: str) -> frozenset[str] | None:
    """Return the host names of requests to a server on a loopback address; None if `host` is another one, which may have any name."""
    return LOCAL_NAMES | {host} if is_loopback(host) else None
