"""Few-shot prompts: a task with its queries, the shots of a query, and one Document per prompt.

Source of the protocol: MM1, section 3.1 and appendix (https://arxiv.org/abs/2403.09611), which follows OpenFlamingo
(https://arxiv.org/abs/2308.01390, section 4): random shots from the training split, greedy decoding up to a stop
string, no text-only examples at zero shots.
"""

import hashlib
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mm1.data import chat_format as chat
from mm1.document import Document, Image, Mark, Piece, Text
from mm1.eval.metrics.answer_parsing import after_thoughts
from mm1.eval.metrics.references import Metric


@dataclass(frozen=True, slots=True)
class Example:
    """One image, a question about it, and the right answers (shots show the first).

    more_images  further images; `<image 2>` in the question marks the position of the second
    choices      of a multiple-choice question; its answer is a letter
    reasoning    an explanation that leads to the answer, for chain-of-thought shots
    metadata     what totals and judges need: category, subject, ...
    group        queries of one group are drawn together: MME's pairs, MMBench's rotations
    odd          short names of what is odd about its row, though it can be scored
    kind         where a task has several kinds of queries, the one that it is of
    """

    id: str
    image: Image
    question: str
    answers: tuple[str, ...]
    more_images: tuple[Image, ...] = ()
    choices: tuple[str, ...] = ()
    reasoning: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    odd: tuple[str, ...] = ()
    kind: str = ""


REPEATED = "repeated id"
"""The name of what is odd about a row whose id an earlier row has."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The training split, which shots are drawn from: `count` examples that are read by index only when needed.

    `read` gives None for a row that can't be shown. `answers` are the answers of all others, for the baselines without
    a model. `kinds` has the kind of each example, if only those of a query's own kind may be its shots.
    """

    count: int
    read: Callable[[list[int]], Sequence[Example | None]]
    answers: Sequence[str]
    kinds: Sequence[str] = ()

    def fitting(self, indices: Sequence[int], kind: str) -> list[int]:
        """The examples among `indices` that may be shots of a query of this kind, in their order."""
        return [index for index in indices if not self.kinds or self.kinds[index] == kind]


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """How a query is asked, and where its answer ends.

    ask         the text after a query's image
    form        `plain` continues a text; `chat` opens the assistant's turn for a fine-tuned model
    stops       strings that end an answer, besides the end token
    max_tokens  the longest answer
    clean       the answer within the text that the model wrote, without the stop string
    """

    ask: Callable[[Example], str]
    form: Literal["plain", "chat"] = "plain"
    stops: tuple[str, ...] = ()
    max_tokens: int = 32
    clean: Callable[[str], str] = str.strip


@dataclass(frozen=True, slots=True)
class Judged:
    """What a judge's reply gives an answer: a score, and how much it counts in the mean over all queries."""

    score: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class JudgeRule:
    """How another model judges an answer: the question to it, and what its reply gives.

    `asks_always`: about an empty answer, too, which else has 0 without a question.
    """

    ask: Callable[[Example, str], str]
    parse: Callable[[str], Judged]
    asks_always: bool = False


@dataclass(frozen=True, slots=True)
class ExtractRule:
    """How another model reads the answer out of a text: the question to it, and the answer that its reply gives.

    `needed` says whether a text needs that, or is an answer by itself.
    """

    ask: Callable[[Example, str], str]
    parse: Callable[[str], str]
    needed: Callable[[Example, str], bool]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the queries of a task come from.

    data      the data set, its number of rows, and a hash of their ids and answers
    split     the split that they are of
    left_out  how many rows of the split can't be scored, by the short name of what they lack
    rows      the rows of the split that belong to the task
    """

    data: str = ""
    split: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)
    rows: int = 0


Totals = Callable[[Sequence[Example], Sequence[str], np.ndarray], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Scoring:
    """How answers are scored.

    metric  answers and references of all queries -> one score per query
    within  makes the metric from the references of the whole split, if a score depends on them
    parse   turns the cleaned text into the answer to be scored, where the query decides how
    totals  scores of all answers together, in points, besides the mean
    part    the part of the task that a query belongs to, where each part has a mean of its own
    judge   another model scores the answers by this rule, and `metric` is not used
    extract  where another model may read the answer out of the text first, its question and what its reply gives
    by_rules  metrics of protocols that take another one than `metric`
    whole   the queries of a group count as one, which scores what the worst of them does
    """

    metric: Metric
    parse: Callable[[str, Example], str] | None = None
    totals: Totals | None = None
    part: Callable[[Example], str] | None = None
    judge: JudgeRule | None = None
    within: Callable[[Sequence[Sequence[str]]], Metric] | None = None
    extract: ExtractRule | None = None
    by_rules: Mapping[str, Metric] = field(default_factory=dict)
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Submission:
    """What the `server` of a benchmark takes for a split with hidden answers, and the ending of the file's name.

    `content` makes the file of queries and their answers.
    """

    server: str
    content: Callable[[Sequence[Example], Sequence[str]], bytes]
    ending: str = "json"


@dataclass(frozen=True, slots=True)
class Task:
    """Queries with their shots, how they are asked and scored. `name` is as in `mm1 eval --tasks`.

    `split_references` are those of all queries of the split, asked or not, if the metric depends on them. `submission`:
    the answers are hidden, and this file is written instead of scores. `loss` says whether to compare the loss of the
    right answer with the right and with a wrong image.
    """

    name: str
    queries: Sequence[Example]
    pool: Pool
    style: PromptStyle
    scoring: Scoring
    split_references: Sequence[Sequence[str]] = ()
    submission: Submission | None = None
    loss: bool = False
    origin: Origin = Origin()

    def groups(self) -> list[str]:
        """What each query counts with: queries of one name count as one."""
        return [query.group if self.scoring.whole else query.id for query in self.queries]

    def answer(self, written: str, query: Example) -> str:
        """The answer to be scored, from the text that the model wrote after its thoughts."""
        text = self.style.clean(after_thoughts(written))
        return text if self.scoring.parse is None else self.scoring.parse(text, query)


CAPTION_STOPS = ("\n",)
VQA_STOPS = ("\n", ".", ",", "Question")


def ask_caption(example: Example) -> str:
    """MM1's captioning prompt, `{IMAGE} A photo of`."""
    return " A photo of"


def ask_vqa(example: Example) -> str:
    """MM1's VQA prompt, `{IMAGE} Question: {QUESTION} Short answer:`."""
    return f" Question: {example.question.strip()} Short answer:"


def clean_vqa(written: str) -> str:
    """The answer before the model invents the next question, and the first of several answers.

    Source: `postprocess_vqa_generation` of OpenFlamingo (https://github.com/mlfoundations/open_flamingo).
    """
    return re.split("Question|Answer|Short", written, maxsplit=1)[0].split(", ", 1)[0].strip()


def draw_shots(task: Task, query: int, *, shots: int, seed: int) -> list[Example]:
    """`shots` examples for query number `query`: a pure function of (seed, the query's id), so not of the others.

    Fewer shots are the first of more shots, so that scores at 4 and 8 differ by the added examples alone. Examples with
    the query's own image are skipped.

    Raises:
        ValueError: the pool is too small.
    """
    if shots == 0:
        return []
    own = image_hash(task.queries[query].image)
    order = rng(seed, f"shots of {task.queries[query].id}", 0).permutation(task.pool.count).tolist()
    order = task.pool.fitting(order, task.queries[query].kind)
    drawn: list[Example] = []
    for start in range(0, len(order), shots):
        examples = task.pool.read(order[start : start + shots])
        drawn += [one for one in examples if one is not None and image_hash(one.image) != own]
        if len(drawn) >= shots:
            return drawn[:shots]
    raise ValueError(f"task {task.name} has {len(drawn)} examples to draw {shots} shots from; ask for fewer shots")


def prompt(task: Task, query: Example, *, shots: Sequence[Example]) -> Document:
    """The prompt as one Document that is open at its end. None of its text is trained."""
    pieces: list[Piece] = []
    for shot in shots:
        pieces += _question(task, shot)
        answer = shot.answers[0]
        if task.style.form == "chat":
            pieces += [Text(answer, train=False), Mark("end")]
        else:
            pieces.append(Text(f" {answer.strip()}\n", train=False))
    pieces += _question(task, query)
    return Document(tuple(pieces), id=query.id, source=task.name)


def _question(task: Task, example: Example) -> list[Piece]:
    pieces = with_images(example, task.style.ask(example))
    return list(chat.prompt(pieces).pieces) if task.style.form == "chat" else pieces


def with_images(example: Example, question: str) -> list[Piece]:
    """The images before the question, or where `<image 1>`, `<image 2>`, ... in it say."""
    images = [example.image, *example.more_images]
    parts = re.split(r"<image (\d)>", question)
    if len(parts) == 1:
        return [*images, Text(question, train=False)] if question else [*images]
    pieces: list[Piece] = []
    for text, number in zip(parts[::2], [*parts[1::2], ""], strict=True):
        if text:
            pieces.append(Text(text, train=False))
        if number:
            pieces.append(images[int(number) - 1])
    return pieces


def image_hash(image: Image) -> str:
    """A name for the bytes of the image."""
    return hashlib.sha256(image.data).hexdigest()[:16]


def rng(seed: int, what: str, index: int) -> np.random.Generator:
    """Random numbers that depend on (seed, what, index) only, not on earlier draws."""
    return np.random.default_rng((seed, zlib.crc32(what.encode()), index))
