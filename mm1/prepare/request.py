"""What a user asks of `mm1 prepare`: the inputs, what they are, and what is kept of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from mm1.config.base import Config, ConfigError, nearest
from mm1.config.renamed import PREPARE_FIELDS
from mm1.prepare.dedup import Copies, CopyRules
from mm1.prepare.filters.image_filters import ImageBounds, OnMissingImage
from mm1.prepare.filters.text_filters import Filter
from mm1.prepare.readers.kinds import Kind, detect_kind
from mm1.prepare.readers.table_layouts import Rating, Role
from mm1.prepare.second_look import DIFFERENCE
from mm1.prepare.shard import Key, ReadOptions


class Input(Config):
    """A file or a folder, and what it holds."""

    path: str
    kind: Kind


class PrepareRequest(Config):
    """The whole request; it is saved beside the result.

    max_image_repeats  a picture in more documents than this is a logo or an icon and is removed; 0 keeps all. OBELICS
                       removes those that appear more than 10 times (https://arxiv.org/abs/2306.16527, appendix A.1)
    on_missing_image   a picture that is left out takes its caption or its chat with it, while a page keeps its text
                       (auto); drop leaves out pages, too, keep_text nothing but the picture
    copies             which copies of earlier documents are removed: none, exact (the same words and bytes), near
    copy_similarity    near copies share this much of their words,
    copy_bits          their pictures' fingerprints differ in at most so many of 64 bits,
    copy_difference    and the pictures at most this much where they differ most (see `second_look.py`)
    decontaminate      stores of evaluation sets: a document that shares words or pictures with one of them is left out
    data               the folder of a task's data set, for an input task:NAME
    text               the store whose texts rendered_text writes on `count` pages, by `seed`
    page_words, page_side, page_letters
                       at most so many words on a page; pixels of its longer side, at most; the height of letters as a
                       share of that side, from and to
    fonts              a folder of fonts; without one, matplotlib's and the system's
    columns            what the columns (in tars: the endings) are called that hold image, text, messages, images, texts
    split              the splits that are read, by folder, by name of file, or by a column; empty reads all
    key                what names a sample in a tar: the name of its files up to the first dot, or up to the last
    min_ratings        what FineVision's turns must be rated at least, from 1 to 5
    language           documents in any other language are left out; empty keeps all
    """

    inputs: tuple[Input, ...] = Field(min_length=1)
    pictures: str = ""
    data: str = ""
    text: str = ""
    count: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)
    page_words: int = Field(default=100, ge=1)
    page_side: int = Field(default=1024, ge=64)
    page_letters: tuple[float, float] = (0.02, 0.08)
    fonts: str = ""
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
    on_missing_image: OnMissingImage = "auto"
    copies: Copies = "near"
    copy_similarity: float = Field(default=0.75, gt=0, le=1)
    copy_bits: int = Field(default=14, ge=0, le=64)
    copy_difference: float = Field(default=DIFFERENCE, ge=0)
    decontaminate: tuple[str, ...] = ()
    columns: dict[Role, str] = Field(default_factory=dict)
    split: tuple[str, ...] = ()
    key: Key = "first-dot"
    min_ratings: dict[Rating, float] = Field(default_factory=dict)

    @property
    def read_options(self) -> ReadOptions:
        """How the input is laid out, and which of it is read."""
        return ReadOptions(dict(self.columns.items()), self.split, self.key, dict(self.min_ratings.items()))

    @property
    def copy_rules(self) -> CopyRules:
        """When a document counts as a copy."""
        return CopyRules(self.copies, self.copy_similarity, self.copy_bits, self.copy_difference)

    @property
    def image_bounds(self) -> ImageBounds:
        """Which pictures are kept."""
        return ImageBounds(self.min_side, self.max_aspect, self.max_images, self.max_side, self.on_missing_image)


def parse_request(words: Sequence[str], *, kind: str = "") -> PrepareRequest:
    """The request that words of the command line make: paths of inputs, and `field=value`.

    `kind` is that of all inputs; without one, the kind of each input is detected from its files.

    Raises:
        ConfigError: no such field, or a value that it cannot have. InputError: the kind cannot be detected.
    """
    fields: dict[str, Any] = {}
    paths = []
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or Path(word).exists():  # folders have names like `dump=CC-MAIN-2024-10`, too
            paths.append(word)
            continue
        if name not in PrepareRequest.model_fields or name == "inputs":
            raise ConfigError(f"no field {name!r} in a preparation; {_hint(name)}")
        fields[name] = _parsed(name, value)
    inputs = [{"path": path, "kind": kind or detect_kind(Path(path))} for path in paths]
    try:
        return PrepareRequest(inputs=inputs, **fields)  # type: ignore[arg-type]
    except ValidationError as error:
        details = [one for one in error.errors() if one["loc"] != ("inputs",)]  # empty since one of them is wrong
        raise ConfigError("; ".join(map(_message, details or error.errors()))) from None


def _parsed(name: str, value: str) -> Any:
    """The value of a field as the command line writes it: a,b for a list, a=x,b=y for names."""
    parts = [part for part in value.split(",") if part]
    if name in ("columns", "min_ratings"):
        return dict(part.partition("=")[::2] for part in parts)
    return tuple(parts) if name in ("filters", "decontaminate", "page_letters", "split") else value


def _hint(name: str) -> str:
    """The field that an unknown name may stand for."""
    if name in PREPARE_FIELDS:
        return f"it is now {PREPARE_FIELDS[name]!r}"
    return nearest(name, [field for field in PrepareRequest.model_fields if field != "inputs"])


def _message(error: Any) -> str:
    return f"{'.'.join(map(str, error['loc']))}: {error['msg']} (found {error['input']!r})"
