"""One HTML page of a run: what it was, how it learned, what it can do, and how sure that is.

The page holds everything it shows (styles, drawings, pictures), so it can be mailed. Sentences about
results are computed from intervals; where an interval holds zero they say that nothing is shown.
"""

import base64
import io
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from PIL import Image as Pillow

from mm1.config import run as config
from mm1.config.model import VisionConfig
from mm1.config.run import RunConfig
from mm1.data.image import UNREADABLE
from mm1.disk import write_whole
from mm1.eval.caption_loss import CaptionLoss
from mm1.eval.fewshot import Example
from mm1.eval.harness import Cell, Results, load_task, read_answers, read_results
from mm1.report import figures
from mm1.report.figures import Marks
from mm1.report.progress import incidents, marks, progress, series
from mm1.train.log import read_metrics

SAMPLES = 6
"""Answers shown of each kind."""

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class Share:
    """What a source really gave to a run."""

    source: str
    asked: float  # share in the config: of rows, or of tokens where data.unit says so
    rows: int
    rows_share: float
    tokens: int  # trained tokens, or pairs of a contrastive run
    tokens_share: float
    images: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer of the model, with the picture it is about where the task can be read again."""

    picture: str  # a data: URI, or empty
    question: str
    answer: str
    references: tuple[str, ...]
    blind: str | None
    score: float


@dataclass(slots=True)
class Stage:
    """One run as the page shows it."""

    name: str
    folder: Path
    run: RunConfig
    main: bool
    unit: str  # what is trained and what the loss is per: token or pair
    facts: list[tuple[str, str]]
    curves: Markup
    progress: Markup
    incidents: list[str]
    held_out: dict[str, float]
    mix: list[Share]
    results: Results
    findings: list[str] = field(default_factory=list)
    drawings: list[Markup] = field(default_factory=list)
    samples: list[tuple[str, list[Sample]]] = field(default_factory=list)


def report(run: Path, others: Sequence[Path] = ()) -> Path:
    """Write `run/report.html` and return its path. `others` are linked runs: each becomes a stage.

    Stages stand in the order they were trained, as their `start_from` fields tell.

    Raises:
        ConfigError: a folder that is no run.
    """
    stages = [_stage(folder, main=folder == run) for folder in _in_order([run, *others])]
    environment = Environment(
        loader=PackageLoader("mm1.report", "."),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": _count, "interval": interval, "percent": lambda share: f"{share:.1%}"}
    main = next(stage for stage in stages if stage.main)
    page = environment.get_template("page.html").render(main=main, stages=stages)
    target = run / "report.html"
    write_whole(target, page)
    return target


def interval(found: Any, sign: bool = False) -> str:
    """`12.3 [10.1, 14.5]`, or a dash."""
    if found is None or math.isnan(found.mean):
        return "-"
    shape = "+.1f" if sign else ".1f"
    return f"{found.mean:{shape}} [{found.low:{shape}}, {found.high:{shape}}]".replace("-", MINUS)


def findings(results: Results) -> list[str]:
    """What the results show and what they don't, in sentences: a claim only where an interval excludes zero."""
    sentences = []
    for task in dict.fromkeys(cell.task for cell in results.cells):
        cells = [cell for cell in results.cells if cell.task == task]
        sentences += _gain_sentence(task, cells) + _looking_sentence(task, cells) + _prior_sentence(task, cells)
    return sentences + [_loss_sentence(loss) for loss in results.losses]


def realised_mix(run: RunConfig, records: Sequence[dict[str, Any]]) -> list[Share]:
    """Rows, trained tokens and pictures that each source gave, summed over the steps, with their shares."""
    names = [*run.data.sources]
    ends = [*(stage.step for stage in run.data.curriculum), run.steps]
    asked = dict.fromkeys(names, 0.0)
    for stage, end in zip(run.data.stages(), ends, strict=True):
        for name, share in stage.shares.items():
            part = max(0, min(end, run.steps) - stage.step) / run.steps
            asked[name] += part * share / sum(stage.shares.values())
    rows, tokens, images = (
        {name: int(sum(record.get(f"{what}/{name}", 0) for record in records)) for name in names}
        for what in ("rows", "tokens", "images")
    )
    return [
        Share(
            source=name,
            asked=asked[name],
            rows=rows[name],
            rows_share=rows[name] / max(1, sum(rows.values())),
            tokens=tokens[name],
            tokens_share=tokens[name] / max(1, sum(tokens.values())),
            images=images[name],
        )
        for name in names
    ]


def _gain_sentence(task: str, cells: list[Cell]) -> list[str]:
    most = cells[-1]
    if most.gain is None:
        return []
    fewest, change = cells[0].shots, f"{interval(most.gain, sign=True)} points"
    before = f"{task}, {most.shots} shots against {fewest}: {change}."
    if most.gain.above_zero:
        return [f"{before} The examples helped."]
    if most.gain.below_zero:
        return [f"{before} The examples did harm."]
    return [f"{before} The interval holds 0: whether examples help is not shown."]


def _looking_sentence(task: str, cells: list[Cell]) -> list[str]:
    tested = [cell for cell in cells if cell.difference is not None]
    if not tested:
        return [f"{task}: no blind run, so whether the model looks is not known."]
    sure = [cell for cell in tested if cell.difference and cell.difference.above_zero]
    listed = ", ".join(f"{interval(cell.difference, sign=True)} at {cell.shots} shots" for cell in tested)
    before = f"{task}, own picture against another one: {listed}."
    if len(sure) == len(tested):
        return [f"{before} The model looks at the picture."]
    if sure:
        at = " and ".join(str(cell.shots) for cell in sure)
        return [f"{before} The model looks at {at} shots; elsewhere that is not shown."]
    return [f"{before} That the model looks at the picture is not shown."]


def _prior_sentence(task: str, cells: list[Cell]) -> list[str]:
    best = max(cells, key=lambda cell: cell.score.mean)
    before = (
        f"{task}, best score {interval(best.score)} ({best.shots} shots); always answering "
        f"“{best.majority_answer}” scores {best.majority:.1f}, a random training answer {best.chance:.1f}."
    )
    if best.score.low > max(best.majority, best.chance):
        return [f"{before} The model is above both."]
    return [f"{before} The model is not surely above both."]


def _loss_sentence(loss: CaptionLoss) -> str:
    shown = f"{loss.margin.mean:+.3f} [{loss.margin.low:+.3f}, {loss.margin.high:+.3f}]".replace("-", MINUS)
    before = (
        f"{loss.task}, loss of the right text: {loss.right.mean:.3f} nats per token after its own picture, "
        f"{loss.wrong.mean:.3f} after another one ({shown})."
    )
    if loss.margin.above_zero:
        return f"{before} The picture informs the text."
    return f"{before} That the picture informs the text is not shown."


def _in_order(folders: Sequence[Path]) -> list[Path]:
    """The folders, each after those among them that it starts from."""
    starts = {
        folder.resolve(): {Path(start).resolve() for start in config.load(folder / "config.json").start_from.values()}
        for folder in folders
    }

    def depth(folder: Path) -> int:
        return max((1 + depth(start) for start in starts[folder] if start in starts), default=0)

    return sorted(dict.fromkeys(folders), key=lambda folder: depth(folder.resolve()))


def _stage(folder: Path, *, main: bool) -> Stage:
    run = config.load(folder / "config.json")
    records = read_metrics(folder)
    marked = marks(folder, records)
    results = read_results(folder / "eval")
    held_out = {
        name.removeprefix("validation/"): record[name]
        for record in records
        for name in record
        if name.startswith("validation/")
    }
    unit = "pair" if run.objective == "contrastive" else "token"
    tasks = list(dict.fromkeys(cell.task for cell in results.cells))
    by_task = {task: [cell for cell in results.cells if cell.task == task] for task in tasks}
    return Stage(
        name=folder.name,
        folder=folder,
        run=run,
        main=main,
        unit=unit,
        facts=_facts(run, records),
        curves=Markup(_curves(folder.name, run, records, unit=unit, marked=marked)) if records else Markup(""),
        progress=Markup(progress(folder.name, records, marked=marked)),
        incidents=incidents(folder, records),
        held_out=held_out,
        mix=realised_mix(run, records),
        results=results,
        findings=findings(results),
        drawings=[
            Markup(figures.scores(f"{folder.name}-{task}", cells)) for task, cells in by_task.items() if len(cells) > 1
        ],
        samples=[group for cells in by_task.values() for group in _samples(folder / "eval", cells[-1])],
    )


def _encoder(config: VisionConfig) -> str:
    return f"ViT {config.width} x {config.layers}" if config.kind == "vit" else config.kind.replace("_", "-")


def _facts(run: RunConfig, records: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    model, data = run.model, run.data
    steps = [record for record in records if "loss" in record]
    facts = [
        ("recipe", run.recipe or "-"),
        ("objective", run.objective.replace("_", " ")),
        ("encoder", f"{_encoder(model.vision)}, {model.vision.image_size} px"),
        ("connector", f"{model.connector.kind.replace('_', '-')}, {model.connector.tokens} tokens an image"),
        ("decoder", f"{model.decoder.width} x {model.decoder.layers}, vocabulary {model.decoder.vocabulary:,}"),
        ("rows", f"{run.batch_size} a step of {data.sequence_length:,} places"),
        ("frozen", ", ".join(run.frozen) or "nothing"),
        ("starts from", ", ".join(f"{part}: {Path(path).name}" for part, path in run.start_from.items()) or "-"),
        ("steps", f"{int(steps[-1]['step']) if steps else 0:,} of {run.steps:,}"),
    ]
    if not steps:
        return facts
    facts += [("loss", f"{steps[0]['loss']:.3f} to {steps[-1]['loss']:.3f}")]
    facts += [("peak learning rate", f"{max(step.get('learning_rate', 0) for step in steps):.2e}")]
    seconds = sum(step.get("step_seconds", 0) for step in steps)
    if seconds:
        facts += [("time in steps", f"{seconds / 60:.1f} min")]
    for key, name, shape in (
        ("tokens_per_second", "tokens per second", "{:,.0f}"),
        ("images_per_second", "images per second", "{:,.0f}"),
        ("mfu", "MFU", "{:.1%}"),
        ("mfu/vision", "MFU of pictures", "{:.1%}"),
        ("padding", "padding", "{:.1%}"),
        ("data_wait", "waiting for data", "{:.1%}"),
    ):
        values = sorted(step[key] for step in steps if key in step)
        if values:
            facts += [(f"{name}, median", shape.format(values[len(values) // 2]))]
    memory = [step["memory_gib"] for step in steps if "memory_gib" in step]
    return facts + ([("peak memory", f"{max(memory):.1f} GiB")] if memory else [])


def _curves(name: str, run: RunConfig, records: Sequence[dict[str, Any]], *, unit: str, marked: Marks) -> str:
    sources = [source for source in run.data.sources if any(f"loss/{source}" in record for record in records)]
    curves = {source: series(records, f"loss/{source}") for source in sources}
    if not curves:
        curves = {"loss": series(records, "loss")}
    held_out = {source: found for source in run.data.validation if (found := series(records, f"validation/{source}"))}
    return figures.losses(name, curves, held_out=held_out, unit=unit, marks=marked)


def _samples(folder: Path, cell: Cell) -> list[tuple[str, list[Sample]]]:
    """Groups of answers of one cell with a heading: right and wrong ones, drawn at random; scores with
    more than two values are split into highest and lowest."""
    try:
        lines = read_answers(folder, cell)
    except (OSError, json.JSONDecodeError):
        return []
    queries = _queries(cell)
    is_binary = {line["score"] for line in lines} <= {0.0, 1.0}
    random.Random(f"{cell.seed} samples").shuffle(lines)
    lines.sort(key=lambda line: -line["score"])  # stable: equal scores stay in random order
    high, low = [line for line in lines if line["score"] > 0], [line for line in lines if line["score"] == 0]
    if not is_binary:
        high, low = lines[: len(lines) // 2], lines[len(lines) // 2 :][::-1]
    names = ("right, drawn at random", "wrong, drawn at random") if is_binary else ("highest scores", "lowest scores")
    return [
        (f"{cell.task}, {cell.shots} shots: {name}", [_sample(line, queries) for line in group[:SAMPLES]])
        for name, group in zip(names, (high, low), strict=True)
        if group
    ]


def _queries(cell: Cell) -> dict[str, Example]:
    """The queries of a cell by id, read again; none when their store is gone."""
    try:
        task = load_task(cell.task, limit=cell.limit, seed=cell.seed)
    except (ValueError, OSError):
        return {}
    return {query.id: query for query in task.queries}


def _sample(line: dict[str, Any], queries: dict[str, Example]) -> Sample:
    query = queries.get(line["query"])
    return Sample(
        picture=thumbnail(query.image.data) if query else "",
        question=query.question.strip() if query else "",
        answer=line["answer"],
        references=tuple(line["references"]),
        blind=line.get("blind_answer"),
        score=line["score"],
    )


def thumbnail(data: bytes, side: int = 176) -> str:
    """A data: URI of the picture, at most `side` pixels a side; empty when it cannot be read."""
    file = io.BytesIO()
    try:
        with Pillow.open(io.BytesIO(data)) as picture:
            picture.thumbnail((side, side))
            picture.convert("RGBA").save(file, format="WEBP", quality=82)
    except UNREADABLE:
        return ""
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _count(number: float) -> str:
    return f"{number:,.0f}".replace(",", "\u202f")
