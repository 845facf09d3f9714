"""Parse values according to the type declared for their field.

YAML parses `010` as 8, `2024-01-01` as a date, `no` as false and `a #3` as `a`. Here a text field receives the text as written, and
pydantic converts the text for numbers and booleans. YAML's own types apply only to fields that accept any value.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

MAX_NODES = 100_000
"""Values in a YAML document, counting what aliases repeat: a few lines of aliases of aliases would otherwise fill any memory."""
NULLS = ("", "null", "~", "Null", "NULL")
"""Spellings of null, for fields that may be None."""


def declared_type(model: type[BaseModel], path: tuple[str, ...]) -> Any:
    """Return the type of the field at `path`, or Any if there is no such field or it is inside a field that accepts any value."""
    kind: Any = model
    for part in path:
        kind = _item_type(kind, part)
    return kind


def parse_text(text: str, kind: Any) -> Any:
    """Parse the value of an override: verbatim for a text field, as YAML for lists, mappings and fields that accept any value.

    Raises:
        yaml.YAMLError: invalid YAML, or text with a character that no file can hold.
    """
    _require_writable(text)
    kinds = list(_alternatives(kind))
    if type(None) in kinds and text.strip() in NULLS:
        return None
    if _uses_yaml_types(kind) or (any(map(_is_container, kinds)) and (not any(map(_is_scalar, kinds)) or text.lstrip()[:1] in ("[", "{"))):
        return parse_yaml(text, kind)
    return text if is_text(kind) else text.strip()


def is_text(kind: Any) -> bool:
    """Check whether text (or None) is the only scalar that `kind` accepts."""
    scalars = [member for member in _alternatives(kind) if _is_scalar(member)]
    return bool(scalars) and all(member in (str, Path) or get_origin(member) is Literal and _is_text_literal(member) for member in scalars)


def parse_yaml(text: str, kind: Any) -> Any:
    """Parse a YAML document, converting scalars according to the types declared by `kind`.

    Raises:
        yaml.YAMLError: invalid YAML, a duplicate key, unbounded nesting, or aliases that repeat more than MAX_NODES values.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MAX_NODES:
            raise yaml.YAMLError(f"it has more than {MAX_NODES:,} values, counting those that aliases repeat")
        _reject_duplicate_keys(node)
        return _construct(loader, node, kind)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply, or an alias refers to a node that contains it") from error
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of nodes below and including `node`, each as often as aliases repeat it. `known`: sizes by id(node)."""
    if id(node) not in known:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        children = node.value if isinstance(node, yaml.SequenceNode) else [child for pair in pairs for child in pair]
        known[id(node)] = 1 + sum(_size(child, known) for child in children)
    return known[id(node)]


def _require_writable(text: str, mark: yaml.Mark | None = None) -> None:
    """Raise if `text` has a null character or a lone surrogate, which neither paths nor the run's config.yaml can hold."""
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise yaml.constructor.ConstructorError(None, None, f"{ascii(text)[:60]} has a character that no file can hold", mark)


def _scalar(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    """Return the value of a scalar by YAML's own types."""
    try:
        return loader.construct_object(node)
    except (ValueError, LookupError, AttributeError) as error:  # PyYAML's, for example for the date 2024-13-45, or !!int x
        kind = node.tag.rpartition(":")[2]
        raise yaml.constructor.ConstructorError(
            None, None, f"expected a valid {kind}, found {ascii(node.value)[:60]}", node.start_mark
        ) from error


def _reject_duplicate_keys(node: yaml.Node) -> None:
    """Raise if a mapping has a duplicate key. Keys merged with `<<: *other` do not count, as explicit keys override them."""
    children = list(node.value) if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        names = set()
        for key, child in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in names:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key.value} appears twice", key.start_mark)
                names.add(key.value)
            children.append(child)
    for child in children:
        _reject_duplicate_keys(child)


def _construct(loader: yaml.SafeLoader, node: yaml.Node, kind: Any) -> Any:
    kinds = list(_alternatives(kind))
    if isinstance(node, yaml.ScalarNode):
        _require_writable(node.value, node.start_mark)
        if node.style is None and node.tag == "tag:yaml.org,2002:null":
            # A key without a value is null, never text.
            return node.value if is_text(kind) and type(None) not in kinds and node.value else None
        return _scalar(loader, node) if _uses_yaml_types(kind) else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, child, _item_type(kind, index)) for index, child in enumerate(node.value)]
    assert isinstance(node, yaml.MappingNode)
    loader.flatten_mapping(node)
    mapping: dict[str, Any] = {}
    for key, child in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "expected text as a key, found a list or a mapping", key.start_mark)
        _require_writable(name := key.value, key.start_mark)
        mapping[name] = _construct(loader, child, _item_type(kind, name))
    return mapping


def _alternatives(kind: Any) -> Iterator[Any]:
    """Yield the members of a union, seen through Annotated; any other type yields itself."""
    origin = get_origin(kind)
    if origin is Annotated:
        yield from _alternatives(get_args(kind)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(kind):
            yield from _alternatives(member)
    else:
        yield kind


def _item_type(kind: Any, key: str | int) -> Any:
    """Return the type of the item at `key` of a value of type `kind`."""
    item_types = []
    for member in _alternatives(kind):
        arguments = get_args(member)
        if isinstance(member, type) and issubclass(member, BaseModel):
            item_types += [member.model_fields[key].annotation] if key in member.model_fields else []
        elif get_origin(member) is tuple and arguments:
            if str(key).isdecimal():
                item_types.append(arguments[min(int(key), len(arguments) - 1)] if arguments[-1] is not Ellipsis else arguments[0])
        elif arguments and get_origin(member) is not Literal:
            item_types.append(arguments[-1])
    return Union[tuple(item_types)] if item_types else Any  # noqa: UP007 (the members are only known at run time)


def _is_text_literal(kind: Any) -> bool:
    return all(isinstance(value, str) for value in get_args(kind))


def _is_container(kind: Any) -> bool:
    return (get_origin(kind) or kind) in (tuple, list, dict, set, frozenset) or isinstance(kind, type) and issubclass(kind, BaseModel)


def _is_scalar(kind: Any) -> bool:
    return kind is not type(None) and not _is_container(kind)


def _uses_yaml_types(kind: Any) -> bool:
    """Check whether YAML's own types apply: any value is accepted, a Literal has numbers, or text is one of several scalar types."""
    scalars = [member for member in _alternatives(kind) if _is_scalar(member)]
    listed = any(get_origin(member) is Literal and not _is_text_literal(member) for member in scalars)
    return listed or Any in scalars or object in scalars or (any(member in (str, Path) for member in scalars) and not is_text(kind))
