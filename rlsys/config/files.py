"""From a YAML file and overrides to a checked config, and back. Read `load_config` first."""

from __future__ import annotations

import copy
import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rlsys.config.schema import FORMS, Config, ConfigError, Section, Source
from rlsys.config.values import declared_type, parse_text, parse_yaml
from rlsys.io.files import write_text_atomically


def load_config(path: Path | None, overrides: list[str] | None = None, start: Config | None = None) -> Config:
    """Read YAML `path` (None: all defaults, or `start`), apply `section.key=value` overrides, check.

    What is text and what a number follows from the field (`rlsys.config.values`): an override for a text field is taken as it stands.

    Raises:
        ConfigError: unreadable file, unknown key (with the nearest known one), or a value of the wrong type or range; all at once.
    """
    origin, problems = str(path) if path else "defaults", list[str]()
    tree: dict[str, Any] = start.model_dump() if start is not None else {}
    if path is not None:
        tree = _read_file(path)
    origins: dict[tuple[str, ...], str] = {}
    for override in overrides or []:
        try:
            parts, value = _parse_override(override)
            _put(tree, parts, value, override)
            origins[parts] = f"override {override!r}"
        except ConfigError as error:
            problems += error.problems
    config, found = _validated(tree)
    problems += [_explain(problem, origin, origins) for problem in found]
    if problems:
        raise ConfigError(*problems, rest=config)
    return config


def _read_file(path: Path) -> dict[str, Any]:
    hint = "The config file comes first, settings after it." if "=" in str(path) else "Ready-made configs are in launch/configs."
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). {hint}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason}); expected a YAML file. {hint}") from error
    try:
        tree = parse_yaml(text.removeprefix("\ufeff"), Config)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections (run:, model:, ...), found {type(tree).__name__}.")
    return tree


def _parse_override(override: str) -> tuple[tuple[str, ...], Any]:
    """(path of the key, value) of `section.key=value`."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {override!r}: expected section.key=value, for example rl.steps=50.")
    parts = tuple(key.strip().split("."))
    try:
        return parts, parse_text(text, declared_type(Config, parts))
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from error


def _put(tree: dict[str, Any], parts: tuple[str, ...], value: Any, override: str) -> None:
    node: Any = tree
    for part in parts[:-1]:
        place = _place(node, part, override)
        if isinstance(node, list) and isinstance(node[place], str):
            node[place] = {"path": node[place]}  # a source of which only the path is written
        child = node[place] if isinstance(node, list) else node.setdefault(part, {})
        if not isinstance(child, dict | list):
            raise ConfigError(f"override {override!r}: {part} is a value, not a section.")
        node = child
    node[_place(node, parts[-1], override)] = value


def _place(node: dict[str, Any] | list[Any], part: str, override: str) -> str | int:
    """A key of a section as it is, or the number of an entry of a list."""
    if isinstance(node, dict):
        return part
    if not part.isdecimal() or int(part) >= len(node):
        raise ConfigError(f"override {override!r}: expected the number of an entry, 0 to {len(node) - 1}, found {part}.")
    return int(part)


def _validated(tree: dict[str, Any]) -> tuple[Config | None, list[Any]]:
    """The config of what is right in `tree` (None where that is none), and pydantic's account of what is wrong."""
    found: list[Any] = []
    dropped: set[tuple[Any, ...]] = set()
    while True:
        try:
            return Config.model_validate(tree), found
        except ValidationError as error:
            new = error.errors()
        # What must be there and was dropped has been told of.
        found += [problem for problem in new if problem["type"] != "missing" or problem["loc"] not in dropped]
        dropped |= {problem["loc"] for problem in new}
        tree = copy.deepcopy(tree)
        places = [_place_of(tree, problem["loc"]) for problem in new]
        if None in places:
            return None, found
        for holder, key in places:
            holder.pop(key, None)


def _place_of(tree: dict[str, Any], location: tuple[Any, ...]) -> tuple[dict[str, Any], str] | None:
    """(mapping, key) of the innermost setting at `location` that is there and has a key; None where there is none."""
    place = None
    node: Any = tree
    for part in (part for part in location if part not in FORMS):
        if isinstance(node, dict) and part in node:
            place = node, part
        elif not isinstance(node, list) or part not in range(len(node)):
            break
        node = node[part]
    return place


def save_config(config: Config, path: Path) -> None:
    """Write the resolved config atomically, as YAML that `load_config` can read back."""
    write_text_atomically(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


EXPECTED = {
    "tuple_type": "expected a list, for example [a, b]",
    "list_type": "expected a list, for example [a, b]",
    "dict_type": "expected a mapping, {key: value, ...}",
    "model_type": "expected a mapping, {key: value, ...}",
    "path_type": "expected a path",
    "missing": "expected it, found nothing",
}
"""What is said in the place of pydantic's own words, by its type of problem."""


def _explain(problem: Any, origin: str, origins: dict[tuple[str, ...], str]) -> str:
    location = tuple(str(part) for part in problem["loc"] if part not in FORMS)
    where = next((text for key, text in origins.items() if location[: len(key)] == key), origin)
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key {key}.{_nearest(key)}"
    said = EXPECTED.get(problem["type"], problem["msg"])
    return f"{where}: {key}: {said.removeprefix('Value error, ')} (got {problem['input']!r})."


def _nearest(key: str) -> str:
    """Which key was meant: one of that very name in another section, or one spelled alike."""
    holder, _, _ = key.rpartition(".")
    own = [f"{holder}.{name}" for name in Source.model_fields] if holder.startswith(("data.train", "data.heldout")) else []
    known = own or known_keys()
    namesakes = [each for each in known if each.rpartition(".")[2] == key.rpartition(".")[2]]
    nearest = namesakes or difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    return f" Did you mean {' or '.join(nearest)}?" if nearest else " `rlsys config show --keys` lists every key."


def known_keys() -> list[str]:
    """Every key in dotted form, sections included."""
    return _keys(Config)


def _keys(section: type[Section], prefix: str = "") -> list[str]:
    keys = []
    for name, info in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            keys += _keys(info.annotation, f"{prefix}{name}.")
    return keys
