"""Some answers of a model for a page, each with its picture, drawn at random among the right and the wrong ones."""

import base64
import io
import json
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as Pillow

from mm1.data.image import UNREADABLE, upright
from mm1.eval.fewshot import Example
from mm1.eval.harness import load_task
from mm1.eval.results import Answer, TaskScore, read_answers

SAMPLES = 6
"""Answers that a page shows of each kind."""


@dataclass(frozen=True, slots=True)
class SampleAnswer:
    """One answer of the model; the picture and the question are empty if the task can no longer be read."""

    picture: str  # a data: URI
    question: str
    answer: str
    references: tuple[str, ...]
    blind: str
    score: float


@dataclass(frozen=True, slots=True)
class SampleGroup:
    """Answers of one kind, `good` or not, under their heading."""

    heading: str
    good: bool
    samples: list[SampleAnswer]


def sample_answers(folder: Path, cell: TaskScore) -> list[SampleGroup]:
    """Two groups of answers of one cell: right and wrong ones, drawn at random.

    Where scores have more than two values, the groups are those of the highest and of the lowest scores.
    """
    try:
        answers = read_answers(folder, cell)
    except (OSError, json.JSONDecodeError):
        return []
    queries = _queries(cell)
    random.Random(f"{cell.seed} samples").shuffle(answers)
    scored = [(answer.score, answer) for answer in answers if answer.score is not None]
    is_binary = {score for score, _ in scored} <= {0.0, 1.0}
    scored.sort(key=lambda pair: -pair[0])  # stable: equal scores stay in random order
    high, low = [pair for pair in scored if pair[0] > 0], [pair for pair in scored if pair[0] == 0]
    if not is_binary:
        high, low = scored[: len(scored) // 2], scored[len(scored) // 2 :][::-1]
    names = (
        ("right, drawn at random", "wrong, drawn at random")
        if is_binary
        else ("nearest to the right answer", "furthest from it")
    )
    return [
        SampleGroup(
            f"{cell.task}, {cell.shots} shots: {name}",
            good,
            [_sample(score, answer, queries) for score, answer in group[:SAMPLES]],
        )
        for name, good, group in zip(names, (True, False), (high, low), strict=True)
        if group
    ]


def _queries(cell: TaskScore) -> dict[str, Example]:
    """The queries of a cell by id, read again from the task; empty if its store is gone."""
    try:
        task = load_task(cell.task, limit=cell.limit, seed=cell.seed)
    except (ValueError, OSError):
        return {}
    return {query.id: query for query in task.queries}


def _sample(score: float, answer: Answer, queries: dict[str, Example]) -> SampleAnswer:
    query = queries.get(answer.query)
    return SampleAnswer(
        picture=_thumbnail(query.image.data) if query else "",
        question=query.question.strip() if query else "",
        answer=answer.text,
        references=tuple(answer.references),
        blind=answer.blind.text,
        score=score,
    )


def _thumbnail(data: bytes, side: int = 176) -> str:
    """The picture as a data: URI, at most `side` pixels a side; empty if it cannot be read."""
    file = io.BytesIO()
    try:
        with Pillow.open(io.BytesIO(data)) as opened:
            picture = upright(opened, data)
            picture.thumbnail((side, side))
            picture.convert("RGBA").save(file, format="WEBP", quality=82)
    except UNREADABLE:
        return ""
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
