"""Functions of a user's own Python file, as `FILE.py` or `FILE.py:FUNCTION` names them: research needs no fork."""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from mm1.config.base import ConfigError, missing, nearest
from mm1.config.run import explain

Returned = TypeVar("Returned")


@dataclass(frozen=True, slots=True)
class FileFunction(Generic[Returned]):
    """A function of a user's file, which returns a `Returned` or says in one line why not."""

    path: Path
    name: str
    returns: type[Returned]
    function: Callable[..., Any]

    def __call__(self, *arguments: object) -> Returned:
        """What the function returns.

        Raises:
            ConfigError: it takes other arguments, raises (the message has its line), or returns something else.
        """
        target, wanted = f"{self.path}:{self.name}", self.returns.__name__
        try:
            inspect.signature(self.function).bind(*arguments)
        except TypeError as error:
            count = len(arguments) or "no"
            raise ConfigError(
                f"{target} is called with {count} arguments: {error}; give its other parameters defaults"
            ) from None
        with _errors_of(self.path):
            result = self.function(*arguments)
        if not isinstance(result, self.returns):
            kind = f"the class {result.__name__}" if isinstance(result, type) else type(result).__name__
            raise ConfigError(f"{target} returned {kind}; it must return a {wanted}")
        return result


def names_file(target: str) -> bool:
    """Whether `target` is `FILE.py` or `FILE.py:FUNCTION`, and not the name of a recipe or ablation."""
    return target.endswith(".py") or ".py:" in target


def load_function(target: str, returns: type[Returned]) -> FileFunction[Returned]:
    """The function that `target` names: `FILE.py:FUNCTION`, or the only one of `FILE.py` that returns a `Returned`.

    The file may import files beside it, as a script may.

    Raises:
        ConfigError: no such file or function, an error while the file is read, or several functions to choose from.
    """
    stem, _, rest = target.rpartition(".py")
    path, name = Path(f"{stem}.py"), rest.removeprefix(":")
    if not path.is_file():
        raise ConfigError(missing(path, "file"))
    module = _load(path)
    own = {
        key: value
        for key, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not key.startswith("_")
    }
    if not name:
        name = _only(path, own, returns=returns.__name__)
    elif not callable(getattr(module, name, None)):
        hint = nearest(name, list(own)) if own else "it defines none"
        raise ConfigError(f"{path} has no function {name!r}; {hint}")
    return FileFunction(path, name, returns, getattr(module, name))


def _only(path: Path, functions: Mapping[str, Callable], *, returns: str) -> str:
    """The name of the only function that says that it returns `returns`; if none says so, of the only other one."""
    annotations = {name: function.__annotations__.get("return") for name, function in functions.items()}
    annotated = [name for name, kind in annotations.items() if _class_name(kind) == returns]
    candidates = annotated or [name for name, kind in annotations.items() if kind is None]
    if not candidates:
        raise ConfigError(f"{path} has no function that returns a {returns}; write one: def NAME() -> {returns}")
    if len(candidates) > 1:
        raise ConfigError(
            f"{path} has more than one function to choose from: {', '.join(candidates)}; "
            f"name one, for example {path}:{candidates[0]}"
        )
    return candidates[0]


def _class_name(annotation: object) -> str:
    """The last part of an annotation, which is a string where the file postpones annotations."""
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return name.rpartition(".")[2]


def _load(path: Path) -> ModuleType:
    name = f"mm1_user_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses of the file look their module up
    with _errors_of(path):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Run the user's code with the files beside it importable; an error of it becomes one line with its position."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{path}{_line(path, error)}: {_message(error)}") from error
    finally:
        sys.path.remove(folder)


def _line(path: Path, error: BaseException) -> str:
    """`, line N` of the file where the error arose; of the deepest call if several lines of the file led to it."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve() == path.resolve()
    ]
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).resolve() == path.resolve():
        lines.append(error.lineno)
    return f", line {lines[-1]}" if lines else ""


def _message(error: BaseException) -> str:
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, ValidationError):
        return explain(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
