"""One HTML page of a run: its config, how it learned, what it can do, and how sure that is.

The page holds everything it shows (styles, drawings, pictures), so it can be sent by mail.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mm1.config import run as config
from mm1.config.run import RunConfig
from mm1.disk import write_whole
from mm1.eval.results import Results, read_results
from mm1.objectives.index import objective_of
from mm1.report import figures
from mm1.report.findings import Finding, by_task, findings, format_interval
from mm1.report.mix import UNITS, SourceTotals, source_totals
from mm1.report.progress import incidents, marked_steps, progress, series
from mm1.report.samples import SampleGroup, sample_answers
from mm1.report.summary import summary
from mm1.report.templates import load_template
from mm1.train.log import last_validation, read_metrics

MEDIANS = (
    ("tokens_per_second", "tokens per second", "{:,.0f}"),
    ("images_per_second", "images per second", "{:,.0f}"),
    ("mfu", "MFU", "{:.1%}"),
    ("mfu/vision", "MFU of pictures", "{:.1%}"),
    ("padding", "padding", "{:.1%}"),
    ("data_wait", "waiting for data", "{:.1%}"),
)
"""Metrics whose median over steps is shown: key, name on the page, format."""


@dataclass(frozen=True, slots=True)
class Training:
    """How a run learned."""

    loss: Markup
    progress: Markup
    incidents: list[str]
    held_out: dict[str, float]  # the last validation loss of each store
    mix: list[SourceTotals]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a run can do."""

    results: Results
    findings: list[Finding]
    gains: Markup  # empty if nothing was asked at two numbers of shots
    drawings: list[Markup]
    samples: list[list[SampleGroup]]  # of each task

    @property
    def opening(self) -> list[SampleGroup]:
        """The good and the bad answers of the first task whose pictures can still be read."""
        first = self.samples[0] if self.samples else []
        return [group for group in first if any(sample.picture for sample in group.samples)]


@dataclass(frozen=True, slots=True)
class RunSection:
    """One run as the page shows it."""

    name: str
    run: RunConfig
    summary: str
    facts: list[tuple[str, str]]
    training: Training
    evaluation: Evaluation

    @property
    def trained_units(self) -> str:
        """What the run is trained on, in the plural."""
        return objective_of(self.run).units

    @property
    def share_unit(self) -> str:
        """What the shares in the config count."""
        return UNITS[self.run.data.unit]


def report(folder: Path, others: Sequence[Path] = ()) -> Path:
    """Write `report.html` of the run in `folder`, and return its path. Runs in `others` get a section each.

    Sections stand in the order the runs were trained, as their `start_from` fields tell.

    Raises:
        ConfigError: a folder holds no run.
    """
    folders = _in_order([folder, *others])
    sections = [_section(each) for each in folders]
    template = load_template("page.html", count=_count, interval=format_interval, percent=lambda share: f"{share:.1%}")
    path = folder / "report.html"
    write_whole(path, template.render(main=sections[folders.index(folder)], sections=sections))
    return path


def _in_order(folders: Sequence[Path]) -> list[Path]:
    """The folders, each after those among them that it starts from."""
    starts = {
        folder.resolve(): {Path(start).resolve() for start in config.load(folder / "config.json").start_from.values()}
        for folder in folders
    }

    def depth(folder: Path) -> int:
        return max((1 + depth(start) for start in starts[folder] if start in starts), default=0)

    return sorted(dict.fromkeys(folders), key=lambda folder: depth(folder.resolve()))


def _section(folder: Path) -> RunSection:
    run, records = config.load(folder / "config.json"), read_metrics(folder)
    training = _training(folder, run, records)
    return RunSection(
        name=folder.name,
        run=run,
        summary=summary(run, records, training.mix) if records else "",
        facts=_facts(run, records),
        training=training,
        evaluation=_evaluation(folder),
    )


def _training(folder: Path, run: RunConfig, records: Sequence[dict[str, Any]]) -> Training:
    return Training(
        loss=Markup(_loss_figure(folder, run, records)) if records else Markup(""),
        progress=Markup(progress(folder.name, records, marked=marked_steps(folder, records))),
        incidents=incidents(folder, records),
        held_out=last_validation(records),
        mix=source_totals(run, records),
    )


def _evaluation(folder: Path) -> Evaluation:
    results = read_results(folder / "eval")
    of_tasks = by_task(results)
    few_shot = {task: cells for task, cells in of_tasks.items() if cells[-1].gain is not None}
    return Evaluation(
        results=results,
        findings=findings(results),
        gains=Markup(figures.gains(f"{folder.name}-gains", few_shot)) if few_shot else Markup(""),
        drawings=[
            Markup(figures.scores(f"{folder.name}-{task}", cells)) for task, cells in of_tasks.items() if len(cells) > 1
        ],
        samples=[sample_answers(folder / "eval", cells[-1]) for cells in of_tasks.values()],
    )


def _facts(run: RunConfig, records: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    model, data = run.model, run.data
    steps = [record for record in records if "loss" in record]
    facts = [
        ("recipe", run.recipe or "-"),
        ("objective", run.objective.replace("_", " ")),
        ("encoder", f"ViT {model.vision.width} x {model.vision.layers}, {model.vision.image_size} px"),
        ("connector", f"{model.connector.kind.replace('_', '-')}, {model.connector.tokens} tokens an image"),
        ("decoder", f"{model.decoder.width} x {model.decoder.layers}, vocabulary {model.decoder.vocabulary:,}"),
        ("batch", f"{run.batch_size} sequences of {data.sequence_length:,} positions"),
        ("frozen", ", ".join(run.frozen) or "nothing"),
        ("starts from", ", ".join(f"{part}: {Path(path).name}" for part, path in run.start_from.items()) or "-"),
        ("steps", f"{int(steps[-1]['step']) if steps else 0:,} of {run.steps:,}"),
    ]
    return facts + (_measured_facts(steps) if steps else [])


def _measured_facts(steps: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    facts = [
        ("loss", f"{steps[0]['loss']:.3f} to {steps[-1]['loss']:.3f}"),
        ("peak learning rate", f"{max(step.get('learning_rate', 0) for step in steps):.2e}"),
    ]
    seconds = sum(step.get("step_seconds", 0) for step in steps)
    if seconds:
        facts += [("time in steps", f"{seconds / 60:.1f} min")]
    for key, name, shape in MEDIANS:
        values = sorted(step[key] for step in steps if key in step)
        if values:
            facts += [(f"{name}, median", shape.format(values[len(values) // 2]))]
    memory = [step["memory_gib"] for step in steps if "memory_gib" in step]
    return facts + ([("peak memory", f"{max(memory):.1f} GiB")] if memory else [])


def _loss_figure(folder: Path, run: RunConfig, records: Sequence[dict[str, Any]]) -> str:
    sources = [source for source in run.data.sources if any(f"loss/{source}" in record for record in records)]
    curves = {source: series(records, f"loss/{source}") for source in sources}
    held_out = {name: points for name in run.data.validation if (points := series(records, f"validation/{name}"))}
    return figures.losses(
        folder.name,
        curves or {"loss": series(records, "loss")},
        held_out=held_out,
        unit=_trained_unit(run),
        marked=marked_steps(folder, records),
    )


def _trained_unit(run: RunConfig) -> str:
    """What the run is trained on and what its loss is an average over."""
    return objective_of(run).unit


def _count(number: float) -> str:
    return f"{number:,.0f}".replace(",", "\u202f")
