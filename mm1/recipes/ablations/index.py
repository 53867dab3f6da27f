"""Every ablation by its name, for `mm1 ablate NAME`."""

from collections.abc import Callable

from mm1.config.ablation import Ablation
from mm1.config.base import ConfigError, nearest
from mm1.recipes.ablations import components, data, optimization, tuned
from mm1.recipes.ablations.scales import SCALES, Scale
from mm1.recipes.file import load_function, names_file

ABLATIONS: dict[str, Callable[[Scale], Ablation]] = {
    "encoder": components.encoder,
    "connector": components.connector,
    "experts": components.experts,
    "mix": data.mix,
    "learning_rate": optimization.learning_rate,
    "weight_decay": optimization.weight_decay,
    "start": optimization.start,
    "frozen": optimization.frozen,
    "resolution": tuned.resolution,
    "steps": tuned.steps,
}


def ablation(name: str, scale: str) -> Ablation:
    """The ablation `name` at a scale, `tiny` or `paper`; or what the user's own `FILE.py:FUNCTION` returns.

    Raises:
        ConfigError: there is no such ablation, and the nearest is named; or a mistake in the user's file.
    """
    if names_file(name):
        return load_function(name, Ablation)()
    if name not in ABLATIONS:
        raise ConfigError(f"no ablation {name!r}; {nearest(name, list(ABLATIONS))}")
    return ABLATIONS[name](SCALES[scale]())
