"""Labels of the sample's held-out emoji in a language that only the shots tell, scored by CIDEr.

The prompt of a query is its picture alone, after shots with labels in the query's language. Without shots a model can't
know which language is asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mm1.data.store import Store, open_store
from mm1.document import Text
from mm1.eval.fewshot import CAPTION_STOPS, Example, Origin, Pool, PromptStyle, Scoring, Task, rng
from mm1.eval.metrics.captions import cider, cider_within


def task(
    limit: int, *, seed: int, queries: str = "sample:languages-test", pool: str = "sample:languages-train"
) -> Task:
    """The task with up to `limit` held-out labels, a seeded draw; shots are training labels of the same language.

    A document of the stores is a page of one language, as its metadata says: pictures, each with its label after it.

    Raises:
        StoreError: a store is missing or broken.
        ValueError: a document is no such page.
    """
    held_out, training = open_store(queries), open_store(pool)
    labels, shots = _labels(held_out), _labels(training)
    selected = sorted(rng(seed, "queries", 0).permutation(len(labels))[:limit].tolist())
    return Task(
        name="languages",
        queries=_examples(held_out, [labels[index] for index in selected]),
        pool=Pool(
            len(shots),
            lambda indices: _examples(training, [shots[index] for index in indices]),
            answers=[label.text for label in shots],
            kinds=[label.language for label in shots],
        ),
        style=PromptStyle(lambda example: "", stops=CAPTION_STOPS),
        scoring=Scoring(cider, within=cider_within, part=lambda example: example.kind),
        split_references=[(label.text,) for label in labels],
        origin=Origin(queries),
    )


@dataclass(frozen=True, slots=True)
class Label:
    """One label of one page."""

    position: int  # of the page in its store
    order: int  # of the picture on the page
    text: str
    language: str


def _labels(store: Store) -> list[Label]:
    labels = []
    for position, page in enumerate(store.scan(with_images=False)):
        texts = [piece.text.strip() for piece in page.pieces[1::2] if isinstance(piece, Text)]
        language = page.metadata.get("language", "")
        if not language or not all(texts) or len(texts) != len(page.images) or len(page.pieces) != 2 * len(texts):
            raise ValueError(
                f"document {page.id!r} is no page of labels: it needs pictures, each followed by its label, and the "
                "language of the labels in its metadata"
            )
        labels += [Label(position, order, text, language) for order, text in enumerate(texts)]
    return labels


def _examples(store: Store, selected: Sequence[Label]) -> list[Example]:
    positions = sorted({label.position for label in selected})
    pages = dict(zip(positions, store.take(positions), strict=True))
    return [
        Example(
            f"{pages[label.position].id}#{label.order}",
            pages[label.position].images[label.order],
            question="",
            answers=(label.text,),
            kind=label.language,
        )
        for label in selected
    ]
