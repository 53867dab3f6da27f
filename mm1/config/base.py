"""The base of every config: checked fields, and messages for mistakes in them."""

import difflib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """A user's mistake in a recipe, a field or a value; the message says in one line what to write."""


class Config(BaseModel):
    """Base of every config: unknown fields are errors, and assignments are checked."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


def choices(model: type[Config], field_name: str) -> tuple[str, ...]:
    """The values that a `Literal` field may take besides null."""
    annotation = model.model_fields[field_name].annotation
    literals = [part for part in get_args(annotation) if get_origin(part) is Literal]
    return get_args(literals[0] if literals else annotation)


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def nearest(word: str, names: list[str]) -> str:
    """`did you mean 'X'?` with the most similar of `names`, or all of them where none is similar."""
    similar = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {similar[0]!r}?" if similar else f"known: {', '.join(sorted(names))}"


def missing(path: Path, what: str) -> str:
    """`no WHAT at PATH`, with the most similar name that exists: the message for a mistyped path."""
    if path.exists():
        return f"{path} is there, but is no {what}"
    first = path  # the first part of the path that does not exist
    while not first.parent.is_dir() and first != first.parent:
        first = first.parent
    names = [entry.name for entry in first.parent.iterdir()]
    similar = difflib.get_close_matches(first.name, names, n=1, cutoff=0.5)
    return f"no {what} at {path}" + (f"; did you mean {str(first.parent / similar[0])!r}?" if similar else "")
