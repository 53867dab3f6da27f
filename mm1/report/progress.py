"""How a run went, from its records: gradients, learning rate, speed, waiting, memory, layers; and what went wrong."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm1.report import figures
from mm1.report.figures import Marks, Panel
from mm1.train.guard import read_spikes

Records = Sequence[dict[str, Any]]


def series(records: Records, key: str) -> list[tuple[int, float]]:
    """The (step, value) pairs of a figure where it was recorded and is finite."""
    return [(record["step"], record[key]) for record in records if math.isfinite(record.get(key, math.nan))]


def marks(folder: Path, records: Records) -> Marks:
    """The steps that were passed over, and those where the loss had a spike."""
    return Marks(
        skipped=[record["step"] for record in records if "skipped" in record],
        rewound=[spike.step for spike in read_spikes(folder)],
    )


def incidents(folder: Path, records: Records) -> list[str]:
    """Sentences about steps that did not teach; none where all did."""
    said = [
        f"Step {spike.step}: loss {spike.loss:.3f}, where {spike.usual:.3f} was usual and {spike.limit:.3f} the limit. "
        f"The run went back, and steps {spike.first} to {spike.step} were passed over."
        for spike in read_spikes(folder)
    ]
    broken = [str(record["step"]) for record in records if "skipped" in record and not _is_whole(record)]
    if broken:
        said.append(f"Passed over, without a finite loss or gradient: step {', '.join(broken)}.")
    return said


def _is_whole(record: dict[str, Any]) -> bool:
    """Whether loss and gradient were finite: only such figures are on record."""
    return {"loss", "gradient_norm"} <= record.keys()


def progress(name: str, records: Records, *, marked: Marks) -> str:
    """SVG of how the run went; empty where nothing of it is on record."""
    parts = _endings(records, "gradient_norm/")
    sites = [name.removesuffix("/rms") for name in _endings(records, "health/") if name.endswith("/rms")]
    asked = [
        ("gradient norm", {"whole": "gradient_norm"} | {part: f"gradient_norm/{part}" for part in parts}, "log"),
        ("learning rate", {"": "learning_rate"}, ""),
        ("tokens per second", {"": "tokens_per_second"}, ""),
        ("MFU", {"content": "mfu", "pictures": "mfu/vision", "with padding": "hfu"}, "%"),
        ("waiting for data", {"": "data_wait"}, "%"),
        ("peak memory, GiB", {"": "memory_gib"}, ""),
        ("RMS of what layers give", {site: f"health/{site}/rms" for site in sites}, "log"),
        ("share of huge values", {site: f"health/{site}/huge" for site in sites}, "%"),
    ]
    drawn = []
    for title, keys, scale in asked:
        curves = {label: found for label, key in keys.items() if (found := series(records, key))}
        if curves:
            drawn.append(Panel(title, curves, logarithmic=scale == "log", percent=scale == "%"))
    return figures.panels(f"{name}-progress", drawn, marks=marked) if drawn else ""


def _endings(records: Records, start: str) -> list[str]:
    """What follows `start` in the names of figures, in their order."""
    names = dict.fromkeys(key for record in records for key in record if key.startswith(start))
    return [key.removeprefix(start) for key in names]
