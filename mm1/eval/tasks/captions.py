"""Captions of the shipped sample's held-out images, scored by CIDEr. Any store of (image, text) documents works."""

from mm1.data.store import open_store
from mm1.document import Document
from mm1.eval.fewshot import CAPTION_STOPS, Example, Origin, Pool, PromptStyle, Scoring, Task, ask_caption, rng
from mm1.eval.metrics.captions import cider, cider_within


def task(limit: int, *, seed: int, queries: str = "sample:captions-test", pool: str = "sample:captions-train") -> Task:
    """The task with up to `limit` held-out images, a seeded draw; shots come from the training images.

    Raises:
        StoreError: a store is missing or broken.
        ValueError: a document is not an image and a text.
    """
    held_out, training = open_store(queries), open_store(pool)
    selected = sorted(rng(seed, "queries", 0).permutation(len(held_out))[:limit].tolist())
    answers = [document.text for document in training.scan(with_images=False)]
    return Task(
        name="captions",
        queries=[_example(document) for document in held_out.take(selected)],
        pool=Pool(len(training), lambda indices: [_example(document) for document in training.take(indices)], answers),
        style=PromptStyle(ask_caption, stops=CAPTION_STOPS),
        scoring=Scoring(cider, within=cider_within),
        split_references=[(document.text.strip(),) for document in held_out.scan(with_images=False)],
        loss=True,
        origin=Origin(queries),
    )


def _example(document: Document) -> Example:
    if not document.images or not document.text.strip():
        raise ValueError(f"document {document.id!r} is no caption: it needs a picture and a text")
    return Example(document.id, document.images[0], question="", answers=(document.text.strip(),))
