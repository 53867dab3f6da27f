"""First releases as they are unpacked today, and what is said of files that are laid out otherwise."""

import json
import shutil
from pathlib import Path

import layouts
import pytest

from mm1.eval.data.rows import TaskError
from mm1.eval.harness import load_task
from mm1.eval.index import find_task
from mm1.eval.training_chats import TrainingChats


def released(name: str, folder: Path) -> Path:
    layouts.FILES[name](folder)
    return folder


def without(keys: set[str], value):
    """A JSON value whose objects have lost some keys."""
    if isinstance(value, dict):
        return {key: without(keys, inner) for key, inner in value.items() if key not in keys}
    return [without(keys, inner) for inner in value] if isinstance(value, list) else value


def strip_keys(folder: Path, pattern: str, *keys: str) -> None:
    for path in folder.rglob(pattern):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        path.write_text("\n".join(json.dumps(without(set(keys), json.loads(line))) for line in lines))


def test_answers_of_ok_vqa_are_read_where_they_are_not_stemmed(tmp_path: Path):
    folder = released("okvqa", tmp_path / "OK-VQA")
    strip_keys(folder, "mscoco_*_annotations.json", "raw_answer")
    task = load_task("okvqa", limit=100, seed=0, data=str(folder))
    assert {example.answers[0] for example in task.queries} == {"stem"}


LACKING = {
    "vqav2 annotations": ("vqav2", "v2_mscoco_val*.json", "answer", r"row 0 of 'answers' has no 'answer'"),
    "vqav2 questions": ("vqav2", "v2_Open*val*.json", "image_id", r"row 0 of 'questions' has no 'image_id'; found que"),
    "coco": ("coco", "dataset_coco.json", "raw", r"row \d+ of 'sentences' has no 'raw'"),
    "nocaps": ("nocaps", "nocaps_val*.json", "file_name", r"row 0 of 'images' has no 'file_name'"),
    "nocaps captions": ("nocaps", "nocaps_val*.json", "caption", r"row 0 of 'annotations' has no 'caption'"),
    "textcaps": ("textcaps", "TextCaps*val.json", "caption_str", r"row 0 of 'data' has no 'caption_str'"),
    "scienceqa": ("scienceqa", "problems.json", "split", r"row '\w+' has no 'split'"),
    "llava_w": ("llava_w", "questions.jsonl", "text", r"row 0 has no 'text'"),
    "ocrvqa": ("ocrvqa", "dataset.json", "answers", r"row '\d+' has no 'answers'"),
    "ai2d": ("ai2d", "*.png.json", "correctAnswer", r"'What is \w+\?' has no 'correctAnswer'"),
    "mm_vet": ("mm_vet", "mm-vet.json", "imagename", r"row '\w+' has no 'imagename'"),
}


@pytest.mark.parametrize(("name", "pattern", "key", "fault"), LACKING.values(), ids=LACKING.keys())
def test_a_key_that_a_release_lacks_is_named_with_its_file_and_the_layout(name, pattern, key, fault, tmp_path: Path):
    folder = released(name, tmp_path / "data")
    strip_keys(folder, pattern, key)
    with pytest.raises(TaskError) as error:
        load_task(name, limit=100, seed=0, data=str(folder))
    assert error.match(rf"{folder}/.*json.*, {fault}")
    assert error.match(rf"; expected: .* as released with http.*, or .* of {find_task(name).source.hub}$")


def test_a_value_of_another_kind_is_named_with_the_layout(tmp_path: Path):
    folder = released("vqav2", tmp_path / "data")
    path = folder / "v2_OpenEnded_mscoco_val2014_questions.json"
    path.write_text(path.read_text().replace('"image_id": 0', '"image_id": "zero"'))
    with pytest.raises(TaskError, match=r"has another layout .*; expected: v2_OpenEnded_mscoco_val2014_questions"):
        load_task("vqav2", limit=100, seed=0, data=str(folder))


def test_a_folder_of_other_files_is_answered_with_those_that_are_read(tmp_path: Path):
    (tmp_path / "notes").mkdir()
    message = (
        r"splits there: none; expected: train_human.json, train_augmented.json as released with "
        r"https://arxiv.org/abs/2203.10244, or data/train-\* or train-\* of lmms-lab-encoder/ChartQA"
    )
    with pytest.raises(TaskError, match=message):
        len(TrainingChats("chartqa", str(tmp_path)))


@pytest.mark.parametrize("name", [name for name in layouts.FILES if find_task(name).source.original is not None])
def test_a_release_is_read_in_a_folder_of_its_clone(name: str, tmp_path: Path):
    alone = load_task(name, limit=100, seed=0, data=str(released(name, tmp_path / "alone")))
    (tmp_path / "clone" / ".git").mkdir(parents=True)
    (tmp_path / "clone" / "README.md").write_text("a data set")
    shutil.copytree(tmp_path / "alone", tmp_path / "clone" / "Data Set")
    cloned = load_task(name, limit=100, seed=0, data=str(tmp_path / "clone"))
    assert [query.id for query in cloned.queries] == [query.id for query in alone.queries]
    assert cloned.pool.count == alone.pool.count


def test_docvqa_is_read_as_it_is_unpacked_today(tmp_path: Path):
    folder = released("docvqa", tmp_path / "DocVQA")
    before = load_task("docvqa", limit=100, seed=0, data=str(folder))
    (folder / "spdocvqa_qas").mkdir()
    (folder / "spdocvqa_images").mkdir()
    for path in [*folder.rglob("*.json")]:
        path.rename(folder / "spdocvqa_qas" / path.name)
    for path in [*folder.rglob("*.png"), *folder.rglob("*.jpg")]:
        path.rename(folder / "spdocvqa_images" / path.name)
    assert '"documents/' in (folder / "spdocvqa_qas" / "val_v1.0_withQT.json").read_text()
    after = load_task("docvqa", limit=100, seed=0, data=str(folder))
    assert [query.image.data for query in after.queries] == [query.image.data for query in before.queries]
    assert not after.origin.left_out
    assert len(TrainingChats("docvqa", str(folder))) > 0
