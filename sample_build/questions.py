"""Pictures with questions and answers: easy-VQA in its official split, one document per picture."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from mm1.document import Document, Image, Piece, Text
from mm1.prepare.images import PictureError, encode_webp, open_picture
from sample_build.sources import EASY_VQA


def easy_vqa(cache: Path, drops: Counter[str], *, split: Literal["train", "test"]) -> Iterator[Document]:
    """The picture, then each question (not trained) and its answer (trained), in the order of the data set."""
    folder = EASY_VQA.folder(cache) / "easy_vqa" / "data" / split
    by_picture: dict[int, list[tuple[str, str]]] = {}
    for question, answer, picture in json.loads((folder / "questions.json").read_text(encoding="utf-8")):
        by_picture.setdefault(picture, []).append((question, answer))
    for number, pairs in sorted(by_picture.items()):
        try:
            data = _smallest((folder / "images" / f"{number}.png").read_bytes())
        except PictureError as error:
            drops[f"easy-vqa: {error}"] += 1
            continue
        pieces: list[Piece] = [Image(data)]
        for question, answer in pairs:
            pieces += [Text(question, train=False), Text(answer)]
        yield Document(
            tuple(pieces),
            id=f"easy-vqa/{split}/{number}",
            source=EASY_VQA.name,
            metadata=EASY_VQA.metadata(form="chat"),
        )


def _smallest(png: bytes) -> bytes:
    """The picture as PNG or lossless WebP, whichever is smaller."""
    webp = encode_webp(open_picture(png), quality=100)
    return min(webp, png, key=len)
