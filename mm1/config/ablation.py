"""The record of an ablation: stages of training, and arms that each differ from the base in named fields."""

from dataclasses import dataclass

from mm1.config.base import ConfigError, nearest
from mm1.config.run import RunConfig

STAGE = "stage:"
"""What a `start_from` begins with if it is a stage of the same ablation: `start_from={"vision": "stage:encoder"}`."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One training on the way to the model that is scored.

    `seeded` says whether it is trained once per seed. Stages that are not have the seed of their `run`, and arms whose
    stage is the same share one training of it.
    """

    name: str
    run: RunConfig
    seeded: bool = False


@dataclass(frozen=True, slots=True)
class Arm:
    """One choice. `changes` are fields as on the command line, `model.connector.tokens=4`, of the last stage;
    `encoder:steps=300` is a field of the stage `encoder`.

    In the figure, arms of one `group` have one colour, and stand at the number `at` of the horizontal axis if it is
    given.
    """

    name: str
    changes: tuple[str, ...] = ()
    group: str = ""
    at: float | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How each arm is scored: tasks as in `mm1 eval --tasks`, at these numbers of shots, with `limit` queries a task.

    Without tasks, arms are compared by their held-out losses alone.
    """

    tasks: tuple[str, ...] = ("captions", "easy_vqa_plain")
    shots: tuple[int, ...] = (0, 4, 8)
    limit: int = 100
    seed: int = 0
    data: str = ""


@dataclass(frozen=True, slots=True)
class Ablation:
    """Runs that answer one `question`.

    Each arm trains `stages` in order, with its changes, and the model of the last stage is scored. `axis` names the
    numbers `at` which arms stand in the figure.
    """

    name: str
    question: str
    stages: tuple[Stage, ...]
    arms: tuple[Arm, ...]
    base: Arm = Arm("base")
    evaluation: Evaluation = Evaluation()
    axis: str = ""


def changes_by_stage(changes: tuple[str, ...], stages: list[str], *, default: list[str]) -> dict[str, list[str]]:
    """Which of `changes` each stage gets, without the stage's name; those that name no stage go to `default`.

    Raises:
        ConfigError: a change names a stage that does not exist.
    """
    by_stage: dict[str, list[str]] = {stage: [] for stage in stages}
    for change in changes:
        name, colon, _ = change.partition("=")[0].partition(":")
        if not colon:
            for stage in default:
                by_stage[stage].append(change)
        elif name in by_stage:
            by_stage[name].append(change.removeprefix(f"{name}:"))
        else:
            raise ConfigError(f"no stage {name!r} for {change!r}; {nearest(name, stages)}")
    return by_stage
