"""An ablation from its name to its page: say what will be trained, train and score it, compare."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Column, Table

from mm1.ablate.comparison import compare_arms, sentence
from mm1.ablate.costs import DEVICES, Cost, Devices, predict
from mm1.ablate.measures import all_measures, write_results
from mm1.ablate.page import FORMATS, write_page
from mm1.ablate.plan import Plan, is_planned, load_plan, make_plan, save_plan
from mm1.ablate.runner import run_all
from mm1.cluster import Runner
from mm1.recipes.ablations.index import ablation
from mm1.train.log import console


@dataclass(frozen=True, slots=True)
class Request:
    """Which ablation, at which scale, with how many seeds, with which changes to all arms, in which folder."""

    name: str
    scale: str
    seeds: int
    assignments: tuple[str, ...]
    folder: Path

    def plan(self) -> Plan:
        """All that will be trained.

        Raises:
            ConfigError: there is no such ablation, or an assignment that is no override of its stages.
        """
        return make_plan(
            ablation(self.name, self.scale),
            self.folder,
            seeds=self.seeds,
            assignments=self.assignments,
            scale=self.scale,
        )


def run_ablation(request: Request, *, runner: Runner, dry_run: bool) -> dict[str, str]:
    """Print what `request` takes, then do it unless it is a dry run; the message of each run that failed.

    A stopped ablation is continued, and nothing is predicted again.
    """
    plan, devices = request.plan(), DEVICES[request.scale]
    if not dry_run and is_planned(plan, request.folder):
        done = sum(len(of_arm) for of_arm in all_measures(plan, request.folder).values())
        console.print(f"{plan.name} continues: {done} of {len(plan.arms) * len(plan.seeds)} runs of arms are done")
    else:
        for part in announcement(plan, predict(plan, devices), devices):
            console.print(part, highlight=False, soft_wrap=True)
    if dry_run:
        return {}
    save_plan(plan, request.folder)
    failed = run_all(plan, request.folder, runner=runner)
    write_results(plan, request.folder)
    for name, reason in failed.items():
        console.print(f"failed: {name}: {reason}", highlight=False, soft_wrap=True)
    if any(all_measures(plan, request.folder).values()):
        console.print(sentence(compare_arms(plan, request.folder)), highlight=False)
        console.print(f"page: {write_page(plan, request.folder, failed)}", highlight=False, soft_wrap=True)
    return failed


def print_table(folder: Path, form: str) -> None:
    """Print the table of the runs in `folder` that are finished, as `csv` or `latex`.

    Raises:
        ValueError: there is no ablation, or no run of it is finished.
    """
    sys.stdout.write(FORMATS[form](compare_arms(load_plan(folder), folder)))


def announcement(plan: Plan, costs: dict[str, Cost], devices: Devices) -> Sequence[str | Table]:
    """What will be trained: arms with their differences and time, then the sums."""
    per_hour, unit = (60, "minutes") if devices.kind == "cpu" else (1, "GPU-hours")
    times = {name: cost.hours * per_hour for name, cost in costs.items()}
    table = Table("arm", Column("differs from the base in", overflow="fold"), Column(f"{unit} a run", justify="right"))
    for arm in plan.arms:
        table.add_row(arm.name, arm.difference, f"{times[arm.runs[0]]:,.1f}")
    stages = [name for name, one in plan.runs.items() if not one.scored]
    shared = ", ".join(f"{name} ({times[name]:,.1f} {unit})" for name in stages) or "none that is trained here"
    where = "this machine" if devices.kind == "cpu" else f"{devices.count} x {devices.kind}"
    total, memory = sum(times.values()), max(cost.memory for cost in costs.values())
    return (
        f"{plan.name}: {plan.question}",
        table,
        f"stages that arms start from: {shared}",
        f"{len(plan.runs)} runs: {len(plan.arms)} arms x {len(plan.seeds)} seeds and {len(stages)} stages",
        f"predicted for {where}: {total:,.0f} {unit} of training, at most {memory / 1e9:.1f} GB of memory; "
        "scoring comes on top",
    )
