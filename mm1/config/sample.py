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
    if not what.startswith(_PREFIX):
        return Path(what)
    name = what.removeprefix(_PREFIX)
    if not is_run(what):
        runs = [config.parent.name for config in SAMPLE.glob("*/config.json")]
        raise ConfigError(f"the sample has no run {name!r}; {nearest(name, runs)}")
    return SAMPLE / name


def is_run(what: str) -> bool:
    """Whether there is a run of this path or `sample:NAME`."""
    folder = SAMPLE / what.removeprefix(_PREFIX) if what.startswith(_PREFIX) else Path(what)
    return (folder / "config.json").is_file()
