"""A request's body as checked fields, or what is wrong with it in plain words."""

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from mm1.config.base import nearest
from mm1.serve.errors import ApiError, invalid

Body = TypeVar("Body", bound=BaseModel)

WORDS = {
    "missing": "is missing",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "string_type": "must be a text",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "finite_number": "must be a finite number",
    "literal_error": "must be {expected}",
    "too_long": "has more than {max_length} entries",
    "too_short": "has fewer than {min_length} entries",
    "string_too_long": "has more than {max_length} characters",
    "union_tag_invalid": "has a type that is none of {expected_tags}",
    "union_tag_not_found": "needs a type: text or image_url",
}
"""What each kind of mistake is called; those that are not here are `is not valid`."""

PROMPT = (
    "prompt must be a text, token ids, or parts of type text and image_url, or a list of several such prompts; all "
    "entries of a list must be of one kind"
)
"""What is said where none of the forms of a prompt fits."""


def parse(body: bytes, kind: type[Body]) -> Body:
    """The body as a `kind`.

    Raises:
        ApiError: it is no JSON, or a field is unknown, missing or wrong.
    """
    try:
        data = from_json(body, allow_inf_nan=False, cache_strings=False)
    except (ValueError, RecursionError):
        if _has_infinity(body):
            raise invalid("the body has NaN or Infinity, which are no numbers of JSON") from None
        raise invalid("the body is not JSON, or nested too deeply; send one JSON object") from None
    if not isinstance(data, dict):
        raise invalid("the body must be a JSON object")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _explained(error, data, kind) from None


def _explained(error: ValidationError, data: dict[str, Any], kind: type[BaseModel]) -> ApiError:
    """The deepest of the mistakes: where several forms are allowed, the one that fits best got furthest.

    Of two equally deep ones a form whose kind is right got further than one of another kind.
    """
    faults = error.errors(include_url=False, include_input=False)
    fault = max(faults, key=lambda one: (len(_path(one["loc"], data)), not _is_kind(one)))
    path = _path(fault["loc"], data)
    if _is_kind(fault) and path[:1] == ["prompt"] and not any(isinstance(step, str) for step in path[1:]):
        return invalid(PROMPT, "prompt")
    if fault["type"] == "missing":
        path = [*path, str(fault["loc"][-1])]
    name = ".".join(map(str, path)) or "the body"
    if fault["type"] == "extra_forbidden":
        hint = f"; {nearest(str(path[0]), list(kind.model_fields))}" if len(path) == 1 else ""
        return invalid(f"there is no field {_shown(name)} in this request{_shown(hint, 400)}", _shown(name))
    same = [one for one in faults if _is_kind(one) and _path(one["loc"], data) == path]
    words = _kinds([one["type"] for one in same]) if _is_kind(fault) else _words(fault)
    return invalid(f"{_shown(name)} {words}", _shown(name))


def _has_infinity(body: bytes) -> bool:
    """Whether a body would be JSON if that had NaN and Infinity."""
    try:
        from_json(body, cache_strings=False)
    except (ValueError, RecursionError):
        return False
    return True


def _is_kind(fault: ErrorDetails) -> bool:
    """Whether a value is of another kind than the field's, such as a text instead of a number."""
    return fault["type"].endswith("_type")


def _kinds(types: Sequence[str]) -> str:
    """All kinds of values that a field takes: `must be a text or a list`."""
    kinds = dict.fromkeys(WORDS.get(one, "").removeprefix("must be ") for one in types)
    if "a number" in kinds:
        kinds.pop("a whole number", None)
    return f"must be {' or '.join(kind for kind in kinds if kind)}" if any(kinds) else "is not valid"


def _words(fault: ErrorDetails) -> str:
    """What is wrong with a value of the right kind."""
    bounds = fault.get("ctx", {})
    if fault["type"] == "too_short" and bounds.get("min_length") == 1:
        return "is empty"
    if fault["type"] in ("too_long", "string_too_long") and bounds.get("max_length") == 0:
        return "is not supported; leave it out"
    return WORDS.get(fault["type"], "is not valid").format(**bounds)


def _path(location: Sequence[int | str], data: Any) -> list[int | str]:
    """The keys and indices of the location, without the names of the forms that were tried."""
    path: list[int | str] = []
    for step in location:
        if (isinstance(data, dict) and step in data) or (
            isinstance(data, list) and isinstance(step, int) and step < len(data)
        ):
            data = data[step]  # type: ignore[index]
            path.append(step)
    return path


def _shown(text: str, most: int = 120) -> str:
    """A client's own text, short enough for a message."""
    return text if len(text) <= most else f"{text[:most]}..."
