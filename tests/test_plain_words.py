"""The vocabulary of docs/design.md: names that 0.1 used for itself occur nowhere any more."""

import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel
from test_structure import CODE, PACKAGE, python_files, report, short, text_files

from mm1.__main__ import app
from mm1.config import renamed
from mm1.config.run import RunConfig
from mm1.prepare.request import PrepareRequest

# Segments of an identifier (`image_places` has two), and whole identifiers: variables that don't say what they hold,
# and names that a word of the field has replaced.
SEGMENTS = {"place", "places", "room", "rooms", "house", "door", "answerer", "answerers"}
NAMES = {
    *("found", "made", "asked", "given", "chosen", "of_first"),
    *("row_length", "batch_rows", "micro_rows", "row_images", "validation_rows", "recompute", "unrotated", "tied"),
    *("deviation", "balance_weight", "z_weight", "multipliers", "a_page", "full_shots", "text_shots"),
}
FILES = {
    *("train/boards", "train/parts", "train/ranks", "train/experts", "train/rates", "train/offer"),
    *("data/deal", "data/measure", "data/template", "model/guess", "eval/cells", "eval/answerers"),
    *("prepare/prose", "prepare/screen", "prepare/copies"),
}
PHRASES = re.compile(r"place-items|\bin[ -]place\b|\btak(e|es|ing|en) place\b|\bdecimal places?\b|\bplace of\b")
PAGE_WORDS = re.compile(
    r"\b(places?|rooms?|floors?|house|doors?|answerers?)\b"
    r"|\b(row_length|batch_rows|micro_rows|row_images|validation_rows|recompute|unrotated|balance_weight)\b"
    r"|parallel\.(replicas|shard|tensor|expert)\b"
    r"|(?<!\w)--(by|full-shots|text-shots)\b"
    r"|`(tied|chosen|deviation|multipliers|z_weight|stall|seconds|smallest|aspect|a_page|side|repeats|against)\b"
)
KEEPS_OLD_NAMES = {"mm1/config/renamed.py", "tests/test_plain_words.py"}


@cache
def identifiers(path: Path) -> frozenset[tuple[str, int]]:
    """Names in a file, each with the line where it first stands; attributes of other libraries' objects too."""
    first: dict[str, int] = {}
    with path.open() as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.NAME:
                first.setdefault(token.string, token.start[0])
    return frozenset(first.items())


def segments(name: str) -> set[str]:
    """The words of `snake_case` and of `CamelCase`."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def test_no_identifier_is_of_the_old_vocabulary():
    faults = []
    for path in python_files(*CODE, "docs"):
        if short(path) in KEEPS_OLD_NAMES:
            continue
        for name, line in sorted(identifiers(path), key=lambda pair: pair[1]):
            if name == "given" and "hypothesis" in path.read_text():
                continue  # the decorator of a property test
            if name in NAMES or segments(name) & SEGMENTS:
                faults.append(f"{short(path)}:{line} {name}")
    report(faults)


def test_no_file_of_the_package_has_an_old_name():
    stems = {file.rpartition("/")[2] for file in FILES} - {"experts"}  # hf/experts.py converts Mixtral's
    report([short(path) for path in PACKAGE.rglob("*.py") if path.stem in stems])
    report([file for file in FILES if (PACKAGE / f"{file}.py").exists()])


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of all fields below a config."""
    for name, info in model.model_fields.items():
        yield prefix + name
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from fields(info.annotation, f"{prefix}{name}.")


def test_no_field_has_an_old_name():
    old = [name for name in fields(RunConfig) if renamed.new_name(name)]
    report(old + [name for name in PrepareRequest.model_fields if name in renamed.PREPARE_FIELDS])


def test_every_new_name_is_a_field():
    known = set(fields(RunConfig)) | {name.rpartition(".")[2] for name in fields(RunConfig)}
    report([new for new in [*renamed.FIELDS.values(), *renamed.WHOLE_NAMES.values()] if new not in known])
    report([new for new in renamed.PREPARE_FIELDS.values() if new not in PrepareRequest.model_fields])


def test_no_option_has_an_old_name():
    commands = typer.main.get_command(app).commands.values()
    options = {option for command in commands for parameter in command.params for option in parameter.opts}
    report(sorted(options & renamed.OPTIONS.keys()))
    report(sorted(set(renamed.OPTIONS.values()) - options))


PAGES = [path for path, _ in text_files() if path.suffix in (".md", ".html")]


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_no_page_speaks_the_old_vocabulary(page: Path):
    faults = []
    for line, text in enumerate(page.read_text().splitlines(), 1):
        if match := PAGE_WORDS.search(PHRASES.sub("", text)):
            faults.append(f"{short(page)}:{line} says {match[0]!r}")
    report(faults)
