"""Load a config from a YAML file and overrides, and save it. Start at `load_config`."""

from __future__ import annotations

import copy
import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rlsys.config.schema import Config, ConfigError
from rlsys.config.secrets import without_keys
from rlsys.config.section import Section
from rlsys.config.sources import SOURCE_FORMS, Source
from rlsys.config.values import declared_type, parse_text, parse_yaml
from rlsys.io.files import write_text_atomically


def load_config(path: Path | None, overrides: list[str] | None = None, start: Config | None = None) -> Config:
    """Read the YAML file at `path` (None: `start`, or all defaults), apply `section.key=value` overrides, and validate.

    Values are parsed by the type of their field (`rlsys.config.values`): overrides of text fields are used verbatim.

    Raises:
        ConfigError: the file is unreadable, a key is unknown (the message suggests the closest known one), or a value has a wrong type or
            range. All problems are reported together.
    """
    origin, problems = str(path) if path else "defaults", list[str]()
    tree: dict[str, Any] = start.model_dump() if start is not None else {}
    if path is not None:
        tree = _read_file(path)
    origins: dict[tuple[str, ...], str] = {}
    for override in overrides or []:
        try:
            parts, value = _parse_override(override)
            _set_value(tree, parts, value, override)
            origins[parts] = f"override {override!r}"
        except ConfigError as error:
            problems += error.problems
    config, found = _validated(tree)
    problems += [_explain(problem, origin, origins) for problem in found]
    if problems or config is None:
        raise ConfigError(*problems, rest=config)
    return config


def _read_file(path: Path) -> dict[str, Any]:
    hint = "The config file comes first, then the settings." if "=" in str(path) else "Ready-made configs are in launch/configs."
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
    """Parse `section.key=value` into (path of the key, value)."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {override!r}: expected section.key=value, for example rl.steps=50.")
    parts = tuple(key.strip().split("."))
    try:
        return parts, parse_text(text, declared_type(Config, parts))
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from error


def _set_value(tree: dict[str, Any], parts: tuple[str, ...], value: Any, override: str) -> None:
    node: dict[str, Any] | list[Any] = tree
    for part in parts[:-1]:
        if isinstance(node, list):
            index = _list_index(node, part, override)
            if isinstance(node[index], str):
                node[index] = {"path": node[index]}  # a source given by its path alone
            child = node[index]
        else:
            child = node.setdefault(part, {})
        if not isinstance(child, dict | list):
            raise ConfigError(f"override {override!r}: {part} is a value, not a section.")
        node = child
    if isinstance(node, list):
        node[_list_index(node, parts[-1], override)] = value
    else:
        node[parts[-1]] = value


def _list_index(entries: list[Any], part: str, override: str) -> int:
    if not part.isdecimal() or int(part) >= len(entries):
        raise ConfigError(f"override {override!r}: expected the index of an entry, 0 to {len(entries) - 1}, found {part}.")
    return int(part)


def _validated(tree: dict[str, Any]) -> tuple[Config | None, list[Any]]:
    """Return the config of the valid settings in `tree` (None if that is impossible) and pydantic's errors for the others."""
    found: list[Any] = []
    dropped: set[tuple[Any, ...]] = set()
    while True:
        try:
            return Config.model_validate(tree), found
        except ValidationError as error:
            new = error.errors()
        # A required key that was dropped has already been reported.
        found += [problem for problem in new if problem["type"] != "missing" or problem["loc"] not in dropped]
        dropped |= {problem["loc"] for problem in new}
        tree = copy.deepcopy(tree)
        for location in [_locate(tree, problem["loc"]) for problem in new]:
            if location is None:
                return None, found
            mapping, key = location
            mapping.pop(key, None)


def _locate(tree: dict[str, Any], location: tuple[Any, ...]) -> tuple[dict[str, Any], str] | None:
    """Return (mapping, key) of the innermost existing setting on the path `location`, or None."""
    innermost = None
    node: Any = tree
    for part in (part for part in location if part not in SOURCE_FORMS):
        if isinstance(node, dict) and part in node:
            innermost = node, part
        elif not isinstance(node, list) or part not in range(len(node)):
            break
        node = node[part]
    return innermost


def save_config(config: Config, path: Path) -> None:
    """Write the resolved config atomically, as YAML that `load_config` can read back."""
    write_text_atomically(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


EXPECTED = {
    "tuple_type": "expected a list, for example [a, b]",
    "list_type": "expected a list, for example [a, b]",
    "dict_type": "expected a mapping, {key: value, ...}",
    "model_type": "expected a mapping, {key: value, ...}",
    "path_type": "expected a path",
    "missing": "required, but missing",
}
"""Replacements for pydantic's messages, by error type."""


def _explain(problem: Any, origin: str, origins: dict[tuple[str, ...], str]) -> str:
    location = tuple(str(part) for part in problem["loc"] if part not in SOURCE_FORMS)
    where = next((text for key, text in origins.items() if location[: len(key)] == key), origin)
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key {key}.{_nearest(key)}"
    message = EXPECTED.get(problem["type"], problem["msg"])
    return without_keys(f"{where}: {key}: {message.removeprefix('Value error, ')} (got {problem['input']!r}).")


def _nearest(key: str) -> str:
    """Suggest known keys: those of the same name in other sections, else the closest spelling."""
    section, _, _ = key.rpartition(".")
    own = [f"{section}.{name}" for name in Source.model_fields] if section.startswith(("data.train", "data.heldout")) else []
    known = own or known_keys()
    namesakes = [each for each in known if each.rpartition(".")[2] == key.rpartition(".")[2]]
    nearest = namesakes or difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    return f" Did you mean {' or '.join(nearest)}?" if nearest else " `rlsys config show --keys` lists every key."


def known_keys() -> list[str]:
    """Return every key in dotted form, including sections."""
    return _keys(Config)


def _keys(section: type[Section], prefix: str = "") -> list[str]:
    keys = []
    for name, info in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            keys += _keys(info.annotation, f"{prefix}{name}.")
    return keys
