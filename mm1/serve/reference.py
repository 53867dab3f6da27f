"""The page of routes and fields at /docs: the OpenAPI document to read, without anything from elsewhere."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment
from starlette.responses import Response

TEMPLATE = Path(__file__).with_name("reference.html")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; frame-ancestors 'none'"
BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "at least {:,} characters",
    "maxLength": "at most {:,} characters",
    "minItems": "at least {:,} entries",
    "maxItems": "at most {:,} entries",
    "maxProperties": "at most {:,} entries",
}
TYPES = {"string": "text", "integer": "whole number", "boolean": "true or false", "null": "null", "object": "object"}


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a field's description; a link leads to the object of that name."""

    text: str
    link: bool = False


def reference_page(document: dict[str, Any]) -> Response:
    """The page of the server's OpenAPI document."""
    routes = [
        {
            "method": method.upper(),
            "path": path,
            "about": operation.get("description", ""),
            "body": _body(operation),
        }
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    objects = [
        {"name": title, "about": " ".join(schema.get("description", "").split()), "fields": list(_fields(schema))}
        for title, schema in document["components"]["schemas"].items()
    ]
    template = Environment(autoescape=True).from_string(TEMPLATE.read_text())
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return Response(template.render(routes=routes, objects=objects), headers=headers, media_type="text/html")


def _body(operation: dict[str, Any]) -> str:
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    return schema.get("$ref", "").rpartition("/")[2]


def _fields(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        parts = list(described(field))
        yield {"name": name, "parts": [*parts, Part(", required")] if name in required else parts}


def described(schema: dict[str, Any]) -> Iterator[Part]:
    """What a schema takes, in words."""
    if "$ref" in schema:
        yield Part(schema["$ref"].rpartition("/")[2], link=True)
        return
    forms = [form for form in schema.get("anyOf", schema.get("oneOf", ())) if form.get("type") != "null"]
    # a whole number is a number
    forms = [form for form in forms if form.get("type") != "integer" or {**form, "type": "number"} not in forms]
    if forms:
        for number, form in enumerate(forms):
            if number:
                yield Part(" or ")
            yield from described(form)
        return
    if "const" in schema or "enum" in schema:
        yield Part(" or ".join(repr(value) for value in schema.get("enum", [schema.get("const")])))
        return
    kinds = schema.get("type", "")
    kind = kinds if isinstance(kinds, str) else next(one for one in kinds if one != "null")
    if kind == "array":
        yield Part("list of (")
        yield from described(schema.get("items", {}))
        yield Part(")")
    elif kind == "number":
        yield Part("number")
    else:
        yield Part(TYPES.get(kind, "anything"))
    bounds = [words.format(schema[bound]) for bound, words in BOUNDS.items() if bound in schema]
    if bounds:
        yield Part(", " + ", ".join(bounds))
