"""easy-VQA (https://github.com/vzhou842/easy-VQA) asked as a chat: for fine-tuned models."""

from collections.abc import Sequence
from dataclasses import dataclass

from mm1.data.store import Store, open_store
from mm1.document import Document, Text
from mm1.eval.fewshot import Example, Pool, Task, rng
from mm1.eval.metrics.vqa import exact_match


def task(limit: int, *, seed: int, queries: str = "sample:vqa-test", pool: str = "sample:vqa-train") -> Task:
    """Up to `limit` held-out questions, spread over as many pictures as there are; shots from training.

    Raises:
        StoreError: a store that is missing or broken.
        ValueError: a document that is not a picture with questions and answers.
    """
    held_out, training = open_store(queries), open_store(pool)
    asked, shown = turns(held_out), turns(training)
    return Task(
        name="easy_vqa",
        queries=_examples(held_out, [asked[place] for place in spread(asked, limit=limit, seed=seed)]),
        pool=Pool(len(shown), lambda places: _examples(training, [shown[place] for place in places])),
        pool_answers=[turn.answer for turn in shown],
        ask=lambda example: example.question,
        metric=exact_match,
        form="chat",
        max_tokens=8,
    )


@dataclass(frozen=True, slots=True)
class Turn:
    """One question of one document, its texts as they stand there."""

    position: int  # of the document in its store
    order: int  # of the question in the document
    question: str
    answer: str


def turns(store: Store) -> list[Turn]:
    """Every question of a store: in each document texts alternate, one read, one trained."""
    return [
        turn for position, document in enumerate(store.scan(with_images=False)) for turn in _turns(document, position)
    ]


def spread(asked: Sequence[Turn], *, limit: int, seed: int) -> list[int]:
    """Places of `limit` questions: a first one of every picture in a seeded order, then a second, ..."""
    order = rng(seed, "queries", 0).permutation(len(asked))
    taken: dict[int, int] = {}
    ranked: list[tuple[int, int, int]] = []
    for place in order.tolist():
        picture = asked[place].position
        ranked.append((taken.get(picture, 0), len(ranked), place))
        taken[picture] = taken.get(picture, 0) + 1
    return sorted(place for _, _, place in sorted(ranked)[:limit])


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


def _examples(store: Store, asked: Sequence[Turn]) -> list[Example]:
    documents = store.take([turn.position for turn in asked])
    return [
        Example(f"{document.id}#{turn.order}", document.images[0], turn.question, (turn.answer,))
        for turn, document in zip(asked, documents, strict=True)
    ]
