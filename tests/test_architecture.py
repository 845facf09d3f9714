"""Imports run launch -> actors -> rlsys, without cycles; rlsys imports neither Ray, vLLM nor DeepSpeed."""

import ast
import graphlib
import re
from collections.abc import Iterator
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


def module_level(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that run when a module is imported; those under `if TYPE_CHECKING` do not."""
    for node in statements:
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        type_checking = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for block in ("orelse",) if type_checking else ("body", "orelse", "finalbody"):
            yield from module_level(getattr(node, block, []))
        for handler in getattr(node, "handlers", []):
            yield from module_level(handler.body)


def test_no_import_cycles():
    """Among files, at module level; an import of a module also imports its packages."""
    paths = [path for package in FORBIDDEN for path in sorted((ROOT / package).rglob("*.py"))]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        names: set[str] = set()
        for node in module_level(ast.parse(path.read_text()).body):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        names |= {name.rsplit(".", count)[0] for name in names for count in range(1, name.count(".") + 1)}
        # Importing a sibling imports the common packages, which are being imported already.
        graph[module] = {name for name in names & modules.keys() if not f"{module}.".startswith(f"{name}.")}
    assert "rlsys.config.schema" in graph["actors.loops.rl"]
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which lists the cycle


def test_cuda_is_named_in_one_module_only():
    """Code detects the device; only one module may name it."""
    modules = [
        str(path.relative_to(ROOT))
        for package in FORBIDDEN
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value == "cuda"
    ]
    assert set(modules) <= {"actors/rollout/vllm_compat.py"}


def test_only_the_terminal_module_prints():
    """All consoles, tables and progress bars come from `rlsys/system/terminal.py`, which prints strings as they are."""
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
