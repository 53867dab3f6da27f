"""The learning-rate law: the peak learning rate from the size of a model."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from mm1.config.base import ConfigError, missing


@dataclass(frozen=True, slots=True)
class Law:
    """eta = exp(exponent ln N + intercept) for N non-embedding parameters of the language model."""

    exponent: float
    intercept: float

    def rate(self, parameters: float) -> float:
        return math.exp(self.exponent * math.log(parameters) + self.intercept)


PAPER = Law(-0.4214, -0.5535)
"""MM1, section 3.4: fitted on grid searches at 9M, 85M, 302M and 1.2B parameters with batches of 2M tokens."""


def law(parameters: float) -> float:
    """The peak learning rate of the paper's law. (30B gives 2.2e-5, 3B 5.8e-5.)"""
    return PAPER.rate(parameters)


def peak_rate(setting: float | str, parameters: float) -> float:
    """The peak learning rate that `optim.learning_rate` sets: a number, `law` (the paper's), or `law:FILE`.

    Raises:
        ConfigError: the file is missing or holds no law.
    """
    if not isinstance(setting, str):
        return setting
    _, _, path = setting.partition(":")
    return (read_law(Path(path)) if path else PAPER).rate(parameters)


def read_law(path: Path) -> Law:
    """The law in a file that `mm1 law fit` wrote.

    Raises:
        ConfigError: there is no such file, or it holds no law.
    """
    if not path.is_file():
        raise ConfigError(missing(path, "law"))
    try:
        data = json.loads(path.read_text())
        return Law(float(data["exponent"]), float(data["intercept"]))
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{path} holds no law; `mm1 law fit FOLDER` writes one, with exponent and intercept"
        ) from None
