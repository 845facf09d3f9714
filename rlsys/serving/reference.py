"""The page at /docs: the OpenAPI schema as plain HTML, without scripts and without anything from other hosts."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

Schema = dict[str, Any]
_STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:auto;padding:1rem}"
    "code{font-size:.95em}table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.2rem .8rem .2rem 0;"
    "border-top:1px solid #8886}"
)


def reference_page(openapi: Schema) -> str:
    """Return the HTML page for an OpenAPI document: each route, then each object with its fields."""
    info = openapi["info"]
    title = f"{info['title']}: {info.get('summary', '')}"
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>",
        '<p>The same for programs: <a href="openapi.json">openapi.json</a>.</p><h2>Routes</h2>',
        *(_route(path, method, route) for path, methods in openapi["paths"].items() for method, route in methods.items()),
        "<h2>Objects</h2>",
        *(_object(name, schema) for name, schema in openapi.get("components", {}).get("schemas", {}).items() if "properties" in schema),
        "</html>",
    ]
    return "\n".join(parts)


def _route(path: str, method: str, route: Schema) -> str:
    body = ", ".join(_names(route.get("requestBody", {}))) or "no body"
    answer = ", ".join(_names(route.get("responses", {}).get("200", {}))) or "other text"
    text = escape(route.get("description", ""))
    return f"<h3><code>{method.upper()} {escape(path)}</code></h3><p>{text}</p><p>Body: {body}. Answer: {answer}.</p>"


def _names(part: Schema) -> Iterator[str]:
    """Yield the content types of a body, with the objects in them."""
    for kind, content in part.get("content", {}).items():
        yield f"<code>{escape(kind)}</code> {_type(content.get('schema', {}))}".strip()


def _object(name: str, schema: Schema) -> str:
    required = schema.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(key)}</code></td><td>{_type(field)}</td><td>{'required' if key in required else _default(field)}</td>"
        f"<td>{escape(field.get('description', ''))}</td></tr>"
        for key, field in schema["properties"].items()
    )
    return f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{escape(schema.get("description", ""))}</p><table>{rows}</table>'


def _default(field: Schema) -> str:
    return f"default {escape(str(field['default']))}" if "default" in field else ""


def _type(field: Schema) -> str:
    """Return a field's type, with links to the objects in it."""
    if "$ref" in field:
        name = escape(field["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if options := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(_type(option) for option in options)
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    bounds = [f"{words} {field[key]}" for key, words in _BOUNDS.items() if key in field]
    return escape(" ".join([str(field.get("type", "")), *bounds]))


_BOUNDS = {"minimum": "from", "maximum": "to", "exclusiveMinimum": "above", "exclusiveMaximum": "below"}
