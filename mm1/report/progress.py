"""How training went, from a run's records: gradients, learning rate, speed, data wait, memory, layers, incidents."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm1.report import figures
from mm1.report.figures import MarkedSteps, Panel
from mm1.train.guard import read_spikes

Records = Sequence[dict[str, Any]]


def series(records: Records, key: str) -> list[tuple[int, float]]:
    """The (step, value) pairs of a metric, where it was recorded and is finite."""
    return [(record["step"], record[key]) for record in records if math.isfinite(record.get(key, math.nan))]


def marked_steps(folder: Path, records: Records) -> MarkedSteps:
    """The steps that the run skipped, and those where the loss had a spike."""
    return MarkedSteps(
        skipped=[record["step"] for record in records if "skipped" in record],
        rewound=[spike.step for spike in read_spikes(folder)],
    )


def incidents(folder: Path, records: Records) -> list[str]:
    """One sentence for each spike of the loss, and one for all steps without finite numbers; empty if all went well."""
    sentences = [
        f"Step {spike.step}: loss {spike.loss:.3f}, where {spike.usual:.3f} was usual and {spike.limit:.3f} the limit. "
        f"The run went back and skipped steps {spike.first} to {spike.step}."
        for spike in read_spikes(folder)
    ]
    broken = [str(record["step"]) for record in records if "skipped" in record and not _is_finite(record)]
    if broken:
        sentences.append(f"Skipped, without a finite loss or gradient: step {', '.join(broken)}.")
    return sentences


def _is_finite(record: dict[str, Any]) -> bool:
    """Whether loss and gradient norm were finite: a record holds finite values only."""
    return {"loss", "gradient_norm"} <= record.keys()


def progress(name: str, records: Records, *, marked: MarkedSteps) -> str:
    """SVG of how training went, one panel per group of metrics; empty if nothing was recorded."""
    parts = _suffixes(records, "gradient_norm/")
    sites = [name.removesuffix("/rms") for name in _suffixes(records, "health/") if name.endswith("/rms")]
    groups = [
        ("gradient norm", {"whole": "gradient_norm"} | {part: f"gradient_norm/{part}" for part in parts}, "log"),
        ("learning rate", {"": "learning_rate"}, ""),
        ("tokens per second", {"": "tokens_per_second"}, ""),
        ("MFU", {"content": "mfu", "pictures": "mfu/vision", "HFU, with padding": "hfu"}, "%"),
        ("waiting for data", {"": "data_wait"}, "%"),
        ("peak memory, GiB", {"": "memory_gib"}, ""),
        ("RMS of layer outputs", {site: f"health/{site}/rms" for site in sites}, "log"),
        ("share of huge values", {site: f"health/{site}/huge" for site in sites}, "%"),
    ]
    panels = []
    for title, keys, scale in groups:
        curves = {label: points for label, key in keys.items() if (points := series(records, key))}
        if curves:
            panels.append(Panel(title, curves, logarithmic=scale == "log", percent=scale == "%"))
    return figures.panels(f"{name}-progress", panels, marked=marked) if panels else ""


def _suffixes(records: Records, prefix: str) -> list[str]:
    """What follows `prefix` in the names of metrics, in the order they first appear."""
    names = dict.fromkeys(key for record in records for key in record if key.startswith(prefix))
    return [key.removeprefix(prefix) for key in names]
