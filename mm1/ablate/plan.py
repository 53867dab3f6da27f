"""What an ablation will train: every run with its folder, written to `ablation.json`.

`ablation.json` of an ablation's folder has

    name, question, scale   as in the recipe
    base                    the name of the base arm, which is also the first of `arms`
    seeds                   [0, 1, 2]
    stages                  names of the stages, in order
    evaluation              tasks, shots, limit, seed, data
    arms                    one record each: name; changes, {"STAGE:FIELD": value} of all fields that differ from the
                            base; parameters (of the decoder without embeddings) and learning_rate (its peak), both of
                            the last stage; group and at, for the figure; runs, {seed: folder in `runs`}
    runs                    by folder: stage, needs (folders of the runs it starts from), scored, and config, without
                            the fields that have their default

The scores of the arms stand beside it in `results.csv` (ablate/measures.py).
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mm1.config.ablation import STAGE, Ablation, Arm, Evaluation, changes_by_stage
from mm1.config.base import ConfigError
from mm1.config.run import RunConfig, differences, override, parse
from mm1.disk import write_whole
from mm1.model.sizes import non_embedding_parameters
from mm1.scaling import peak_rate
from mm1.train.run import decides, deciding_differences

FILE = "ablation.json"


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One training. `needs` are the folders that it starts from; `scored` says whether it is evaluated."""

    stage: str
    run: RunConfig
    needs: tuple[str, ...]
    scored: bool


@dataclass(frozen=True, slots=True)
class PlannedArm:
    """One arm: its differences from the base by `STAGE:FIELD`, its numeric facts, the folder of each seed's run."""

    name: str
    changes: dict[str, Any]
    parameters: int
    learning_rate: float
    runs: dict[int, str]
    group: str = ""
    at: float | None = None

    @property
    def difference(self) -> str:
        """The differences as one line of text."""
        return ", ".join(f"{field}={_short(value)}" for field, value in self.changes.items()) or "the base"


@dataclass(frozen=True, slots=True)
class Plan:
    """All runs of an ablation, by folder, each after those it needs."""

    name: str
    question: str
    scale: str
    seeds: tuple[int, ...]
    stages: tuple[str, ...]
    evaluation: Evaluation
    axis: str
    arms: tuple[PlannedArm, ...]
    runs: dict[str, PlannedRun]

    @property
    def base(self) -> PlannedArm:
        return self.arms[0]


def make_plan(
    ablation: Ablation, folder: Path, *, seeds: int, assignments: Sequence[str] = (), scale: str = ""
) -> Plan:
    """The runs of `ablation` in `folder`, with `assignments` (`steps=20`, `encoder:steps=20`) applied to all arms.

    Raises:
        ConfigError: an arm or an assignment that is no override of its run, two arms of one name, or two that are the
            same run.
    """
    arms = (ablation.base, *ablation.arms)
    names = [_folder_name(arm.name) for arm in arms]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"ablation {ablation.name} has more than one arm named {repeated[0]!r}; rename one")
    builder = _Builder(ablation, folder, tuple(assignments))
    runs: dict[str, dict[int, str]] = {arm.name: {} for arm in arms}
    for seed in range(seeds):  # the outer loop: a stopped ablation has all arms of the first seeds
        for arm in arms:
            runs[arm.name][seed] = builder.add(arm, seed)
    planned = tuple(_planned_arm(builder, arm, runs[arm.name]) for arm in arms)
    stages = tuple(stage.name for stage in ablation.stages)
    return Plan(
        ablation.name,
        ablation.question,
        scale,
        tuple(range(seeds)),
        stages,
        ablation.evaluation,
        ablation.axis,
        planned,
        builder.runs,
    )


class _Builder:
    """The runs so far; equal stages of several arms become one run."""

    def __init__(self, ablation: Ablation, folder: Path, assignments: tuple[str, ...]):
        self.ablation, self.folder = ablation, folder
        self.names = [stage.name for stage in ablation.stages]
        self._assigned = changes_by_stage(assignments, self.names, default=self.names)
        self.runs: dict[str, PlannedRun] = {}
        self._arm_of: dict[str, str] = {}  # digest of a scored run -> its arm

    def configs(self, arm: Arm) -> dict[str, RunConfig]:
        """The run of each stage of an arm, with starts as the recipe names them."""
        changes = changes_by_stage(arm.changes, self.names, default=self.names[-1:])
        try:
            return {
                stage.name: override(stage.run, [*changes[stage.name], *self._assigned[stage.name]])
                for stage in self.ablation.stages
            }
        except ConfigError as error:
            raise ConfigError(f"arm {arm.name}: {error}") from None

    def add(self, arm: Arm, seed: int) -> str:
        """The folder of the scored run of an arm; it and all that it starts from are in `runs` after this call."""
        folder, digest = self._add(self.configs(arm), self.names[-1], arm=arm, seed=seed)
        other = self._arm_of.setdefault(digest, arm.name)
        if other != arm.name:
            raise ConfigError(f"arms {other} and {arm.name} are the same run; leave one out or change it")
        return folder

    def _add(self, configs: dict[str, RunConfig], stage_name: str, *, arm: Arm, seed: int) -> tuple[str, str]:
        """Folder and digest of one stage of an arm; the digest is of all that decides the stage's weights."""
        scored = stage_name == self.names[-1]
        stage = self.ablation.stages[self.names.index(stage_name)]
        run = configs[stage_name].model_copy(deep=True)
        if stage.seeded:
            run.seed += seed
        starts, needs, digests = dict(run.start_from), [], []
        for part, start in run.start_from.items():
            if start.startswith(STAGE):
                started = self._earlier(start.removeprefix(STAGE), stage_name)
                needed, digest = self._add(configs, started, arm=arm, seed=seed)
                needs.append(needed)
                digests.append(digest)
                starts[part] = str(self.folder / needed)
        content = [_deciding(run), digests]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        run.start_from = starts
        folder = f"arms/{_folder_name(arm.name)}/seed-{seed}" if scored else f"stages/{stage_name}-{digest[:8]}"
        self.runs.setdefault(folder, PlannedRun(stage_name, run, tuple(needs), scored))
        return folder, digest

    def _earlier(self, name: str, before: str) -> str:
        earlier = self.names[: self.names.index(before)]
        if name not in earlier:
            raise ConfigError(f"stage {before!r} starts from {STAGE}{name}; stages before it: {', '.join(earlier)}")
        return name


def _planned_arm(builder: _Builder, arm: Arm, runs: dict[int, str]) -> PlannedArm:
    base, ours = builder.configs(builder.ablation.base), builder.configs(arm)
    used = {builder.runs[folder].stage for folder in _with_needs(builder.runs, runs[0])}
    changes = {}
    for stage in builder.names:
        for field, (_, value) in differences(base[stage], ours[stage]).items() if stage in used else ():
            if field != "start_from":  # it is {} where nothing is left to start from; then its parts are named too
                changes[field if stage == builder.names[-1] else f"{stage}:{field}"] = value
    last = ours[builder.names[-1]]
    parameters = non_embedding_parameters(last.model.decoder)
    return PlannedArm(
        name=arm.name,
        changes=changes,
        parameters=parameters,
        learning_rate=peak_rate(last.optim.learning_rate, parameters),
        runs=runs,
        group=arm.group,
        at=arm.at,
    )


def _with_needs(runs: dict[str, PlannedRun], folder: str) -> list[str]:
    return [folder, *(deeper for need in runs[folder].needs for deeper in _with_needs(runs, need))]


def save_plan(plan: Plan, folder: Path) -> None:
    """Write `ablation.json`.

    Raises:
        ConfigError: the folder holds runs of another config, which are named; nothing is written.
    """
    if (folder / FILE).is_file():
        _check_same_runs(load_plan(folder), plan, folder)
    data = asdict(plan) | {"base": plan.base.name}
    data["runs"] = {
        name: {
            "stage": one.stage,
            "needs": one.needs,
            "scored": one.scored,
            "config": one.run.model_dump(mode="json", exclude_defaults=True),
        }
        for name, one in plan.runs.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FILE, json.dumps(data, indent=1) + "\n")


def is_planned(plan: Plan, folder: Path) -> bool:
    """Whether `folder` is of this plan already."""
    return (folder / FILE).is_file() and load_plan(folder) == plan


def load_plan(folder: Path) -> Plan:
    """The plan in `folder/ablation.json`.

    Raises:
        ConfigError: there is none.
    """
    path = folder / FILE
    if not path.is_file():
        raise ConfigError(f"no ablation at {folder}: it has no {FILE}; `mm1 ablate NAME --to {folder}` makes one")
    data = json.loads(path.read_text())
    runs = {
        name: PlannedRun(one["stage"], parse(one["config"]), tuple(one["needs"]), one["scored"])
        for name, one in data["runs"].items()
    }
    arms = [{**arm, "runs": {int(seed): name for seed, name in arm["runs"].items()}} for arm in data["arms"]]
    tuples: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in data["evaluation"].items()
    }
    return Plan(
        data["name"],
        data["question"],
        data["scale"],
        tuple(data["seeds"]),
        tuple(data["stages"]),
        Evaluation(**tuples),
        data["axis"],
        tuple(PlannedArm(**arm) for arm in arms),
        runs,
    )


def _check_same_runs(there: Plan, now: Plan, folder: Path) -> None:
    for name in there.runs.keys() & now.runs.keys():
        lines = deciding_differences(there.runs[name].run, now.runs[name].run)
        if lines and (folder / name / "config.json").exists():
            raise ConfigError(
                f"{folder} holds another ablation: the run {name} differs:\n{lines}\n"
                "Use another --to folder, or remove this one."
            )


def _deciding(run: RunConfig) -> dict[str, Any]:
    """The config of a run without fields that decide nothing of its weights, and without those that have their default:
    a field that a later version adds must not make it another run."""
    content = run.model_dump(mode="json", exclude_defaults=True)
    content = {name: value for name, value in content.items() if decides(name)}
    content["data"] = {name: value for name, value in content.get("data", {}).items() if decides(f"data.{name}")}
    return content


def _folder_name(name: str) -> str:
    """An arm's name with nothing that a file system or a shell would read otherwise."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-")


def _short(value: Any) -> str:
    """A value as it would stand on the command line."""
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)
