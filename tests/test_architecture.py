"""Imports run launch -> actors -> rlsys and never back; the method knows nothing of Ray, vLLM or DeepSpeed."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MARKUP = re.compile(r"\[/?(?:bold|dim|italic|red|green|yellow|blue|cyan)\]|\[/\]")
FORBIDDEN = {
    "rlsys": {"actors", "launch", "ray", "vllm", "deepspeed"},
    "actors": {"launch"},
    "launch": set(),
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_run_one_way(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert not imported(path) & FORBIDDEN[package], path


def test_only_one_place_speaks_of_cuda():
    """Device is found, not assumed: the word may stand only where devices are told apart."""
    speakers = [
        str(path.relative_to(ROOT))
        for package in FORBIDDEN
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value == "cuda"
    ]
    assert set(speakers) <= {"actors/rollout/vllm_compat.py"}


def test_only_one_place_prints():
    """Strings that reach a terminal are text, since `rlsys/system/terminal.py` makes every console, table and bar, and takes every line."""
    for path in (path for package in FORBIDDEN for path in sorted((ROOT / package).rglob("*.py"))):
        if path == ROOT / "rlsys" / "system" / "terminal.py":
            continue
        tree = ast.parse(path.read_text())
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)):
            assert node.module not in ("rich.table", "rich.panel", "rich.progress", "rich.markup", "rich.tree"), path
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            assert name != "Console", path
            string = bool(call.args) and isinstance(call.args[0], ast.Constant | ast.JoinedStr | ast.BinOp)
            method = isinstance(call.func, ast.Attribute) and name in ("print", "status", "from_markup")
            assert not (method and string), (path, call.lineno)
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)):
            assert not MARKUP.search(node.value), (path, node.lineno, "is shown as it is")
