"""What a user asks of `mm1 prepare`: the input, what it is, and what may stay."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from mm1.config import Config, ConfigError, nearest
from mm1.prepare.prose import Filter
from mm1.prepare.readers import Kind, kind_of


class Order(Config):
    """The record of a preparation, kept beside its result.

    repeats   a picture in more documents than that is a logo or an icon and goes; 0: all stay. OBELICS takes those out
              that appear more than 10 times (https://arxiv.org/abs/2306.16527, appendix A.1)
    against   stores of evaluation sets: a document that shares words or pictures with one of them goes
    language  documents of any other language go; empty: all stay
    """

    input: str
    kind: Kind
    pictures: str = ""
    source: str = ""
    licence: str = ""
    fetch: bool = False
    filters: tuple[Filter, ...] = ()
    language: str = ""
    smallest: int = Field(default=32, ge=1)
    aspect: float = Field(default=12.0, ge=1)
    a_page: int = Field(default=30, ge=0)
    side: int = Field(default=0, ge=0)
    repeats: int = Field(default=0, ge=0)
    against: tuple[str, ...] = ()


def order_of(what: str, kind: str, *, assignments: Sequence[str]) -> Order:
    """The order for an input, its kind told from its files unless given, with `field=value` from the command line.

    Raises:
        ConfigError: no such field, or a value that it cannot have. InputError: the kind cannot be told.
    """
    fields: dict[str, Any] = {"input": what, "kind": kind or kind_of(Path(what))}
    for assignment in assignments:
        name, sign, value = assignment.partition("=")
        if not sign or name not in Order.model_fields:
            known = [field for field in Order.model_fields if field not in ("input", "kind")]
            raise ConfigError(f"no field {name!r} in a preparation; {nearest(name, known)}")
        listed = name in ("filters", "against")
        fields[name] = tuple(part for part in value.split(",") if part) if listed else value
    try:
        return Order(**fields)
    except ValidationError as error:
        faults = (
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']} (found {fault['input']!r})" for fault in error.errors()
        )
        raise ConfigError("; ".join(faults)) from None
