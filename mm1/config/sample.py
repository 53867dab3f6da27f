"""The sample that ships with the package: where it is, and its runs by name."""

from pathlib import Path

from mm1.config.base import ConfigError, nearest

SAMPLE = Path(__file__).parents[1] / "sample"
"""The folder of the sample."""

_PREFIX = "sample:"


def run_folder(what: str) -> Path:
    """The folder of the run `what`: a path, or `sample:NAME` for a run that ships with the package.

    Raises:
        ConfigError: the sample has no such run.
    """
    if what.startswith(_PREFIX) and not is_run(what):
        name, runs = what.removeprefix(_PREFIX), [config.parent.name for config in SAMPLE.glob("*/config.json")]
        raise ConfigError(f"the sample has no run {name!r}; {nearest(name, runs)}")
    return _folder(what)


def is_run(what: str) -> bool:
    """Whether there is a run of this path or `sample:NAME`."""
    return (_folder(what) / "config.json").is_file()


def _folder(what: str) -> Path:
    return SAMPLE / what.removeprefix(_PREFIX) if what.startswith(_PREFIX) else Path(what)
