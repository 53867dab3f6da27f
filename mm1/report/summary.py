"""What a run was trained to do, for how long and on what, in one sentence."""

from collections.abc import Sequence
from typing import Any

from mm1.config.run import RunConfig
from mm1.objectives.index import objective_of
from mm1.report.mix import SourceTotals

LEARNS = {
    "next_token": "writes the next token of texts and pages with pictures",
    "contrastive": "tells which text belongs to which picture",
    "contrastive_sigmoid": "tells which text belongs to which picture",
    "autoregressive_pixels": "predicts the next patch of a picture",
}


def summary(run: RunConfig, records: Sequence[dict[str, Any]], mix: Sequence[SourceTotals]) -> str:
    """The sentence, without the name of the run that it begins with."""
    steps = [record for record in records if "loss" in record]
    minutes = sum(step.get("step_seconds", 0) for step in steps) / 60
    images, trained = (sum(source.counts[unit] for source in mix) for unit in ("images", "tokens"))
    seen = f"{images:,} pictures and {trained:,} trained {objective_of(run).unit}s" if images else f"{trained:,} tokens"
    sources = [source.source.replace("/", ": ") for source in mix if source.counts["sequences"]]
    of = f" of {_joined(sources)}" if sources else ""
    return f"{LEARNS[run.objective]}, after {len(steps):,} steps in {minutes:.1f} minutes with {seen}{of}."


def _joined(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)
