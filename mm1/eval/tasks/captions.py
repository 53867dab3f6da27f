"""Captioning of the shipped sample's held-out pictures, by CIDEr. Any store of (picture, text) serves."""

from mm1.data.store import open_store
from mm1.document import Document
from mm1.eval.fewshot import CAPTION_STOPS, Example, Pool, Task, ask_caption, rng
from mm1.eval.metrics.captions import cider


def task(limit: int, *, seed: int, queries: str = "sample:captions-test", pool: str = "sample:captions-train") -> Task:
    """Up to `limit` held-out pictures, a seeded draw; shots from the training pictures.

    Raises:
        StoreError: a store that is missing or broken.
        ValueError: a document that is not a picture and a text.
    """
    held_out, training = open_store(queries), open_store(pool)
    selected = sorted(rng(seed, "queries", 0).permutation(len(held_out))[:limit].tolist())
    return Task(
        name="captions",
        queries=[_example(document) for document in held_out.take(selected)],
        pool=Pool(len(training), lambda positions: [_example(document) for document in training.take(positions)]),
        pool_answers=[document.text for document in training.scan(with_images=False)],
        ask=ask_caption,
        metric=cider,
        stops=CAPTION_STOPS,
        loss=True,
    )


def _example(document: Document) -> Example:
    if not document.images or not document.text.strip():
        raise ValueError(f"document {document.id!r} is no caption: it needs a picture and a text")
    return Example(document.id, document.images[0], question="", answers=(document.text.strip(),))
