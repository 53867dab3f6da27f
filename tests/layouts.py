"""Benchmarks in miniature, in the layouts that they were published in: what the tasks' readers are run on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import layouts_training
import layouts_tuned as tuned
from conftest import picture
from layout import cell, data, jpg, parquet, six, ten_answers, write


def vqav2(folder: Path) -> None:
    def row(n: int) -> dict[str, Any]:
        kinds = {"question_type": "what", "multiple_choice_answer": "red", "answer_type": "other"}
        return {
            **kinds,
            "answers": ten_answers(n),
            "image_id": n,
            "question_id": n,
            "question": "What?",
            "image": cell(n),
        }

    data(folder, "validation", six(row))
    data(folder, "train", six(row, start=20))


def vqav2_files(folder: Path) -> None:
    for part, start in (("val2014", 0), ("train2014", 20)):
        numbers = range(start, start + 6)
        questions = [{"image_id": n, "question": "What?", "question_id": n} for n in numbers]
        annotations = [
            {"question_type": "what", "multiple_choice_answer": "red", "answer_type": "other"}
            | {"answers": ten_answers(n), "image_id": n, "question_id": n}
            for n in numbers
        ]
        write(folder / f"v2_OpenEnded_mscoco_{part}_questions.json", {"info": {}, "questions": questions})
        write(folder / f"v2_mscoco_{part}_annotations.json", {"info": {}, "annotations": annotations})
        for n in numbers:
            jpg(folder / part / f"COCO_{part}_{n:012d}.jpg", n)


def okvqa(folder: Path) -> None:
    def row(n: int) -> dict[str, Any]:
        texts = [one["answer"] for one in ten_answers(n)]
        named = {"question_id": str(n), "question": "What?", "question_type": "one", "answer_type": "other"}
        return {**named, "image": cell(n), "answers": texts}

    data(folder, "val2014", six(row))


def okvqa_files(folder: Path) -> None:
    for part, start in (("val2014", 0), ("train2014", 20)):
        numbers = range(start, start + 6)
        questions = [{"image_id": n, "question": "What?", "question_id": n} for n in numbers]
        people = [[one | {"raw_answer": one["answer"], "answer": "stem"} for one in ten_answers(n)] for n in numbers]
        annotations = [
            {"answers": texts, "image_id": n, "question_id": n} for n, texts in zip(numbers, people, strict=True)
        ]
        write(folder / f"OpenEnded_mscoco_{part}_questions.json", {"questions": questions})
        write(folder / f"mscoco_{part}_annotations.json", {"annotations": annotations})
        for n in numbers:
            jpg(folder / part / f"COCO_{part}_{n:012d}.jpg", n)


def textvqa(folder: Path) -> None:
    def row(n: int) -> dict[str, Any]:
        texts = [one["answer"] for one in ten_answers(n)]
        named = {"image_id": f"i{n}", "question_id": n, "question": "what?", "question_tokens": ["what"]}
        return {**named, "image": cell(n), "image_width": 64, "answers": texts, "ocr_tokens": ["stop"]}

    data(folder, "validation", six(row))
    data(folder, "train", six(row, start=20))


def textvqa_files(folder: Path) -> None:
    for short, start in (("val", 0), ("train", 20)):
        rows = six(
            lambda n: {"question_id": n, "question": "what?", "image_id": f"i{n}", "answers": ["red"] * 10}, start=start
        )
        write(folder / f"TextVQA_0.5.1_{short}.json", {"data": rows})
        for n in range(start, start + 6):
            jpg(folder / "train_images" / f"i{n}.jpg", n)


def vizwiz(folder: Path) -> None:
    def row(n: int) -> dict[str, Any]:
        texts = [one["answer"] for one in ten_answers(n)]
        return {
            "question_id": f"VizWiz_val_{n}",
            "image": cell(n),
            "question": "What?",
            "answers": texts,
            "category": "x",
        }

    data(folder, "val", six(row))


def vizwiz_files(folder: Path) -> None:
    for short, start in (("val", 0), ("train", 20)):
        numbers = range(start, start + 6)
        rows = [{"image": f"VizWiz_{short}_{n}.jpg", "question": "What?", "answers": ten_answers(n)} for n in numbers]
        write(folder / "Annotations" / f"{short}.json", [row | {"answerable": 1} for row in rows])
        for n in numbers:
            jpg(folder / short / f"VizWiz_{short}_{n}.jpg", n)


def gqa(folder: Path) -> None:
    for split, start in (("testdev", 0), ("train", 20)):
        rows = six(
            lambda n: {"id": f"q{n}", "imageId": f"n{n // 2}", "question": "What?", "answer": "red"}, start=start
        )
        parquet(folder / f"{split}_balanced_instructions" / f"{split}-00000-of-00001.parquet", rows, images=())
        shown = [{"id": f"n{n}", "image": cell(n)} for n in range(start // 2 + 3, start // 2 - 1, -1)]
        parquet(folder / f"{split}_balanced_images" / f"{split}-00000-of-00001.parquet", shown)


def gqa_files(folder: Path) -> None:
    for split, start in (("testdev", 0), ("train", 20)):
        numbers = range(start, start + 6)
        rows = {f"q{n}": {"imageId": f"n{n // 2}", "question": "What?", "answer": "red"} for n in numbers}
        write(folder / f"{split}_balanced_questions.json", rows)
        for n in numbers:
            jpg(folder / "images" / f"n{n // 2}.jpg", n // 2)


def karpathy(folder: Path, *, name: str = "dataset_coco.json", image_folder: str = "") -> None:
    """Without an image folder the files are COCO's, in two folders that each row names."""
    splits = ["test", "train", "restval", "val"] * 6
    rows = []
    for n, split in enumerate(splits):
        subfolder = image_folder or ("train2014" if split == "train" else "val2014")
        sentences = [{"raw": f"{picture(11, n)[1]} {word}", "imgid": n} for word in ("here", "alone", "on black")]
        row = {"filename": f"{n}.jpg", "imgid": n, "split": split, "sentences": sentences}
        rows.append(row if image_folder else row | {"filepath": subfolder, "cocoid": n})
        jpg(folder / subfolder / f"{n}.jpg", n)
    write(folder / name, {"images": rows, "dataset": "coco"})


def flickr30k(folder: Path) -> None:
    def row(n: int) -> dict[str, Any]:
        captions = {"caption": [f"{picture(11, n)[1]} {word}" for word in ["here", "there", "alone"]], "sentids": ["1"]}
        return {
            **captions,
            "image": cell(n),
            "split": ("test", "train")[n % 2],
            "img_id": str(n),
            "filename": f"{n}.jpg",
        }

    data(folder, "test", six(row, count=12))


def flickr30k_files(folder: Path) -> None:
    karpathy(folder, name="dataset_flickr30k.json", image_folder="flickr30k-images")


def nocaps(folder: Path) -> None:
    def row(n: int) -> dict[str, Any]:
        named = {"image_coco_url": "", "image_file_name": f"{n}.jpg", "image_id": n, "image_open_images_id": str(n)}
        captions = {"annotations_ids": [1, 2], "annotations_captions": [picture(11, n)[1], "a shape"]}
        return {"image": cell(n), **named, **captions}

    data(folder, "validation", six(row))


def nocaps_files(folder: Path) -> None:
    images = [{"id": n, "file_name": f"{n}.jpg", "domain": "in-domain"} for n in range(6)]
    annotations = [{"id": n, "image_id": n // 2, "caption": picture(11, n // 2)[1]} for n in range(12)]
    write(folder / "nocaps_val_4500_captions.json", {"images": images, "annotations": annotations})
    for n in range(6):
        jpg(folder / "val" / f"{n}.jpg", n)


def textcaps(folder: Path) -> None:
    def row(n: int) -> dict[str, Any]:
        captions = [picture(11, n)[1], "a shape"]
        return {
            "question_id": f"i{n}",
            "image": cell(n),
            "image_id": f"i{n}",
            "caption_str": captions,
            "reference_strs": captions,
        }

    data(folder, "val", six(row))
    data(folder, "train", six(row, start=20))


def textcaps_files(folder: Path) -> None:
    for short, start in (("val", 0), ("train", 20)):
        rows = [
            {"image_id": f"i{n}", "caption_str": f"{word} {picture(11, n)[1]}"}
            for n in range(start, start + 6)
            for word in "ab"
        ]
        write(folder / f"TextCaps_0.1_{short}.json", {"data": rows})
        for n in range(start, start + 6):
            jpg(folder / "train_images" / f"i{n}.jpg", n)


HUB: dict[str, Callable[[Path], None]] = {
    "flickr30k": flickr30k,
    "nocaps": nocaps,
    "textcaps": textcaps,
    "vqav2": vqav2,
    "okvqa": okvqa,
    "textvqa": textvqa,
    "vizwiz": vizwiz,
    "gqa": gqa,
    "mmmu": tuned.mmmu,
    "mathvista": tuned.mathvista,
    "mmbench": tuned.mmbench,
    "mme": tuned.mme,
    "pope": tuned.pope,
    "seed": tuned.seed,
    "scienceqa": tuned.scienceqa,
    "llava_w": tuned.llava_w,
    "mm_vet": tuned.mm_vet,
    "chartqa": tuned.chartqa,
    "docvqa": tuned.docvqa,
    "infovqa": tuned.infovqa,
    "ai2d": tuned.ai2d,
    "realworldqa": tuned.realworldqa,
    "aokvqa": layouts_training.aokvqa,
}
FILES: dict[str, Callable[[Path], None]] = {
    "coco": karpathy,
    "flickr30k": flickr30k_files,
    "nocaps": nocaps_files,
    "textcaps": textcaps_files,
    "vqav2": vqav2_files,
    "okvqa": okvqa_files,
    "textvqa": textvqa_files,
    "vizwiz": vizwiz_files,
    "gqa": gqa_files,
    "mathvista": tuned.mathvista_files,
    "mmbench": tuned.mmbench_files,
    "mme": tuned.mme_files,
    "pope": tuned.pope_files,
    "seed": tuned.seed_files,
    "scienceqa": tuned.scienceqa_files,
    "llava_w": tuned.llava_w_files,
    "mm_vet": tuned.mm_vet_files,
    "chartqa": tuned.chartqa_files,
    "docvqa": tuned.docvqa_files,
    "infovqa": tuned.infovqa_files,
    "aokvqa": layouts_training.aokvqa_files,
    "dvqa": layouts_training.dvqa_files,
    "ocrvqa": layouts_training.ocrvqa_files,
    "ai2d": layouts_training.ai2d_files,
}
