"""An ablation, run: its stages once, then every arm, and a table of their held-out losses."""

import json
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from mm1.config.ablation import Ablation
from mm1.config.run import RunConfig, differences, override
from mm1.disk import write_whole
from mm1.train.log import console, last_validation, read_metrics
from mm1.train.run import train_run


@dataclass(frozen=True, slots=True)
class Planned:
    """The runs of an ablation: stages by recipe, arms by name, each arm's differences from the base."""

    stages: dict[str, RunConfig]
    arms: dict[str, RunConfig]
    changes: dict[str, str]


def plan(ablation: Ablation, assignments: list[str]) -> Planned:
    """What `run_ablation` will train, with `assignments` (`steps=20`) applied to every stage and arm.

    Raises:
        ConfigError: an arm or an assignment that is no override of its run.
    """
    arms = {name: override(run, assignments) for name, run in ablation.runs().items()}
    changes = {
        name: ", ".join(f"{field}={new}" for field, (_, new) in differences(arms["base"], run).items())
        for name, run in arms.items()
    }
    return Planned({stage.recipe: override(stage, assignments) for stage in ablation.stages}, arms, changes)


def run_ablation(planned: Planned, folder: Path) -> dict[str, dict[str, float] | str]:
    """Each arm's held-out losses by validation store, or why it failed; also in `folder/ablation.json`.

    A run that is finished is not trained again, so the same call continues a stopped ablation. A failed arm stops no
    other.
    """
    for name, run in planned.stages.items():
        train_run(run, folder / "stages" / name)
    losses: dict[str, dict[str, float] | str] = {}
    for name, run in planned.arms.items():
        try:
            losses[name] = last_validation(read_metrics(train_run(run, folder / "arms" / name)))
        except (ValueError, RuntimeError, OSError, FloatingPointError) as error:
            losses[name] = f"{type(error).__name__}: {error}"
            console.print(f"arm {name} failed: {error}", highlight=False)
        write_whole(folder / "ablation.json", json.dumps(losses, indent=1) + "\n")
    return losses


def table(planned: Planned, losses: dict[str, dict[str, float] | str] | None = None) -> Table:
    """Arms and their differences from the base, with their losses where there are some."""
    stores = sorted({store for values in (losses or {}).values() if isinstance(values, dict) for store in values})
    shown = Table(*("arm", "differs from the base in", *stores))
    for name, changes in planned.changes.items():
        values = (losses or {}).get(name)
        if isinstance(values, str):
            cells = [values[:60]] * bool(stores)
        else:
            cells = [f"{values[store]:.4f}" if values and store in values else "" for store in stores]
        shown.add_row(name, changes, *cells)
    return shown
