"""The protocol of an evaluation: which shots stand before a query, and how they are shown."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from PIL import Image as Pillow

from mm1.document import Document, Image
from mm1.eval.fewshot import Example, Task, draw_shots, picture_hash, prompt, stream

SIMILAR_POOL = 2048
"""Examples among which similar ones are looked for: a seeded draw of a larger pool."""

REASONING_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Protocol:
    """How shots are chosen and shown. The defaults are MM1's (section 3.1 and appendix).

    draw       by (seed, query); the `same` for all queries; or `similar` pictures (RICES), the most similar last
    text_only  at zero shots, so many examples without their pictures: what Flamingo and IDEFICS call zero-shot
    reasoning  shots show how one comes to the answer, and the model is to do so too
    full       the query and so many last shots also in four parts at full resolution; None: every picture once
    scoring    answers are written (`generate`), or the likeliest choice is taken (`loglikelihood`)
    beams      texts that are followed side by side where answers are written; 1 is greedy
    """

    draw: Literal["query", "same", "similar"] = "query"
    text_only: int = 0
    reasoning: bool = False
    full: int | None = None
    scoring: Literal["generate", "loglikelihood"] = "generate"
    beams: int = 1

    @property
    def name(self) -> str:
        """What differs from the defaults, for file names and tables; empty where nothing does."""
        parts = {
            self.draw: self.draw != "query",
            f"text{self.text_only}": self.text_only > 0,
            "reasoning": self.reasoning,
            f"full{self.full}": self.full is not None,
            self.scoring: self.scoring != "generate",
            f"beams{self.beams}": self.beams != 1,
        }
        return "-".join(part for part, differs in parts.items() if differs)


MM1 = Protocol()


@dataclass
class Similar:
    """RICES: the examples of a pool whose pictures are the most similar to a query's.

    Source: Yang et al., https://arxiv.org/abs/2109.05014, section 3.2; the order, most similar next to the query, is
    Flamingo's (https://arxiv.org/abs/2204.14198, appendix A.2). Similar is the cosine of mean features.
    """

    task: Task
    features: Callable[[Sequence[Image]], np.ndarray]
    seed: int

    @cached_property
    def _pool(self) -> tuple[list[int], np.ndarray]:
        order = stream(self.seed, "similar", 0).permutation(self.task.pool.count)[:SIMILAR_POOL].tolist()
        return order, _unit(self.features([example.image for example in self.task.pool.read(order)]))

    @cached_property
    def _queries(self) -> np.ndarray:
        return _unit(self.features([query.image for query in self.task.queries]))

    def draw(self, query: int, *, shots: int) -> list[Example]:
        """The nearest `shots` examples with another picture than the query's, the nearest last."""
        places, features = self._pool
        ranked = np.argsort(-(features @ self._queries[query]), kind="stable").tolist()
        own, found = picture_hash(self.task.queries[query].image), []
        for start in range(0, len(ranked), shots):
            examples = self.task.pool.read([places[rank] for rank in ranked[start : start + shots]])
            found += [example for example in examples if picture_hash(example.image) != own]
            if len(found) >= shots:
                return found[:shots][::-1]
        raise ValueError(f"task {self.task.name} has {len(found)} examples to draw {shots} shots from; ask for fewer")


def draw_all(
    task: Task, *, shots: int, seed: int, protocol: Protocol, similar: Similar | None = None
) -> list[list[Example]]:
    """The shots of every query.

    Raises:
        ValueError: the pool is too small, or no features to find similar pictures by.
    """
    count = shots or protocol.text_only
    if not count:
        return [[] for _ in task.queries]
    if protocol.draw == "same":
        return [_same(task, shots=count, seed=seed)] * len(task.queries)
    if protocol.draw == "similar":
        if similar is None:
            raise ValueError("similar shots need a model that gives features of pictures: one of mm1's runs")
        return [similar.draw(query, shots=count) for query in range(len(task.queries))]
    return [draw_shots(task, query, shots=count, seed=seed) for query in range(len(task.queries))]


def _same(task: Task, *, shots: int, seed: int) -> list[Example]:
    """One list of shots for all queries, none with the picture of any."""
    asked = {picture_hash(query.image) for query in task.queries}
    order = stream(seed, "same shots", 0).permutation(task.pool.count).tolist()
    found: list[Example] = []
    for start in range(0, len(order), shots):
        examples = task.pool.read(order[start : start + shots])
        found += [example for example in examples if picture_hash(example.image) not in asked]
        if len(found) >= shots:
            return found[:shots]
    raise ValueError(
        f"task {task.name} has {len(found)} examples whose picture no query shows; {shots} shots for all queries need "
        "as many: ask for fewer shots or fewer queries, or leave --same-shots out"
    )


def prompts(
    task: Task, queries: Sequence[Example], *, drawn: Sequence[Sequence[Example]], shots: int, protocol: Protocol
) -> list[Document]:
    """The prompt of each query after its shots, shown as the protocol says."""
    return [
        _prompt(task, query, examples, without_pictures=not shots, protocol=protocol)
        for query, examples in zip(queries, drawn, strict=True)
    ]


def _prompt(
    task: Task, query: Example, examples: Sequence[Example], *, without_pictures: bool, protocol: Protocol
) -> Document:
    if protocol.reasoning:
        examples = [_reasoned(task, example) for example in examples]
    if protocol.full is not None:
        whole = len(examples) - protocol.full
        examples = [example if place < whole else in_parts(example) for place, example in enumerate(examples)]
        query = in_parts(query)
    document = prompt(task, query, shots=examples)
    if not (without_pictures and examples):
        return document
    own = 1 + len(query.more)
    dropped = len(document.images) - own
    pieces = []
    for piece in document.pieces:
        if isinstance(piece, Image) and dropped:
            dropped -= 1
        else:
            pieces.append(piece)
    return replace(document, pieces=tuple(pieces))


def reasoning_task(task: Task) -> Task:
    """`task` whose answer is what stands behind the last "answer is" of a longer text.

    Source: chain-of-thought shots, Wei et al., https://arxiv.org/abs/2201.11903; in pictures MM1, section 5.2.
    """

    def read(written: str, query: Example) -> str:
        said = re.split(r"(?i)\banswer is\b:?", written)[-1].strip()
        said = said.removesuffix(".") if task.form == "plain" else said
        return task.answer(said, query)

    stops = tuple(stop for stop in task.stops if stop not in (".", ","))
    return replace(task, longest=REASONING_TOKENS, stops=stops, clean=str.strip, read=read)


def _reasoned(task: Task, example: Example) -> Example:
    if not example.reasoning.strip():
        raise ValueError(
            f"task {task.name}: example {example.id} has no reasoning to show; chain-of-thought shots need "
            "a task whose data explain the answers, such as scienceqa"
        )
    thought = " ".join(example.reasoning.split())
    return replace(example, answers=(f"{thought} The answer is {example.answers[0]}.",))


def in_parts(example: Example) -> Example:
    """`example` with the four quarters of its picture after it, each at the picture's own resolution.

    Source: MM1, section 5.1 (sub-images beside the whole picture); the last shots in full and the earlier ones not is
    its mixed-resolution prompt, section 5.2.
    """
    if re.search(r"<image \d>", example.question + "".join(example.choices)):
        raise ValueError(f"example {example.id} shows its pictures inside of the text; they are not cut into parts")
    with Pillow.open(io.BytesIO(example.image.data)) as opened:
        picture = opened.convert("RGB")
    width, height = picture.width // 2, picture.height // 2
    boxes = [
        (left, top, left + width or 1, top + height or 1)
        for top in (0, picture.height - height)
        for left in (0, picture.width - width)
    ]
    return replace(example, more=(*(Image(_png(picture.crop(box))) for box in boxes), *example.more))


def _png(picture: Pillow.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
