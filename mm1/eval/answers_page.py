"""A page of all answers: every query with its image and its right and wrong answers, with filters and a search."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape
from PIL import Image as Pillow

from mm1.data.image import UNREADABLE, upright
from mm1.disk import write_whole
from mm1.document import Image
from mm1.eval.fewshot import Task
from mm1.eval.metrics.captions import cider
from mm1.eval.metrics.references import Metric
from mm1.eval.results import Results, read_answers

SIDE = 192
"""Pixels of the longer side of a thumbnail."""

SHOWN = 400
"""The most queries shown per task."""

BEST: dict[Metric, float] = {cider: 10.0}
"""The highest possible score of an answer, where it isn't 1."""


def write_page(folder: Path, tasks: Sequence[Task], *, results: Results) -> Path:
    """The path of `folder/answers.html`: the answers of `results` to the queries of `tasks`, with the images inside.

    Of a task with more than 400 queries the page shows the first 400, and says so.
    """
    sections = [_section(folder, task, results=results) for task in tasks]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(), trim_blocks=True
    )
    page = environment.get_template("answers_page.html").render(
        sections=[section for section in sections if section["scores"]], side=SIDE
    )
    path = folder / "answers.html"
    write_whole(path, page)
    return path


def _section(folder: Path, task: Task, *, results: Results) -> dict[str, Any]:
    scores = [score for score in results.scores if score.task == task.name]
    answers = [{answer.query: answer for answer in read_answers(folder, score)} for score in scores]
    best = BEST.get(task.scoring.metric, 1.0)
    queries = []
    for query in task.queries[:SHOWN]:
        lines = [
            {"name": score.name, "state": state(answer.score, best=best), "answer": answer.own}
            for score, by_query in zip(scores, answers, strict=True)
            if (answer := by_query.get(query.id)) is not None
        ]
        choices = " / ".join(query.choices)
        queries.append({"query": query, "choices": choices, "picture": thumbnail(query.image), "lines": lines})
    return {"name": task.name, "scores": scores, "queries": queries, "all": len(task.queries)}


def state(score: float | None, *, best: float = 1.0) -> str:
    """`right` for the best possible score, `wrong` for 0, `unread` without a score, else `partly`."""
    if score is None:
        return "unread"
    return "right" if score > best - 1e-6 else "partly" if score > 0 else "wrong"


def thumbnail(image: Image) -> str:
    """A data: URL of the image at a small size; empty if it can't be read."""
    try:
        with Pillow.open(io.BytesIO(image.data)) as opened:
            opened.draft("RGB", (SIDE, SIDE))
            picture = upright(opened, image.data).convert("RGB")
    except UNREADABLE:
        return ""
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
