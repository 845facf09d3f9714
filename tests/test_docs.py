"""The documentation matches the code: links, paths, commands, settings, the generated reference, and runnable examples."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from launch.app import app
from rlsys.config.schema import Config
from rlsys.config.section import Section

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(r"(?<![\w./-])(?:rlsys|actors|launch|tests|docs)/[\w./*-]*[\w*/]")
SECTIONS = {name: info.annotation for name, info in Config.model_fields.items() if issubclass(info.annotation, Section)}
KEY = re.compile(rf"(?<![\w./-])((?:{'|'.join(SECTIONS)})(?:\.\w+)+)=")
NO_KEYS = {"data.account"}
"""Keys of report.json, not of a config."""
SUFFIXES = ("safetensors", "json", "jsonl", "md", "yaml", "zip", "parquet", "html", "py", "png")

RLSYS = typer.main.get_command(app)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def prose(page: Path) -> str:
    """Return the page without its code blocks."""
    return FENCE.sub("", page.read_text())


def code(page: Path) -> list[str]:
    """Return the lines of the page's code blocks, with continued lines joined, and its code spans, including those in tables."""
    blocks = [body for _, body in FENCE.findall(page.read_text())]
    return [line.strip() for body in blocks for line in body.replace("\\\n", " ").splitlines()] + SPAN.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """Return GitHub's anchors of the page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@each_page
def test_paths_exist(page: Path) -> None:
    for text in code(page):
        for path in PATH.findall(text):
            assert next(ROOT.glob(path.rstrip("/")), None), path


@each_page
def test_modules_exist(page: Path) -> None:
    """`rlsys.rewards.extraction.ScoreFormat`: a module, and a name in it."""
    for text in SPAN.findall(prose(page)):
        if re.fullmatch(r"(rlsys|actors|launch)(\.\w+)+", text) and not text.endswith(SUFFIXES):
            found, parts = ROOT, text.split(".")
            while parts and ((found / parts[0]).is_dir() or (found / f"{parts[0]}.py").is_file()):
                found = found / parts.pop(0)
            source = found / "__init__.py" if found.is_dir() else found.with_suffix(".py")
            assert len(parts) < 3 and all(re.search(rf"\b{part}\b", source.read_text()) for part in parts), text


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of every `rlsys ...` command on the page, without comments."""
    for text in code(page):
        for start in re.findall(r"(?:^|(?<=-- )|(?<=\.venv/bin/))rlsys [^`]*", text):
            try:
                words = shlex.split(start.replace("[", " [ ").replace("]", " ] "), comments=True)
            except ValueError:
                words = start.split()
            yield words[1:]


@each_page
def test_commands_are_there(page: Path) -> None:
    for words in commands(page):
        said = "rlsys " + " ".join(words)
        command, words = RLSYS, [word for word in words if word not in "[]"]
        while hasattr(command, "commands") and words and re.match(r"[a-z]", words[0]):
            name = words.pop(0).rstrip(",.;")
            assert name in command.commands, said
            command = command.commands[name]
        known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]} | {"-h", "--help"}
        for word in words:
            if re.match(r"--?[a-z]", word):
                assert word.partition("=")[0].rstrip(",.;") in known, said


def is_key(dotted: str) -> bool:
    """Return whether a run has this setting; keys inside lists and mappings are not checked."""
    section: type = Config
    for part in dotted.split("."):
        if not (isinstance(section, type) and issubclass(section, Section)):
            return True
        if part not in section.model_fields:
            return False
        section = section.model_fields[part].annotation
    return True


@each_page
def test_settings_are_there(page: Path) -> None:
    named = KEY.findall(page.read_text())
    named += [text for text in SPAN.findall(prose(page)) if re.fullmatch(rf"(?:{'|'.join(SECTIONS)})(\.\w+)+", text)]
    for key in named:
        if key.rpartition(".")[2] not in SUFFIXES:
            assert is_key(key) or key in NO_KEYS, key


def test_the_reference_of_settings_is_the_generated_one(capsys: pytest.CaptureFixture[str]) -> None:
    """If this fails: `rlsys config show --markdown > docs/configuration.md`."""
    RLSYS(["config", "show", "--markdown"], standalone_mode=False)
    written, page = capsys.readouterr().out, (ROOT / "docs/configuration.md").read_text()
    assert page == written, "".join(difflib.unified_diff(page.splitlines(True), written.splitlines(True), "page", "written", n=0))


def test_the_page_of_metrics_is_the_generated_one(capsys: pytest.CaptureFixture[str]) -> None:
    """If this fails: `rlsys metrics --markdown > docs/metrics.md`."""
    RLSYS(["metrics", "--markdown"], standalone_mode=False)
    assert (ROOT / "docs/metrics.md").read_text() == capsys.readouterr().out


def test_examples_of_extensions_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlsys.data.readers import READERS
    from rlsys.evaluation.benchmarks import BENCHMARKS
    from rlsys.judging.voting.strategy import STRATEGIES

    monkeypatch.chdir(tmp_path)
    registries = [(registry, dict(registry)) for registry in (BENCHMARKS, READERS, STRATEGIES)]
    page, names = ROOT / "docs/extending.md", {"__name__": "extending"}
    assert all("\nassert " in section for section in page.read_text().split("\n## ")[1:]), "each section's example checks itself"
    try:
        for block in FENCE.finditer(page.read_text()):
            if block[1] == "python":
                line = page.read_text()[: block.start()].count("\n") + 1
                exec(compile("\n" * line + block[2], str(page), "exec"), names)  # noqa: S102
    finally:
        for registry, before in registries:
            registry.clear()
            registry.update(before)


def test_the_site_shows_every_page() -> None:
    named = re.findall(r": ([\w-]+\.md)$", (ROOT / ".mkdocs.yml").read_text(), re.M)
    assert sorted(named) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))
