"""Static checks of the whole code: types (mypy; strict in rlsys), lint and formatting (ruff)."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
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


def strict_flags() -> set[str]:
    """Return the options that `mypy --strict` sets, as its help lists them."""
    text = subprocess.run([sys.executable, "-m", "mypy", "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
    listed = text.split("Strict mode; enables the following flags:")[1].split("\n  --")[0]
    flags = re.sub(r"-\s+", "-", listed).replace(",", " ").split()
    return {flag.removeprefix("--").replace("-", "_") for flag in flags}


def test_rlsys_is_strict_except_for_what_inherits_from_torch() -> None:
    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    (strict,) = (section for section in mypy["overrides"] if section["module"] == ["rlsys.*"])
    set_to = {"no_implicit_reexport" if name == "implicit_reexport" else name for name in {**mypy, **strict}}
    flags = strict_flags()
    assert len(flags) > 10 and flags <= set_to, flags - set_to
    loosened = [section for section in mypy["overrides"] if any(value is False for value in section.values())]
    strict_off = [section for section in loosened if section["module"] != ["rlsys.*"]]
    for section in strict_off:
        assert section.keys() == {"module", "disallow_subclassing_any", "disallow_untyped_decorators"}
        for module in section["module"]:
            assert re.search(r"^(import|from) torch", (ROOT / f"{module.replace('.', '/')}.py").read_text(), re.M), module
    assert {value for name, value in strict.items() if name not in ("module", "implicit_reexport")} == {True}
