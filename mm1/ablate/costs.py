"""What an ablation will take, predicted run by run from the budget: hours and memory. Scoring is not included."""

from dataclasses import dataclass

import torch

from mm1.ablate.plan import Plan
from mm1.budget.hardware import GPUS, measure_cpu
from mm1.budget.planner import Budget, Planner
from mm1.budget.report import choose_budget, shapes_of
from mm1.config.run import RunConfig
from mm1.train.log import console


@dataclass(frozen=True, slots=True)
class Devices:
    """What each run gets: a kind of GPU and how many, or `cpu`, this machine."""

    kind: str = "cpu"
    count: int = 1


DEVICES = {"tiny": Devices("cpu", 1), "paper": Devices("h100", 64)}
"""What costs are predicted for, by scale."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The predicted cost of one run; `hours` are those of all its devices together."""

    hours: float
    memory: float  # bytes of a device


def predict(plan: Plan, devices: Devices) -> dict[str, Cost]:
    """The cost of each run of the plan, by its folder."""
    costs: dict[str, Cost] = {}
    known: dict[str, Budget] = {}
    hardware = None
    with console.status("predicting time and memory") as status:
        for name, one in plan.runs.items():
            run, key = one.run, _deciding(one.run)
            if key not in known:
                status.update(f"predicting time and memory: {len(known) + 1} kinds of run")
                if hardware is None:
                    hardware = measure_cpu(shapes_of(run), ranks=1) if devices.kind == "cpu" else GPUS[devices.kind]
                precision = torch.float32 if devices.kind == "cpu" else torch.bfloat16
                known[key] = choose_budget(Planner(run, hardware, precision=precision), devices.count)
            step = known[key].step_seconds
            costs[name] = Cost(step * run.steps / 3600 * devices.count, known[key].bytes)
    return costs


def _deciding(run: RunConfig) -> str:
    """All of a run that decides the time of a step."""
    kept = {"objective", "model", "batch_size", "micro_batch_size", "frozen", "parallel", "pixels"}
    data = run.data
    return run.model_dump_json(include=kept) + f"{data.sequence_length} {data.max_images} {run.optim.kind}"
