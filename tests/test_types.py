"""Static checks of the whole code: types (mypy), lint and formatting (ruff)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("rlsys", "actors", "launch", "tests")
TIMEOUT_S = 1200
CHECKS = {
    "mypy": ("mypy", "-p", "rlsys", "-p", "actors", "-p", "launch"),
    "ruff check": ("ruff", "check", *FOLDERS),
    "ruff format": ("ruff", "format", "--check", *FOLDERS),
}


@pytest.mark.parametrize("name", CHECKS)
def test_check_reports_nothing(name: str, tmp_path: Path) -> None:
    module, *arguments = CHECKS[name]
    cache = ["--cache-dir", str(tmp_path)]
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments, *cache], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
