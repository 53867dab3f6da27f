"""What every config is made of: checked fields, and words for the mistakes in them."""

import difflib
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """A user's mistake in a recipe, a field or a value, in one line that says what to write."""


class Config(BaseModel):
    """Base of every config: unknown fields are errors, assignments are checked."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


def choices(model: type[Config], field_name: str) -> tuple[str, ...]:
    """The values a `Literal` field may take."""
    return get_args(model.model_fields[field_name].annotation)


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict of dotted names."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def nearest(word: str, known: list[str]) -> str:
    """`did you mean 'X'?`, or the list of what is known when nothing is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"


def missing(path: Path, what: str) -> str:
    """`no WHAT at PATH`, with the nearest name that is there: what to tell a user who mistyped a file."""
    first = path  # the part of the path that is not there
    while not first.parent.is_dir() and first != first.parent:
        first = first.parent
    names = [entry.name for entry in first.parent.iterdir()]
    near = difflib.get_close_matches(first.name, names, n=1, cutoff=0.5)
    return f"no {what} at {path}" + (f"; did you mean {str(first.parent / near[0])!r}?" if near else "")
