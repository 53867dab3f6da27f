"""Sets of MM1's fine-tuning in miniature, in the layouts that they were published in."""

from pathlib import Path
from typing import Any

from layout import cell, data, jpg, six, write

STARTS = {"train": 20, "validation": 0}


def _choices(n: int) -> dict[str, Any]:
    people = {"direct_answers": ["oak"] * 10, "difficult_direct_answer": False, "rationales": ["It has leaves."] * 3}
    return {"question_id": f"q{n}", "question": "Which?", "choices": ["oak", "fern", "moss", "ivy"], **people}


def aokvqa(folder: Path) -> None:
    for split, start in STARTS.items():
        data(folder, split, six(lambda n: _choices(n) | {"correct_choice_idx": n % 4, "image": cell(n)}, start=start))


def aokvqa_files(folder: Path) -> None:
    for split, start in STARTS.items():
        short = {"validation": "val"}.get(split, split)
        rows = six(lambda n: _choices(n) | {"correct_choice_idx": n % 4, "image_id": n, "split": "train"}, start=start)
        write(folder / f"aokvqa_v1p0_{short}.json", rows)
        for n in range(start, start + 6):
            jpg(folder / f"{short}2017" / f"{n:012d}.jpg", n)


def dvqa_files(folder: Path) -> None:
    for part, start in (("train", 20), ("val_easy", 0), ("val_hard", 10)):
        rows = six(
            lambda n, part=part: {
                "image": f"bar_{part}_{n // 2:08d}.png",
                "question": f"What is the label of bar {n}?",
                "question_id": n,
                "template_id": "reasoning",
                "answer": "oak",
                "answer_bbox": [],
            },
            start=start,
        )
        write(folder / f"{part}_qa.json", rows)
        for row in rows:
            jpg(folder / "images" / row["image"], row["question_id"] // 2)


def ocrvqa_files(folder: Path) -> None:
    books = {}
    for n in range(12):
        questions = ["Who wrote this book?", "Is this a book on plants?"]
        answers = {"questions": questions, "answers": ["A. Writer", "Yes"], "split": 1 if n < 6 else 3}
        named = {"imageURL": f"http://books/{n}.jpg", "title": "Oaks", "authorName": "A. Writer", "genre": "Plants"}
        books[f"{n:010d}"] = {**answers, **named}
        jpg(folder / "images" / f"{n:010d}.jpg", n)
    write(folder / "dataset.json", books)


def ai2d_files(folder: Path) -> None:
    for n in range(12):
        questions = {
            f"What is {label}?": {
                "abcLabel": abc,
                "answerTexts": ["moss", "fern", "oak", "none"],
                "correctAnswer": 2,
                "questionId": f"{n}.png-{abc:d}",
            }
            for label, abc in (("green", False), ("A", True))
        }
        text = {"T0": {"rectangle": [[4, 4], [20, 14]], "replacementText": "A", "value": "oak", "textId": "T0"}}
        write(folder / "questions" / f"{n}.png.json", {"imageName": f"{n}.png", "questions": questions})
        write(folder / "annotations" / f"{n}.png.json", {"imageName": f"{n}.png", "text": text, "arrows": {}})
        jpg(folder / "images" / f"{n}.png", n)
    (folder / "ai2d_test_ids.csv").write_text("".join(f"{n}\n" for n in range(6, 12)))
