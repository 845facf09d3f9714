"""Use a judge from Python: `GRM`, with its engines in this process's Ray or behind a service, and the verdicts that it returns."""

from __future__ import annotations

from rlsys.client.grm import GRM
from rlsys.client.verdicts import Verdict

__all__ = ["GRM", "Verdict"]
