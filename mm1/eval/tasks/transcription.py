"""Reading: pages of `mm1 prepare rendered_text` and their transcriptions, by the share of characters that are right."""

from pathlib import Path

from mm1.data.store import open_store
from mm1.document import Document, Text
from mm1.eval.data.rows import TaskError
from mm1.eval.fewshot import Example, Origin, Pool, PromptStyle, Scoring, Task, rng
from mm1.eval.metrics.transcription import characters_right


def task(limit: int, *, seed: int, data: str = "") -> Task:
    """The task with up to `limit` pages of the folder `data`, a seeded draw; shots come from the same folder.

    Raises:
        TaskError: no folder of rendered pages.
    """
    if not (Path(data) / "images.lance").is_dir() or not data:
        raise TaskError(f"no pages in {data or '--data'}: mm1 prepare rendered_text text=STORE count=N --to FOLDER")
    store = open_store(str(Path(data) / "images.lance"))
    selected = sorted(rng(seed, "queries", 0).permutation(len(store))[:limit].tolist())
    answers = [_transcription(document) for document in store.scan(with_images=False)]
    return Task(
        name="transcription",
        queries=[_example(document) for document in store.take(selected)],
        pool=Pool(len(store), lambda indices: [_example(document) for document in store.take(indices)], answers),
        style=PromptStyle(lambda example: example.question, form="chat", max_tokens=256),
        scoring=Scoring(characters_right),
        origin=Origin(f"{data}, {len(store)} pages"),
    )


def _example(document: Document) -> Example:
    question = "".join(piece.text for piece in document.pieces if isinstance(piece, Text) and not piece.train)
    return Example(document.id, document.images[0], question=question, answers=(_transcription(document),))


def _transcription(document: Document) -> str:
    return "".join(piece.text for piece in document.pieces if isinstance(piece, Text) and piece.train)
