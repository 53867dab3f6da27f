"""OCR-VQA, test: questions about the covers of books, by exact match without case."""

from mm1.eval.data.examples import Columns
from mm1.eval.data.original_releases import book_covers
from mm1.eval.data.published import Published, Source
from mm1.eval.fewshot import Scoring
from mm1.eval.metrics.short_answers import same_word

task = Published(
    name="ocrvqa",
    kind="vqa",
    source=Source(
        paper="https://anandmishra22.github.io/files/mishra-OCR-VQA.pdf",
        hub="dataset.json beside images",
        queries=("test",),
        shots=("train",),
        original=book_covers,
    ),
    columns=Columns(answers="answer", picture="book"),
    scoring=Scoring(same_word),
)
