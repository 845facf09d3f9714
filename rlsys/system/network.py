"""Network interfaces of this machine."""

from __future__ import annotations

import psutil


def interface_of(address: str) -> str | None:
    """Return the name of the interface that has this IP address, or None."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return name
    return None
