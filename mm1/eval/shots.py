"""The protocol of an evaluation: which shots precede a query, and how they are shown."""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from mm1.data.image import size_of
from mm1.data.tiles import quarters
from mm1.document import Document, Image
from mm1.eval.fewshot import Example, Task, draw_shots, image_hash, prompt, rng

SIMILAR_POOL = 2048
"""How many examples similar shots are searched among: a seeded draw of a larger pool."""

REASONING_TOKENS = 256


Scored = Literal["generate", "loglikelihood"]
Rules = Literal["default", "mm1", "openflamingo", "lmms-eval", "official"]
RULES: tuple[Rules, ...] = get_args(Rules)
SCORINGS: tuple[Scored, ...] = get_args(Scored)


@dataclass(frozen=True, slots=True)
class Protocol:
    """How shots are selected and shown, and how answers are obtained. The defaults are MM1's (section 3.1, appendix),
    except `rules`.

    draw             new shots for each `query`, the `same` for all queries, or those with `similar` images (RICES)
    text_only_shots  at zero shots, this many examples without their images: zero-shot as in Flamingo and IDEFICS
    reasoning        chain-of-thought shots: they explain the answer, and the model is to do the same
    subimage_shots   the query and this many last shots in tiles, earlier shots as overviews: the tiles of a model that
                     has a tiling, else the whole image and its four quarters; None: all as the model was trained
    scoring          `generate` the answer, or take the choice with the highest `loglikelihood`
    beams            beams of the search when generating; 1 is greedy
    max_tokens       the longest generated answer; 0: as the task says
    rules            whose prompts, stop strings and readings of answers the task has; see `mm1.eval.data.styles`
    """

    draw: Literal["query", "same", "similar"] = "query"
    text_only_shots: int = 0
    reasoning: bool = False
    subimage_shots: int | None = None
    scoring: Scored = "generate"
    beams: int = 1
    max_tokens: int = 0
    rules: Rules = "default"

    @property
    def name(self) -> str:
        """What differs from the defaults, for file names and tables; empty if nothing does."""
        parts = {
            self.rules: self.rules != "default",
            self.draw: self.draw != "query",
            f"textonly{self.text_only_shots}": self.text_only_shots > 0,
            "reasoning": self.reasoning,
            f"subimage{self.subimage_shots}": self.subimage_shots is not None,
            self.scoring: self.scoring != "generate",
            f"beams{self.beams}": self.beams != 1,
            f"tokens{self.max_tokens}": self.max_tokens > 0,
        }
        return "-".join(part for part, differs in parts.items() if differs)


DEFAULT = Protocol()


@dataclass
class SimilarShots:
    """RICES: the examples of a pool whose images are most similar to a query's, by the cosine of mean features.

    Source: Yang et al., https://arxiv.org/abs/2109.05014, section 3.2. The order, with the most similar example next to
    the query, is Flamingo's (https://arxiv.org/abs/2204.14198, appendix A.2).
    """

    task: Task
    features: Callable[[Sequence[Image]], np.ndarray]
    seed: int

    @cached_property
    def _pool(self) -> tuple[list[int], np.ndarray]:
        order = rng(self.seed, "similar", 0).permutation(self.task.pool.count)[:SIMILAR_POOL].tolist()
        images = {n: one.image for n, one in zip(order, self.task.pool.read(order), strict=True) if one is not None}
        return list(images), _unit(self.features(list(images.values())))

    @cached_property
    def _queries(self) -> np.ndarray:
        return _unit(self.features([query.image for query in self.task.queries]))

    def draw(self, query: int, *, shots: int) -> list[Example]:
        """The `shots` nearest examples whose image is not the query's, the nearest last."""
        indices, features = self._pool
        ranked = [indices[rank] for rank in np.argsort(-(features @ self._queries[query]), kind="stable").tolist()]
        ranked = self.task.pool.fitting(ranked, self.task.queries[query].kind)
        own = image_hash(self.task.queries[query].image)
        nearest: list[Example] = []
        for start in range(0, len(ranked), shots):
            examples = self.task.pool.read(ranked[start : start + shots])
            nearest += [one for one in examples if one is not None and image_hash(one.image) != own]
            if len(nearest) >= shots:
                return nearest[:shots][::-1]
        raise ValueError(f"task {self.task.name} has {len(nearest)} examples to draw {shots} shots from; ask for fewer")


def draw_all(
    task: Task, *, shots: int, seed: int, protocol: Protocol, similar: SimilarShots | None = None
) -> list[list[Example]]:
    """The shots of every query.

    Raises:
        ValueError: the pool is too small, or there are no features to find similar images by.
    """
    count = shots or protocol.text_only_shots
    if not count:
        return [[] for _ in task.queries]
    if protocol.draw == "same":
        return _same_shots(task, shots=count, seed=seed)
    if protocol.draw == "similar":
        if similar is None:
            raise ValueError("similar shots need a model that gives features of pictures: one of mm1's runs")
        return [similar.draw(query, shots=count) for query in range(len(task.queries))]
    return [draw_shots(task, query, shots=count, seed=seed) for query in range(len(task.queries))]


def _same_shots(task: Task, *, shots: int, seed: int) -> list[list[Example]]:
    """The same examples for all queries of a kind; a query whose image is among them has the next one instead."""
    order = rng(seed, "same shots", 0).permutation(task.pool.count).tolist()
    by_kind: dict[str, Iterator[list[Example]]] = {}
    for kind in {query.kind for query in task.queries}:
        queries = [query for query in task.queries if query.kind == kind]
        by_kind[kind] = iter(_same_of(task, queries, task.pool.fitting(order, kind), shots=shots))
    return [next(by_kind[query.kind]) for query in task.queries]


def _same_of(task: Task, queries: Sequence[Example], order: list[int], *, shots: int) -> list[list[Example]]:
    """`shots` examples for each of these queries, the first ones of `order` that don't show its image."""
    drawn: list[tuple[str, Example]] = []
    start, shown = 0, []
    for query in queries:
        own = image_hash(query.image)
        while len(others := [one for name, one in drawn if name != own]) < shots and start < len(order):
            examples = task.pool.read(order[start : start + shots])
            drawn += [(image_hash(one.image), one) for one in examples if one is not None]
            start += shots
        if len(others) < shots:
            raise ValueError(
                f"task {task.name} has {len(others)} examples to draw {shots} shots from; ask for fewer shots"
            )
        shown.append(others[:shots])
    return shown


def prompts(
    task: Task,
    queries: Sequence[Example],
    *,
    drawn: Sequence[Sequence[Example]],
    shots: int,
    protocol: Protocol,
    tiles: bool = False,
) -> list[Document]:
    """The prompt of each query after its shots; `tiles` says whether the model cuts images into tiles by itself."""
    return [
        _prompt(task, query, examples=examples, text_only=not shots, protocol=protocol, tiles=tiles)
        for query, examples in zip(queries, drawn, strict=True)
    ]


def _prompt(
    task: Task, query: Example, *, examples: Sequence[Example], text_only: bool, protocol: Protocol, tiles: bool
) -> Document:
    if protocol.reasoning:
        examples = [_explained(task, example) for example in examples]
    if protocol.subimage_shots is not None:
        whole = len(examples) - protocol.subimage_shots
        in_parts = functools.partial(_in_tiles, full=True) if tiles else with_subimages
        examples = [
            _in_tiles(example, full=False) if n < whole else in_parts(example) for n, example in enumerate(examples)
        ]
        query = in_parts(query)
    document = prompt(task, query, shots=examples)
    if not (text_only and examples):
        return document
    dropped = len(document.images) - (1 + len(query.more_images))
    pieces = []
    for piece in document.pieces:
        if isinstance(piece, Image) and dropped:
            dropped -= 1
        else:
            pieces.append(piece)
    return replace(document, pieces=tuple(pieces))


def reasoning_task(task: Task) -> Task:
    """`task` with longer answers, of which the part after the last "answer is" is scored.

    Source: chain-of-thought shots, Wei et al., https://arxiv.org/abs/2201.11903; with images MM1, section 5.2.
    """

    style = task.style

    def parse(written: str, query: Example) -> str:
        conclusion = re.split(r"(?i)\banswer is\b:?", written)[-1].strip()
        conclusion = conclusion.removesuffix(".") if style.form == "plain" else conclusion
        return task.answer(conclusion, query)

    stops = tuple(stop for stop in style.stops if stop not in (".", ","))
    return replace(
        task,
        style=replace(style, max_tokens=REASONING_TOKENS, stops=stops, clean=str.strip),
        scoring=replace(task.scoring, parse=parse),
    )


def _explained(task: Task, example: Example) -> Example:
    if not example.reasoning.strip():
        raise ValueError(
            f"task {task.name}: example {example.id} has no reasoning to show; chain-of-thought shots need "
            "a task whose data explain the answers, such as scienceqa"
        )
    reasoning = " ".join(example.reasoning.split())
    return replace(example, answers=(f"{reasoning} The answer is {example.answers[0]}.",))


def _in_tiles(example: Example, *, full: bool) -> Example:
    """`example` with all its images in the model's tiles if `full`, else as overviews."""
    image, *more = (replace(image, in_tiles=full) for image in (example.image, *example.more_images))
    return replace(example, image=image, more_images=tuple(more))


def with_subimages(example: Example) -> Example:
    """`example` with the four quarters of its image after it, as boxes of the same bytes.

    Source: MM1, section 5.1 (sub-images beside the whole image). Sub-images for the last shots only is its
    mixed-resolution prompt, section 5.2.
    """
    if re.search(r"<image \d>", example.question + "".join(example.choices)):
        raise ValueError(f"example {example.id} shows its pictures inside of the text; they are not cut into parts")
    data = example.image.data
    size = example.image.size or size_of(data)
    if size is None:
        raise ValueError(f"example {example.id} has an unreadable picture, which has no sub-images")
    return replace(example, more_images=(*(Image(data, box) for box in quarters(*size)), *example.more_images))


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
