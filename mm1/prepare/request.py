"""What a user asks of `mm1 prepare`: the inputs, what they are, and what may stay."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from mm1.config.base import Config, ConfigError, nearest
from mm1.config.renamed import PREPARE_FIELDS
from mm1.prepare.filters.text_filters import Filter
from mm1.prepare.readers.kinds import Kind, kind_of


class Input(Config):
    """A file or a folder, and what it holds."""

    path: str
    kind: Kind


class Order(Config):
    """The record of a preparation, kept beside its result.

    repeats   a picture in more documents than that is a logo or an icon and goes; 0: all stay. OBELICS takes those out
              that appear more than 10 times (https://arxiv.org/abs/2306.16527, appendix A.1)
    against   stores of evaluation sets: a document that shares words or pictures with one of them goes
    language  documents of any other language go; empty: all stay
    """

    inputs: tuple[Input, ...] = Field(min_length=1)
    pictures: str = ""
    source: str = ""
    licence: str = ""
    fetch: bool = False
    filters: tuple[Filter, ...] = ()
    language: str = ""
    min_side: int = Field(default=32, ge=1)
    max_aspect: float = Field(default=12.0, ge=1)
    max_images: int = Field(default=30, ge=0)
    max_side: int = Field(default=0, ge=0)
    max_image_repeats: int = Field(default=0, ge=0)
    decontaminate: tuple[str, ...] = ()


def order_of(words: Sequence[str], *, kind: str = "") -> Order:
    """The order that words of the command line make: inputs, and `field=value` for what may stay.

    The kind of an input is told from its files unless one is given, which is then that of all inputs.

    Raises:
        ConfigError: no such field, or a value that it cannot have. InputError: the kind cannot be told.
    """
    fields: dict[str, Any] = {}
    paths = []
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or Path(word).exists():  # folders are called `dump=CC-MAIN-2024-10`, too
            paths.append(word)
            continue
        if name not in Order.model_fields or name == "inputs":
            known = [field for field in Order.model_fields if field != "inputs"]
            hint = f"it is now {PREPARE_FIELDS[name]!r}" if name in PREPARE_FIELDS else nearest(name, known)
            raise ConfigError(f"no field {name!r} in a preparation; {hint}")
        listed = name in ("filters", "decontaminate")
        fields[name] = tuple(part for part in value.split(",") if part) if listed else value
    try:
        return Order(inputs=[{"path": path, "kind": kind or kind_of(Path(path))} for path in paths], **fields)  # type: ignore[arg-type]
    except ValidationError as error:
        raise ConfigError("; ".join(map(_told, error.errors()))) from None


def _told(fault: Any) -> str:
    return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']} (found {fault['input']!r})"
