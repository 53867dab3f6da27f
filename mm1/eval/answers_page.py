"""A page of what was answered: every query with its picture, right and wrong answers, to be filtered and searched."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape
from PIL import Image as Pillow

from mm1.data.image import UNREADABLE
from mm1.disk import write_whole
from mm1.document import Image
from mm1.eval.fewshot import Metric, Task
from mm1.eval.metrics.scores import cider
from mm1.eval.results import Results, read_answers

SIDE = 192
"""Pixels of a thumbnail's longer side."""

SHOWN = 400
"""Queries of one task at most."""

BEST: dict[Metric, float] = {cider: 10.0}
"""The score of an answer that can't be better, where it isn't 1."""


def write_page(folder: Path, tasks: Sequence[Task], results: Results) -> Path:
    """The path of `folder/answers.html`: the answers of `results` to the queries of `tasks`, with pictures inside.

    Of a task with more than 400 queries the first 400 are shown; the page says so.
    """
    sections = [_section(folder, task, results) for task in tasks]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(), trim_blocks=True
    )
    page = environment.get_template("answers_page.html").render(
        sections=[one for one in sections if one["cells"]], side=SIDE
    )
    path = folder / "answers.html"
    write_whole(path, page)
    return path


def _section(folder: Path, task: Task, results: Results) -> dict[str, Any]:
    cells = [cell for cell in results.cells if cell.task == task.name]
    answers = [{line["query"]: line for line in read_answers(folder, cell)} for cell in cells]
    best = BEST.get(task.metric, 1.0)
    queries = []
    for query in task.queries[:SHOWN]:
        lines = [
            {"cell": cell.name, "state": state(line["score"], best=best), **line}
            for cell, of_cell in zip(cells, answers, strict=True)
            if (line := of_cell.get(query.id)) is not None
        ]
        choices = " / ".join(query.choices)
        queries.append({"query": query, "choices": choices, "picture": thumbnail(query.image), "lines": lines})
    return {"name": task.name, "cells": cells, "queries": queries, "all": len(task.queries)}


def state(score: float, *, best: float = 1.0) -> str:
    """`right` for the best score there is, `wrong` for 0, else `partly`."""
    return "right" if score > best - 1e-6 else "partly" if score > 0 else "wrong"


def thumbnail(image: Image) -> str:
    """The picture's address on the page, made small; empty if it can't be read."""
    try:
        with Pillow.open(io.BytesIO(image.data)) as opened:
            opened.draft("RGB", (SIDE, SIDE))
            picture = opened.convert("RGB")
    except UNREADABLE:
        return ""
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
