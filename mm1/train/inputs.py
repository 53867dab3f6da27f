"""What a run needs before it starts: all that is missing is named at once, each with the command that makes it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mm1.checkpoint import CheckpointError
from mm1.config.base import ConfigError, missing
from mm1.config.run import RunConfig
from mm1.data.recorded import TOKENIZER
from mm1.data.store import open_store
from mm1.data.tokenizer import Tokenizer, load_tokenizer
from mm1.recipes import sft
from mm1.recipes.index import RECIPES
from mm1.recipes.mm1 import PUBLISHED
from mm1.scaling import peak_rate

Input = TypeVar("Input")


@dataclass(frozen=True, slots=True)
class Problem:
    """An input that can't be opened; `remedy` is what makes it, empty if it is there and broken."""

    error: Exception
    remedy: str = ""


def check_inputs(run: RunConfig, folder: Path) -> None:
    """Check that the stores, the tokenizer, the law and the runs that `run` starts from are there.

    Raises:
        StoreError, CheckpointError, ConfigError, ValueError: one of them is not.
        ConfigError: several are not; the message lists them all.
    """
    problems = [*_data_problems(run), *_law_problems(run), *_start_problems(run, folder)]
    if len(problems) == 1:
        (problem,) = problems
        raise type(problem.error)("; ".join(filter(None, (str(problem.error), problem.remedy)))) from problem.error
    if problems:
        lines = [f"{len(problems)} inputs of {run.recipe or 'the run'} are missing:"]
        for problem in problems:
            lines += [f"  {problem.error}", *([f"      {problem.remedy}"] if problem.remedy else [])]
        raise ConfigError("\n".join(lines))


def check_start_tokenizers(run: RunConfig, tokenizer: Tokenizer) -> None:
    """Check that the decoder a run starts from learned the run's tokens.

    Raises:
        ConfigError: it learned others.
    """
    for part, start in run.start_from.items():
        recorded = Path(start) / TOKENIZER
        if part == "vision" or not recorded.is_file():
            continue
        theirs = Tokenizer(recorded)
        if token := tokenizer.clash(theirs):
            raise ConfigError(
                f"start_from.{part}={start} learned another tokenizer than data.tokenizer={run.data.tokenizer}, for "
                f"example another id for {token!r}; set data.tokenizer={start}"
            )


def _data_problems(run: RunConfig) -> Iterator[Problem]:
    fields: dict[str, str] = {}  # of each store the first that names it
    for name, source in run.data.sources.items():
        fields.setdefault(source.store, f"data.sources.{name}.store")
    for name, store in run.data.validation.items():
        fields.setdefault(store, f"data.validation.{name}")
    for store, field in fields.items():
        if error := _error(open_store, store):
            name = Path(store).stem
            kind = "text" if "text" in name else "images"  # the two stores that a preparation writes
            remedy = f"mm1 prepare YOUR_FILES --to {name}, then {field}={name}/{kind}.lance"
            remedy = sft.remedy(store) or ("" if "did you mean" in str(error) else remedy)
            yield Problem(error, "" if ":" in store or Path(store).exists() else remedy)
    # the tokenizer of a run to start from is missing with that run
    is_start = run.data.tokenizer in run.start_from.values() and not Path(run.data.tokenizer).exists()
    if not is_start and (error := _error(load_tokenizer, run.data.tokenizer)):
        remedy = "mm1 import LANGUAGE_MODEL --to runs/model, then data.tokenizer=runs/model"
        yield Problem(error, "" if Path(run.data.tokenizer).is_file() else remedy)


def _law_problems(run: RunConfig) -> Iterator[Problem]:
    if error := _error(lambda rate: peak_rate(rate, 1), run.optim.learning_rate):
        yield Problem(error, "mm1 ablate learning_rate --to FOLDER, then mm1 law fit FOLDER")


def _start_problems(run: RunConfig, folder: Path) -> Iterator[Problem]:
    """Runs to start from that are missing. A run that may have a checkpoint of its own doesn't need them."""
    if (folder / "config.json").exists() or run.checkpoints.folder:
        return
    for part, start in run.start_from.items():
        if (Path(start) / "config.json").is_file():
            continue
        if run_folder := next((str(one) for one in Path(start).parents if (one / "config.json").is_file()), None):
            yield Problem(
                CheckpointError(f"{start} is a part of a run"), f"name the run: start_from.{part}={run_folder}"
            )
            continue
        if Path(start).exists():  # neither import nor training should write into something else
            yield Problem(
                CheckpointError(missing(Path(start), "run")), "name the folder of a run, with its config.json"
            )
            continue
        name = Path(start).name
        remedy = f"mm1 train {name if name in RECIPES else 'RECIPE'} --to {start}"
        if name in PUBLISHED or name not in RECIPES:
            model = PUBLISHED.get(name, "IMAGE_ENCODER" if part == "vision" else "LANGUAGE_MODEL")
            remedy = f"mm1 import {model} --to {start}, or {remedy}"
        yield Problem(
            CheckpointError(missing(Path(start), "run")), f"{remedy}; start_from={{}} starts from random weights"
        )


def _error(open_input: Callable[[Input], object], name: Input) -> Exception | None:
    """What goes wrong when an input is opened."""
    try:
        open_input(name)
    except (ValueError, OSError) as error:
        return error
    return None
