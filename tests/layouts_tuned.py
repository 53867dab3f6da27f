"""The benchmarks of fine-tuned models in miniature; see `layouts.py`."""

import base64
from pathlib import Path
from typing import Any

from conftest import picture
from layout import cell, data, jpg, parquet, six, write


def mmmu(folder: Path) -> None:
    def row(n: int) -> dict[str, Any]:
        texts = ["['a red one', '<image 2>']", "[]"][n % 2]
        kind = {"question_type": ["multiple-choice", "open"][n % 2], "subfield": "Shapes", "explanation": "It is so."}
        shown = {f"image_{k}": cell(10 * n + k) if k < 3 else None for k in range(1, 8)}
        question = {"question": "Is <image 1> this?" if n % 2 == 0 else "What is in <image 1>?", "options": texts}
        return {"id": f"validation_Art_{n}", **question, **shown, "answer": ["B", "['1.5', 'x']"][n % 2], **kind}

    images = tuple(f"image_{k}" for k in range(1, 8))
    data(folder, "validation", six(row), images=images)
    data(folder, "dev", six(row, start=20), images=images)


def mathvista_row(n: int) -> dict[str, Any]:
    kinds = [("multi_choice", "text", ["Yes", "No"], "No"), ("free_form", "float", None, "1.5")]
    question_type, answer_type, choices, answer = kinds[n % 2]
    question = {"pid": str(n), "question": "What?", "image": f"images/{n}.jpg", "choices": choices, "unit": None}
    form = {"precision": 1.0, "answer": answer, "question_type": question_type, "answer_type": answer_type}
    return {**question, **form, "query": "Hint: ... What?"}


def mathvista(folder: Path) -> None:
    rows = six(lambda n: mathvista_row(n) | {"decoded_image": cell(n)})
    data(folder, "testmini", rows, images=("decoded_image",))


def mathvista_files(folder: Path) -> None:
    rows = six(mathvista_row)
    write(folder / "testmini.json", {row["pid"]: row for row in rows})
    for n in range(6):
        jpg(folder / "images" / f"{n}.jpg", n)


def mmbench_row(n: int) -> dict[str, Any]:
    texts = {"A": "red", "B": "blue", "C": "green" if n % 2 else None, "D": None}
    named = {"category": "colour", "source": "x", "L2-category": "y", "comment": "nan", "split": "dev"}
    return {"index": n, "question": "Which?", "hint": ["nan", "Look."][n % 2], "answer": "B", **texts, **named}


def mmbench(folder: Path) -> None:
    parquet(folder / "en" / "dev-00000-of-00001.parquet", six(lambda n: mmbench_row(n) | {"image": cell(n)}))


def mmbench_files(folder: Path) -> None:
    rows = six(mmbench_row)
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join([*rows[0], "image"])]
    for n, row in enumerate(rows):
        image = base64.b64encode(picture(11, n)[0]).decode()
        lines.append("\t".join(["" if value is None else str(value) for value in row.values()] + [image]))
    (folder / "mmbench_dev_en_20231003.tsv").write_text("\n".join(lines) + "\n")


def mme(folder: Path) -> None:
    def row(n: int) -> dict[str, Any]:
        kind = ["count", "OCR", "code_reasoning"][n // 2]
        question = {"question": f"Is it {n % 2}? Please answer yes or no.", "answer": ["Yes", "No"][n % 2]}
        return {"question_id": f"{kind}/{n // 2}.jpg", "image": cell(n // 2), **question, "category": kind}

    data(folder, "test", six(row))


def mme_files(folder: Path) -> None:
    for n, kind in enumerate(["count", "OCR", "code_reasoning"]):
        jpg(folder / kind / f"{n}.jpg", n)
        text = "Is it 0? Please answer yes or no.\tYes\nIs it 1? Please answer yes or no.\tNo\n"
        (folder / kind / f"{n}.txt").write_text(text)


def pope(folder: Path) -> None:
    def row(n: int) -> dict[str, Any]:
        question = {"question": "Is there a dog in the image?", "answer": ["yes", "no"][n % 2], "image_source": f"v{n}"}
        kinds = {"category": ["random", "popular", "adversarial"][n % 3]}
        return {"id": str(n), "question_id": str(n // 3), **question, "image": cell(n), **kinds}

    data(folder, "test", six(row))


def pope_files(folder: Path) -> None:
    for category in ("random", "popular", "adversarial"):
        rows = six(lambda n: {"question_id": n + 1, "image": f"{n}.jpg", "text": "Dog?", "label": ["yes", "no"][n % 2]})
        write(folder / f"coco_pope_{category}.json", rows, lines=True)
    for n in range(6):
        jpg(folder / "val2014" / f"{n}.jpg", n)


def seed_row(n: int) -> dict[str, Any]:
    texts = {f"choice_{letter}": f"{letter} shape" for letter in "abcd"}
    kinds = {"data_id": f"{n}.jpg", "data_type": "image" if n < 6 else "video", "question_type_id": 1}
    return {"answer": "C", **texts, **kinds, "question": "Which?", "question_id": str(n)}


def seed(folder: Path) -> None:
    data(folder, "test", six(lambda n: seed_row(n) | {"image": [cell(n)], "segment": None}, count=8))


def seed_files(folder: Path) -> None:
    write(folder / "SEED-Bench.json", {"questions": six(seed_row, count=8), "question_type": {}})
    for n in range(6):
        jpg(folder / "SEED-Bench-image" / f"{n}.jpg", n)


def scienceqa_row(n: int) -> dict[str, Any]:
    question = {
        "question": "Which?",
        "choices": ["red", "blue", "green"][: 2 + n % 2],
        "answer": 1,
        "hint": "Look." * (n % 2),
    }
    return {**question, "task": "closed choice", "grade": "grade2", "lecture": "", "solution": f"It is blue, see {n}."}


def scienceqa(folder: Path) -> None:
    for split, start in (("test", 0), ("train", 20)):
        rows = six(lambda n: {"image": cell(n), **scienceqa_row(n)}, start=start)
        parquet(folder / "ScienceQA-IMG" / f"{split}-00000-of-00001.parquet", rows)


def scienceqa_files(folder: Path) -> None:
    rows = {}
    for n in range(14):
        split = "test" if n < 7 else "train"
        rows[str(n)] = scienceqa_row(n) | {"split": split, "image": None if n % 7 == 6 else "image.png"}
        jpg(folder / "images" / split / str(n) / "image.png", n)
    write(folder / "problems.json", rows)


def llava_w(folder: Path) -> None:
    def row(n: int) -> dict[str, Any]:
        reference = {"caption": "A shape.", "gpt_answer": "It is a shape.", "category": "conv", "image_id": f"{n:03d}"}
        return {"question_id": n, "question": "Describe it.", "image": cell(n), **reference}

    data(folder, "train", six(row))


def llava_w_files(folder: Path) -> None:
    rows = six(lambda n: {"question_id": n, "image": f"{n:03d}.jpg", "text": "Describe it.", "category": "conv"})
    write(folder / "questions.jsonl", rows, lines=True)
    write(folder / "context.jsonl", [{"image": row["image"], "caption": "A shape."} for row in rows], lines=True)
    answers = [{"question_id": row["question_id"], "text": "It is a shape."} for row in rows]
    write(folder / "answers_gpt4.jsonl", answers, lines=True)
    for n in range(6):
        jpg(folder / "images" / f"{n:03d}.jpg", n)


def mm_vet(folder: Path) -> None:
    def row(n: int) -> dict[str, Any]:
        named = {"question_id": f"v1_{n}", "image_source": "x", "capability": "ocr,math"}
        return {**named, "image": cell(n), "question": "What?", "answer": "a shape"}

    data(folder, "test", six(row))


def mm_vet_files(folder: Path) -> None:
    rows = six(lambda n: {"imagename": f"v1_{n}.png", "question": "What?", "answer": "a shape", "capability": ["ocr"]})
    write(folder / "mm-vet.json", {f"v1_{n}": row for n, row in enumerate(rows)})
    for n in range(6):
        jpg(folder / "images" / f"v1_{n}.png", n)


def chartqa(folder: Path) -> None:
    def row(n: int) -> dict[str, Any]:
        kind = ["human_test", "augmented_test"][n % 2]
        return {"type": kind, "question": "How many?", "answer": str(n), "image": cell(n)}

    data(folder, "test", six(row))


def chartqa_files(folder: Path) -> None:
    for split in ("test", "train"):
        for kind in ("human", "augmented"):
            rows = six(lambda n: {"imgname": f"{n}.png", "query": "How many?", "label": str(n)})
            write(folder / split / f"{split}_{kind}.json", rows)
        for n in range(6):
            jpg(folder / split / "png" / f"{n}.png", n)


def document_row(n: int) -> dict[str, Any]:
    return {"questionId": str(n), "question": "What date?", "answers": ["1/8/93", "January 8"]}


def docvqa(folder: Path) -> None:
    parquet(
        folder / "DocVQA" / "validation-00000-of-00001.parquet",
        six(
            lambda n: document_row(n) | {"image": cell(n), "docId": n, "data_split": "val", "question_types": ["form"]}
        ),
    )


def docvqa_files(folder: Path) -> None:
    for short, start in (("val", 0), ("train", 20)):
        rows = six(lambda n: document_row(n) | {"image": f"documents/{n}.png", "docId": n}, start=start)
        write(folder / f"{short}_v1.0_withQT.json", {"dataset_name": "SP-DocVQA", "data": rows})
        for n in range(start, start + 6):
            jpg(folder / "documents" / f"{n}.png", n)


def infovqa(folder: Path) -> None:
    rows = six(lambda n: document_row(n) | {"image": cell(n), "answer_type": ["single span"], "image_url": "x"})
    parquet(folder / "InfographicVQA" / "validation-00000-of-00001.parquet", rows)


def infovqa_files(folder: Path) -> None:
    for name, start in (("val_v1.0_withQT", 0), ("train_v1.0", 20)):
        rows = six(lambda n: document_row(n) | {"image_local_name": f"{n}.jpeg", "image_url": "x"}, start=start)
        write(folder / f"infographicsVQA_{name}.json", {"data": rows})
        for n in range(start, start + 6):
            jpg(folder / "infographicsvqa_images" / f"{n}.jpeg", n)


def ai2d(folder: Path) -> None:
    texts = ["moss", "fern", "oak", "none"]
    data(folder, "test", six(lambda n: {"question": "Which?", "options": texts, "answer": "2", "image": cell(n)}))


def realworldqa(folder: Path) -> None:
    ask = "\nPlease answer directly with "
    selected = f"Which way?\n\nA. left\nB. right\nC. on{ask}only the letter of the correct option and nothing else."
    free = f"How many cars?{ask}a single word or number."

    def row(n: int) -> dict[str, Any]:
        return {
            "image": cell(n),
            "image_path": f"{n}.webp",
            "question": [selected, free][n % 2],
            "answer": ["B", "3"][n % 2],
        }

    data(folder, "test", six(row))
