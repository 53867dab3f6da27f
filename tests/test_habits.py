"""How people write names and chats, what lies about in their folders, and what a mistake of theirs is answered."""

import base64
import json
from pathlib import Path

import pytest
import webdataset

from mm1.config.base import ConfigError
from mm1.document import Image
from mm1.prepare.pipeline import BusyError, prepare
from mm1.prepare.readers.kinds import detect_kind, list_shards
from mm1.prepare.request import parse_request
from mm1.prepare.shard import InputError
from tests.conftest import picture
from tests.reading import drops, read

RED, GREEN = (picture(0, number)[0] for number in (1, 2))
QUESTION, ANSWER = {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A thing."}


def talk(path: Path, *images: object, **more: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([{"image": image, "conversations": [QUESTION, ANSWER], **more} for image in images]))
    return path


def test_a_picture_is_found_however_its_name_is_written(tmp_path):
    pictures = tmp_path / "pics"
    (pictures / "a b").mkdir(parents=True)
    path = pictures / "a b" / "1.png"
    path.write_bytes(RED)
    names = ["a b/1.png", "a b\\1.png", "./a b//1.png", "a b/../a b/1.png", str(path), f"file://{path}", path.as_uri()]
    names.append(base64.b64encode(RED).decode())
    documents, _ = read(talk(tmp_path / "t.json", *names), pictures=pictures)
    assert [document.images[0].data for document in documents] == [RED] * len(names)


def test_a_picture_outside_of_the_named_folder_is_not_read(tmp_path):
    (tmp_path / "pics").mkdir()
    (tmp_path / "1.png").write_bytes(RED)
    names = ["../1.png", "..\\1.png", str(tmp_path / "1.png"), f"file://{tmp_path}/1.png"]
    documents, ledger = read(talk(tmp_path / "t.json", *names), pictures=tmp_path / "pics")
    assert not documents
    assert drops(ledger) == {"picture whose name leads out of its folder": 4}


def test_annotations_name_pictures_in_the_folder_beside_theirs(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").write_bytes(RED)
    talk(tmp_path / "annotations" / "t.json", "../photos/1.png", "../../secret.png")
    (document,), ledger = read(tmp_path)
    assert document.images[0].data == RED
    assert drops(ledger) == {"picture whose name leads out of its folder": 1}


@pytest.mark.parametrize("name", ["system", "system_prompt"])
def test_the_system_prompt_of_a_record_is_its_first_turn(tmp_path, name):
    (tmp_path / "1.png").write_bytes(RED)
    (document,), _ = read(talk(tmp_path / "t.json", "1.png", **{name: "Be brief."}))
    assert document.pieces[0].text == "Be brief.\n"  # type: ignore[union-attr]
    assert document.metadata["system_pieces"] == "1"


def test_a_chat_about_a_video_is_left_out(tmp_path):
    _, ledger = read(talk(tmp_path / "t.json", "", videos=["v.mp4"]))
    assert drops(ledger) == {"conversation about a video or a sound": 1}


def test_a_tar_holds_chats_and_counts_the_pictures_that_it_does_not_read(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "0.tar")) as tar:
        tar.write({"__key__": "chat", "png": RED, "json": {"conversations": [QUESTION, ANSWER], "image": "x.png"}})
        tar.write({"__key__": "two", "a.png": RED, "b.jpg": GREEN, "png": GREEN, "txt": "a thing"})
    documents, ledger = read(tmp_path)
    assert [[type(piece) is Image for piece in document.pieces] for document in documents] == [[1, 0, 0], [1, 0]]
    assert documents[0].metadata["form"] == "chat"
    assert drops(ledger) == {"further picture of a sample, beside the one that is read": 2}


def test_what_a_picture_is_that_is_none(tmp_path):
    contents = (b"<!DOCTYPE html><p>gone", b"<svg xmlns=''/>", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", b"noise")
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.jpg").write_bytes(content)
        (tmp_path / f"{number}.jpg.txt").write_text("a thing")
    _, ledger = read(tmp_path)
    assert set(drops(ledger)) == {
        "web page in the place of a picture",
        "picture in SVG, which is not read",
        "picture in HEIC, which is not read; export it as JPEG",
        "picture that cannot be decoded",
    }


def test_columns_are_known_whatever_the_case_of_their_letters(tmp_path):
    (tmp_path / "1.png").write_bytes(RED)
    (tmp_path / "rows.csv").write_text("Image,Caption\n1.png,a red thing\n")
    (document,), _ = read(tmp_path / "rows.csv")
    assert len(document.images) == 1
    assert document.text == "a red thing"


def test_a_coco_file_of_objects_beside_that_of_captions_is_counted_once(tmp_path):
    (tmp_path / "1.png").write_bytes(RED)
    images = [{"id": 1, "file_name": "1.png"}]
    for name, told in (("captions", {"caption": "A thing."}), ("instances", {"bbox": [0, 0, 1, 1]})):
        annotations = [{"id": number, "image_id": 1, **told} for number in range(2)]
        (tmp_path / f"{name}.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    documents, ledger = read(tmp_path)
    assert len(documents) == 2
    assert drops(ledger) == {"COCO file without captions (of objects, keypoints)": 1}


def test_what_was_prepared_inside_of_the_input_is_no_input(tmp_path):
    (tmp_path / "a.txt").write_text("a text of some words")
    for name in ("out", "again"):
        prepare(parse_request([str(tmp_path)]), tmp_path / name)
    assert [shard.name for shard in list_shards(tmp_path, detect_kind(tmp_path))] == ["a.txt"]


def test_a_mistake_does_not_stand_in_the_way_of_the_next_try(tmp_path):
    pictures, wrong, to = tmp_path / "pics", tmp_path / "wrong", tmp_path / "out"
    pictures.mkdir()
    wrong.mkdir()
    (pictures / "1.png").write_bytes(RED)
    path = talk(tmp_path / "t.json", "1.png")
    message = r"no document is left; left out: picture that is missing: 1; first: t\.json, element 0, 1\.png; pictures="
    with pytest.raises(ValueError, match=message):
        prepare(parse_request([str(path), f"pictures={wrong}"]), to)
    with pytest.raises(ValueError, match="no document store"):
        prepare(parse_request([str(path), f"pictures={pictures}", "decontaminate=gone.lance"]), to)
    assert prepare(parse_request([str(path), f"pictures={pictures}"]), to).stores == {"images": 1}


def test_a_picture_that_arrived_is_a_change_of_the_input(tmp_path):
    (tmp_path / "1.png").write_bytes(RED)
    request = parse_request([str(talk(tmp_path / "t.json", "1.png", "2.png"))])
    prepare(request, tmp_path / "out")
    (tmp_path / "2.png").write_bytes(GREEN)
    with pytest.raises(FileExistsError, match=r"has changed since: new: 2\.png"):
        prepare(request, tmp_path / "out")


def test_another_request_is_told_in_which_fields_it_differs(tmp_path):
    folder, to = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "a text"}\n')
    (folder / "b.jsonl").write_text('{"other": 1}\n')
    assert prepare(parse_request([str(folder)]), to).failed
    to.rename(tmp_path / "elsewhere")
    with pytest.raises(BusyError, match=r"\(its request\.json differs: min_side\)"):
        prepare(parse_request([str(folder), "min_side=9"]), to)


def test_mistakes_are_answered_in_a_line_that_says_what_to_change(tmp_path):
    def said(*words: str, kind: str = "") -> str:
        with pytest.raises((InputError, ConfigError, ValueError)) as caught:
            prepare(parse_request([*words], kind=kind), tmp_path / "out")
        return str(caught.value)

    (tmp_path / "mix.yaml").write_text("datasets:\n  - a.json\n")
    (tmp_path / "query.json").write_text('[{"query": "what?", "response": "that"}]')
    (tmp_path / "gone.parquet").symlink_to("../blobs/x")
    assert "is no mixture: expected `datasets:`" in said(str(tmp_path / "mix.yaml"))
    assert "expected objects with the key text, found query, response" in said(str(tmp_path / "query.json"))
    assert "hf download" in said("HuggingFaceM4/the_cauldron")
    assert "hf download" in said("https://huggingface.co/datasets/a/b")
    assert said(str(tmp_path / "query.json"), kind="tar").count("Input should") == 1
    (tmp_path / "cache").mkdir()
    (tmp_path / "gone.parquet").rename(tmp_path / "cache" / "gone.parquet")
    message = "failed: gone.parquet: gone.parquet is a link to ../blobs/x, where nothing is; download it again"
    assert message in said(str(tmp_path / "cache"))
