"""Few-shot prompts: a task, its queries, and one Document for each prompt.

Source of the protocol: MM1, section 3.1 and appendix (https://arxiv.org/abs/2403.09611), which follows
OpenFlamingo (https://arxiv.org/abs/2308.01390, section 4): shots at random from the training split,
greedy decoding to a stop string, no text-only demonstrations at zero shots.
"""

import hashlib
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from mm1.data import chat
from mm1.document import Document, Image, Mark, Piece, Text
from mm1.eval.metrics.short_answers import LETTERS


@dataclass(frozen=True, slots=True)
class Example:
    """One picture, what is asked about it, and the answers that are right (the first is shown in shots).

    more       further pictures; `<image 2>` in the question says where the second stands
    choices    of a multiple-choice question; its answer is a letter
    reasoning  how one comes to the answer, for chain-of-thought shots
    about      what totals and judges need: category, subject, ...
    """

    id: str
    image: Image
    question: str
    answers: tuple[str, ...]
    more: tuple[Image, ...] = ()
    choices: tuple[str, ...] = ()
    reasoning: str = ""
    about: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pool:
    """`count` examples, read by position when asked for: a training split is never in memory whole."""

    count: int
    read: Callable[[list[int]], list[Example]]


Metric = Callable[[Sequence[str], Sequence[Sequence[str]]], np.ndarray]
Totals = Callable[[Sequence[Example], Sequence[str], np.ndarray], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Rule:
    """How another model judges answers: what it is asked, and the score (0 to 1) in what it says."""

    ask: Callable[[Example, str], str]
    points: Callable[[str], float]


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked, how, and how answers are scored.

    name      as in `mm1 eval --tasks`
    queries   what the model is asked
    pool      examples that shots are drawn from: the training split
    prior     every answer of the pool, for the scores that need no model
    ask       the text after a query's picture
    metric    answers and references of all queries -> one score per query
    form      `plain` continues a text; `chat` opens the assistant's turn of a fine-tuned model
    stops     strings that end an answer, beside the end token
    longest   tokens of an answer at most
    clean     the answer out of what the model wrote, stop string removed
    loss      also compare the loss of the right answer under the right and a wrong picture
    read      the answer that is scored out of the clean one, where the question decides how
    totals    scores of all answers together, in points, beside the mean
    judge     another model scores the answers, by this rule; `metric` is not asked
    """

    name: str
    queries: Sequence[Example]
    pool: Pool
    prior: Sequence[str]
    ask: Callable[[Example], str]
    metric: Metric
    form: Literal["plain", "chat"] = "plain"
    stops: tuple[str, ...] = ()
    longest: int = 32
    clean: Callable[[str], str] = str.strip
    loss: bool = False
    read: Callable[[str, Example], str] | None = None
    totals: Totals | None = None
    judge: Rule | None = None

    def answer(self, written: str, query: Example) -> str:
        """The answer that is scored, out of what the model wrote."""
        text = self.clean(written)
        return text if self.read is None else self.read(text, query)


CAPTION_STOPS = ("\n",)
VQA_STOPS = ("\n", ".", ",", "Question")


def ask_caption(example: Example) -> str:
    """MM1's captioning prompt, `{IMAGE} A photo of`."""
    return " A photo of"


def ask_vqa(example: Example) -> str:
    """MM1's VQA prompt, `{IMAGE} Question: {QUESTION} Short answer:`."""
    return f" Question: {example.question.strip()} Short answer:"


def clean_vqa(written: str) -> str:
    """The answer before the model invents a next question, and the first of several.

    Source: `postprocess_vqa_generation` of OpenFlamingo (https://github.com/mlfoundations/open_flamingo).
    """
    return re.split("Question|Answer|Short", written, maxsplit=1)[0].split(", ", 1)[0].strip()


def draw_shots(task: Task, query: int, *, shots: int, seed: int) -> list[Example]:
    """`shots` examples for query number `query`: a pure function of (seed, query).

    Fewer shots are the first of more, so that scores at 4 and 8 differ by the added examples alone. An
    example with the query's own picture is passed over.

    Raises:
        ValueError: the pool is too small.
    """
    if shots == 0:
        return []
    own = picture_hash(task.queries[query].image)
    order = stream(seed, "shots", query).permutation(task.pool.count).tolist()
    drawn: list[Example] = []
    for start in range(0, len(order), shots):
        found = task.pool.read(order[start : start + shots])
        drawn += [example for example in found if picture_hash(example.image) != own]
        if len(drawn) >= shots:
            return drawn[:shots]
    raise ValueError(f"task {task.name} has {len(drawn)} examples to draw {shots} shots from; ask for fewer shots")


def prompt(task: Task, query: Example, *, shots: Sequence[Example]) -> Document:
    """The prompt as one Document, open at its end. No text in it is trained."""
    pieces: list[Piece] = []
    for shot in shots:
        pieces += _turn(task, shot)
        answer = shot.answers[0]
        if task.form == "chat":
            pieces += [Text(answer, train=False), Mark("end")]
        else:
            pieces.append(Text(f" {answer.strip()}\n", train=False))
    pieces += _turn(task, query)
    return Document(tuple(pieces), id=query.id, source=task.name)


def _turn(task: Task, example: Example) -> list[Piece]:
    pieces = _shown(example, task.ask(example))
    return list(chat.prompt(pieces).pieces) if task.form == "chat" else pieces


def _shown(example: Example, asked: str) -> list[Piece]:
    """The pictures before the text, or at the places that `<image 1>`, `<image 2>`, ... mark in it."""
    pictures = [example.image, *example.more]
    parts = re.split(r"<image (\d)>", asked)
    if len(parts) == 1:
        return [*pictures, Text(asked, train=False)]
    pieces: list[Piece] = []
    for text, number in zip(parts[::2], [*parts[1::2], ""], strict=True):
        if text:
            pieces.append(Text(text, train=False))
        if number:
            pieces.append(pictures[int(number) - 1])
    return pieces


def blind(queries: Sequence[Example], *, seed: int) -> list[Example]:
    """The same queries, each with the picture of another: a seeded exchange, never of equal pictures.

    What a model scores here it knows from the question and the shots alone.

    Raises:
        ValueError: more than half of the queries have the same picture, so no exchange exists.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for number, query in enumerate(queries):
        groups[picture_hash(query.image)].append(number)
    largest = max(map(len, groups.values()), default=0)
    if largest * 2 > len(queries):
        raise ValueError(
            f"{largest} of {len(queries)} queries have the same picture, so pictures cannot be exchanged; "
            "take more queries (--limit) or switch the blind run off"
        )
    names = list(groups)
    order = [number for name in stream(seed, "blind", 0).permutation(len(names)) for number in groups[names[name]]]
    exchanged = list(queries)
    # queries with one picture stand together: a shift by the largest such group leaves every group
    for place, number in enumerate(order):
        other = order[(place + largest) % len(order)]
        theirs = [queries[other].image, *queries[other].more]
        more = tuple(theirs[(place + 1) % len(theirs)] for place in range(len(queries[number].more)))
        exchanged[number] = replace(queries[number], image=theirs[0], more=more)
    return exchanged


def majority_answer(task: Task) -> str:
    """The commonest answer of the pool; of equally common ones the first in the alphabet."""
    counts: dict[str, int] = defaultdict(int)
    for answer in task.prior:
        counts[answer] += 1
    return min(counts, key=lambda answer: (-counts[answer], answer))


def chance_answers(task: Task, *, seed: int, draw: int = 0) -> list[str]:
    """For each query a random one of its choices, else the answer of a random example of the pool.

    The second is guessing that knows how common answers are.
    """
    draws = stream(seed, "chance", draw)
    positions = draws.integers(0, len(task.prior), size=len(task.queries)).tolist()
    letters = draws.random(len(task.queries))
    return [
        LETTERS[int(letter * len(query.choices))] if query.choices else task.prior[position]
        for position, letter, query in zip(positions, letters, task.queries, strict=True)
    ]


def picture_hash(image: Image) -> str:
    """A name for the picture's bytes."""
    return hashlib.sha256(image.data).hexdigest()[:16]


def stream(seed: int, what: str, index: int) -> np.random.Generator:
    """Random numbers that depend on (seed, what, index) and on nothing that ran before."""
    return np.random.default_rng((seed, zlib.crc32(what.encode()), index))
