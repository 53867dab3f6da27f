"""easy-VQA (https://github.com/vzhou842/easy-VQA) as a chat, for fine-tuned models."""

from collections.abc import Sequence
from dataclasses import dataclass

from mm1.data.store import Store, open_store
from mm1.document import Document, Text
from mm1.eval.fewshot import Example, Origin, Pool, PromptStyle, Scoring, Task, rng
from mm1.eval.metrics.vqa import exact_match


def task(limit: int, *, seed: int, queries: str = "sample:vqa-test", pool: str = "sample:vqa-train") -> Task:
    """The task with up to `limit` held-out questions, over as many images as possible; shots come from training.

    Raises:
        StoreError: a store is missing or broken.
        ValueError: a document is not an image with questions and answers.
    """
    held_out, training = open_store(queries), open_store(pool)
    questions, shots = turns(held_out), turns(training)
    selected = [questions[index] for index in draw_over_images(questions, limit=limit, seed=seed)]
    return Task(
        name="easy_vqa",
        queries=_examples(held_out, selected),
        pool=Pool(
            len(shots),
            lambda indices: _examples(training, [shots[index] for index in indices]),
            answers=[turn.answer for turn in shots],
        ),
        style=PromptStyle(lambda example: example.question, form="chat", max_tokens=8),
        scoring=Scoring(exact_match),
        origin=Origin(queries),
    )


@dataclass(frozen=True, slots=True)
class Turn:
    """One question of one document, with the texts unchanged."""

    position: int  # of the document in its store
    order: int  # of the question in the document
    question: str
    answer: str


def turns(store: Store) -> list[Turn]:
    """Every question of a store. In each document questions (not trained) and answers (trained) alternate."""
    return [
        turn for position, document in enumerate(store.scan(with_images=False)) for turn in _turns(document, position)
    ]


def draw_over_images(questions: Sequence[Turn], *, limit: int, seed: int) -> list[int]:
    """Indices of `limit` questions: the first question of every image in a seeded order, then the second, ..."""
    order = rng(seed, "queries", 0).permutation(len(questions))
    counts: dict[int, int] = {}  # questions so far about each image
    ranked: list[tuple[int, int, int]] = []
    for index in order.tolist():
        image = questions[index].position
        ranked.append((counts.get(image, 0), len(ranked), index))
        counts[image] = counts.get(image, 0) + 1
    return sorted(index for _, _, index in sorted(ranked)[:limit])


def _turns(document: Document, position: int) -> list[Turn]:
    texts = [piece for piece in document.pieces if isinstance(piece, Text)]
    questions, answers = texts[::2], texts[1::2]
    if not texts or len(questions) != len(answers) or any(text.train for text in questions):
        raise ValueError(
            f"document {document.id!r} is no list of questions and answers: it needs a picture, then in turn "
            "a text with train=False and one with train=True"
        )
    pairs = enumerate(zip(questions, answers, strict=True))
    return [Turn(position, order, question.text, answer.text) for order, (question, answer) in pairs]


def _examples(store: Store, selected: Sequence[Turn]) -> list[Example]:
    documents = store.take([turn.position for turn in selected])
    return [
        Example(f"{document.id}#{turn.order}", document.images[0], turn.question, (turn.answer,))
        for turn, document in zip(selected, documents, strict=True)
    ]
