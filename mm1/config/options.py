"""Types of the command line's arguments and options, and checks of their values."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from mm1.config.base import ConfigError
from mm1.config.renamed import OPTIONS
from mm1.config.sample import run_folder

Word = TypeVar("Word", bound=str)


class RunnerName(StrEnum):
    """What runs the work: this process (and its workers), or a Ray cluster."""

    native = "native"
    ray = "ray"


class PrecisionName(StrEnum):
    """What a loaded run computes in; `auto`: bf16 on a GPU, fp32 on a CPU."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class Dtype(StrEnum):
    """The type of exported weights; `stored`: as the checkpoint has them."""

    stored = "stored"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


Recipe = Annotated[
    str, typer.Argument(help="A recipe's name, FILE.py[:FUNCTION] of yours, or the config.json of an earlier run.")
]
Assignments = Annotated[list[str] | None, typer.Argument(metavar="[FIELD=VALUE ...]", help="Fields to change.")]
To = Annotated[Path | None, typer.Option("--to", help="Folder to write to.")]
Precise = Annotated[PrecisionName, typer.Option("--precision", help="auto: bf16 on a GPU, fp32 on a CPU.")]


def _run_folder(what: str) -> Path:
    try:
        return run_folder(what)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error


RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", parser=_run_folder, help="A run's folder, for example runs/demo/tiny.")
]


def whole_number(text: str, option: str) -> int:
    if not text.strip().isdecimal():
        raise ValueError(f"{option} takes whole numbers such as 0,4,8; found {text!r}")
    return int(text)


def one_of(text: str, option: str, words: tuple[Word, ...]) -> Word:
    for word in words:
        if word == text:
            return word
    raise ValueError(f"{option} is {' or '.join(word for word in words if word)}; found {text!r}")


def refuse_renamed_options(arguments: list[str]) -> None:
    """Raise where an option has been renamed, and tell its new name."""
    for argument in arguments:
        option = argument.partition("=")[0]
        if option in OPTIONS:
            raise ValueError(f"there is no option {option}; it is now {OPTIONS[option]}")
