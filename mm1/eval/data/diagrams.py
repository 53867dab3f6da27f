"""AI2D as first released: questions, pictures and annotations by picture, and the list of the test pictures.

https://prior.allenai.org/projects/diagram-understanding; the list is ai2d_test_ids.csv, published beside the archive.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from mm1.data.image import UNREADABLE
from mm1.eval.data.release_files import ReleaseRow, reader_of
from mm1.eval.data.rows import Row, Rows, TaskError, read_json

_LARGEST_LETTER = 100  # pixels


@dataclass(frozen=True, slots=True)
class Diagrams:
    """The questions about some diagrams. `take` draws the letters that a question with `abcLabel` speaks of."""

    name: str
    folder: Path
    rows: list[Row]

    @property
    def count(self) -> int:
        return len(self.rows)

    def light(self) -> Iterator[Row]:
        return iter(self.rows)

    def take(self, positions: Sequence[int]) -> list[Row]:
        return [self.rows[position] | {"image": self._picture(self.rows[position])} for position in positions]

    def _picture(self, row: Row) -> bytes | None:
        """The picture's bytes; None, which makes the row an odd one, if it or its letters are missing or broken."""
        try:
            data = (self.folder / "images" / row["imageName"]).read_bytes()
            if not row["abcLabel"]:
                return data
            annotations = read_json(self.folder / "annotations" / f"{row['imageName']}.json")
            return with_letters(data, list(annotations["text"].values()))
        except (*UNREADABLE, AttributeError):
            return None


@reader_of("ai2d_test_ids.csv", "questions/*.json", "annotations/*.json")
def ai2d_release(folder: Path, split: str) -> Rows | None:
    """The rows of the training or the test split; None if the release is not in the folder."""
    folder = folder / "ai2d" if (folder / "ai2d").is_dir() else folder
    lists = [path for path in (folder / "ai2d_test_ids.csv", folder.parent / "ai2d_test_ids.csv") if path.is_file()]
    if split not in ("train", "test") or not lists or not (folder / "questions").is_dir():
        return None
    test = set(lists[0].read_text(encoding="utf-8").split())
    rows: list[Row] = []
    for path in sorted((folder / "questions").glob("*.json")):
        if (path.name.partition(".")[0] in test) == (split == "test"):
            rows += _questions(path)
    return Diagrams(f"{split} of {folder}", folder, rows)


def _questions(path: Path) -> list[Row]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise TaskError(f"{path} must hold a picture's questions; found {type(content).__name__}")
    whole = ReleaseRow(content, str(path))
    rows: list[Row] = []
    for question, entry in whole["questions"].items():
        row = ReleaseRow(entry, f"{path}, {question!r}")
        rows.append(
            {
                "id": row["questionId"],
                "imageName": whole["imageName"],
                "question": question,
                "options": row["answerTexts"],
                "answer": row["correctAnswer"],
                "abcLabel": row["abcLabel"],
                "drawn": f"{whole['imageName']} {row['abcLabel']}",  # both forms of a picture are two pictures
            }
        )
    return rows


def with_letters(data: bytes, texts: Sequence[dict[str, Any]]) -> bytes:
    """The diagram as a PNG, each text replaced by its letter on white, as large as it fits."""
    with Pillow.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGB")
    draw = ImageDraw.Draw(picture)
    for text in texts:
        (left, top), (right, bottom) = text["rectangle"]
        draw.rectangle(((left, top), (right, bottom)), fill="white")
        size = max(1, min(_LARGEST_LETTER, int(bottom - top), int(right - left)))
        middle = ((left + right) / 2, (top + bottom) / 2)
        draw.text(middle, text["replacementText"], fill="black", font=ImageFont.load_default(size), anchor="mm")
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
