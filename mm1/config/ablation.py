"""The record of an ablation: a base run, and arms that each differ from it in named fields."""

from dataclasses import dataclass

from mm1.config.base import ConfigError
from mm1.config.run import RunConfig, override


@dataclass(frozen=True, slots=True)
class Arm:
    """One choice: `changes` are fields of the base run as on the command line, `model.connector.tokens=4`."""

    name: str
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ablation:
    """Runs that answer one `question`.

    `stages` are trained once, in order, in folders named after their recipes; `base` and the arms start from them.
    """

    name: str
    question: str
    stages: tuple[RunConfig, ...]
    base: RunConfig
    arms: tuple[Arm, ...]

    def runs(self) -> dict[str, RunConfig]:
        """The run of each arm by the arm's name, the base first.

        Raises:
            ConfigError: two arms of one name, or an arm that changes a field that does not exist.
        """
        arms = (Arm("base"), *self.arms)
        names = [arm.name for arm in arms]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"ablation {self.name} has more than one arm named {repeated[0]!r}; rename one")
        return {arm.name: override(self.base, [*arm.changes]) for arm in arms}
