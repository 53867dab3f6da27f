"""What a run was trained to do, for how long and on what, in one sentence."""

from collections.abc import Sequence
from typing import Any

from mm1.config.run import RunConfig
from mm1.objectives.index import objective_of
from mm1.report.mix import SourceTotals


def summary(run: RunConfig, records: Sequence[dict[str, Any]], mix: Sequence[SourceTotals]) -> str:
    """The sentence, without the name of the run that it begins with."""
    steps = [record for record in records if "loss" in record]
    minutes = sum(step.get("step_seconds", 0) for step in steps) / 60
    objective = objective_of(run)
    images, trained = (sum(source.counts[unit] for source in mix) for unit in ("images", "tokens"))
    seen = [_counted(images, "picture", "pictures")] if images else []
    seen.append(_counted(trained, f"trained {objective.unit}", f"trained {objective.units}"))
    sources = [source.source.replace("/", ": ") for source in mix if source.counts["sequences"]]
    of = f" of {_joined(sources)}" if sources else ""
    done = f"{_counted(len(steps), 'step', 'steps')} in {minutes:.1f} minutes"
    return f"{objective.learns}, after {done} with {_joined(seen)}{of}."


def _counted(count: int, singular: str, plural: str) -> str:
    return f"{count:,} {singular if count == 1 else plural}"


def _joined(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)
