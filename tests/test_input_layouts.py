"""The layouts in which people hold pictures and texts, as their writers write them, and what is said of others."""

import base64
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from mm1.document import Document, Image, Text
from mm1.prepare.readers.kinds import detect_kind
from mm1.prepare.request import parse_request
from mm1.prepare.shard import InputError, ReadOptions
from tests.conftest import picture
from tests.reading import drops, read

RED, GREEN, BLUE = (picture(0, number)[0] for number in (1, 2, 5))
QUESTION, ANSWER = {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A thing."}


def shapes(document: Document) -> list[bytes | str]:
    return [piece.data if isinstance(piece, Image) else piece.text.strip() for piece in document.pieces]


def options(*fields: str) -> ReadOptions:
    """What the command line makes of some fields."""
    return parse_request(["sample.tar", *fields], kind="tars").read_options


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


ROWS = [{"file_name": "a.png", "text": "a red thing"}, {"file_name": "sub/b.png", "text": "a green, round thing"}]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_an_imagefolder_with_metadata(tmp_path, form):
    folder = tmp_path / "train"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.png").write_bytes(RED)
    (folder / "sub" / "b.png").write_bytes(GREEN)
    if form == "parquet":
        table(folder / "metadata.parquet", ROWS)
    elif form == "jsonl":
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        (folder / "metadata.csv").write_text('file_name,text\na.png,a red thing\nsub/b.png,"a green, round thing"\n')
    for path in (tmp_path, folder / f"metadata.{form}"):
        documents, ledger = read(path)
        assert [shapes(document) for document in documents] == [[RED, "a red thing"], [GREEN, "a green, round thing"]]
        assert not ledger.skipped


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_pictures_that_the_metadata_does_not_name_are_counted(tmp_path, form):
    for name, data in (("a.png", RED), ("b.png", GREEN), ("c.png", BLUE)):
        (tmp_path / name).write_bytes(data)
    rows = [{"file_name": "a.png", "text": "a red thing"}, {"file_name": "./gone.png", "text": "nothing"}]
    if form == "parquet":
        table(tmp_path / "metadata.parquet", rows)
    elif form == "csv":
        (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a red thing\n./gone.png,nothing\n")
    else:
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    documents, ledger = read(tmp_path)
    assert len(documents) == 1
    assert drops(ledger) == {"picture that the metadata doesn't name": 2, "picture that is missing": 1}


def test_a_row_with_several_pictures_and_one_text(tmp_path):
    (tmp_path / "a.png").write_bytes(RED)
    (tmp_path / "b.png").write_bytes(GREEN)
    row = {"file_names": ["a.png", "b.png"], "text": "two things"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    (document,), ledger = read(tmp_path)
    assert shapes(document) == [RED, GREEN, "two things"]
    assert not ledger.unexpected()


@pytest.mark.parametrize("name", ["captions.csv", "captions.tsv", "captions.jsonl", "captions.json"])
def test_a_table_of_captions_beside_its_pictures(tmp_path, name):
    (tmp_path / "a.png").write_bytes(RED)
    rows = [{"image": "a.png", "caption": "a red thing"}, {"image": "gone.png", "caption": "nothing"}]
    texts = {
        "csv": "image,caption\r\na.png,a red thing\r\ngone.png,nothing\r\n",
        "tsv": "image\tcaption\na.png\ta red thing\ngone.png\tnothing\n",
        "jsonl": "\n".join(map(json.dumps, rows)),
        "json": json.dumps(rows, indent=1),
    }
    (tmp_path / name).write_text("\ufeff" + texts[name.partition(".")[2]], encoding="utf-8")
    (document,), ledger = read(tmp_path)
    assert shapes(document) == [RED, "a red thing"]
    assert drops(ledger) == {"picture that is missing": 1}


def test_conceptual_captions_has_no_names_of_columns(tmp_path):
    (tmp_path / "Train_GCC-training.tsv").write_text(
        "a red thing\thttp://e.org/1.jpg\na green thing\thttp://e.org/2.jpg\n"
    )
    _, ledger = read(tmp_path)
    assert drops(ledger) == {"picture by address only, not fetched (fetch=true fetches)": 2}


def uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def part(**fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": None, "index": None} | fields


PARTS: dict[str, list[dict[str, Any]]] = {
    "by index": [part(type="image", index=1), part(text="and"), part(type="image", index=0)],
    "in order": [part(type="image"), part(text="and"), part(type="image")],
    "openai": [
        {"type": "image_url", "image_url": {"url": uri(GREEN)}},
        {"type": "text", "text": "and"},
        {"type": "image_url", "image_url": {"url": uri(RED)}},
    ],
    "qwen": [{"type": "image", "image": "b.png"}, {"type": "text", "text": "and"}, {"type": "image", "image": "a.png"}],
}


@pytest.mark.parametrize("form", PARTS)
@pytest.mark.parametrize("ending", ["json", "jsonl", "parquet"])
def test_messages_whose_content_is_parts(tmp_path, form, ending):
    (tmp_path / "a.png").write_bytes(RED)
    (tmp_path / "b.png").write_bytes(GREEN)
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Two things."}]}
    row: dict[str, Any] = {"messages": [{"role": "user", "content": PARTS[form]}, answer]}
    if form in ("by index", "in order"):
        row["images"] = ["a.png", "b.png"] if form == "by index" else ["b.png", "a.png"]
    if ending == "parquet":
        table(tmp_path / "x.parquet", [row])
    else:
        (tmp_path / f"x.{ending}").write_text(json.dumps([row] if ending == "json" else row))
    (document,), ledger = read(tmp_path / f"x.{ending}")
    assert shapes(document) == [GREEN, "and", RED, "Two things."]
    assert [piece.train for piece in document.pieces if isinstance(piece, Text)] == [False, True]
    assert not ledger.unexpected()


def test_a_part_that_is_neither_text_nor_a_picture_is_named(tmp_path):
    turns = [{"role": "user", "content": [{"type": "video", "video": "x.mp4"}]}, {"role": "assistant", "content": "?"}]
    (tmp_path / "x.json").write_text(json.dumps([{"messages": turns}]))
    documents, ledger = read(tmp_path / "x.json")
    assert not documents
    assert drops(ledger) == {"turn with a part of no known type": 1}
    assert ledger.examples[0].detail == "video"


CAPTIONS = {
    "a list": {"caption": ["a thing", "one thing", "it"]},
    "numbered": {"caption_0": "a thing", "caption_1": "one thing", "caption_2": "it"},
    "sentences of coco": {"sentences": [{"raw": "a thing"}, {"raw": "one thing"}, {"raw": "it"}]},
    "a list as text": {"raw": json.dumps(["a thing", "one thing", "it"])},
}


@pytest.mark.parametrize("form", CAPTIONS)
def test_each_of_several_captions_makes_a_document(tmp_path, form):
    documents, ledger = read(table(tmp_path / "x.parquet", [{"image": {"bytes": RED, "path": None}, **CAPTIONS[form]}]))
    assert [shapes(document) for document in documents] == [[RED, text] for text in ("a thing", "one thing", "it")]
    assert len({document.id for document in documents}) == ledger.records.read == ledger.pictures.read == 3


def test_turns_of_finevision_are_kept_by_their_ratings(tmp_path):
    turns = [{"user": f"Question {n}?", "assistant": f"Answer {n}."} for n in range(3)]
    ratings = {"relevance_ratings": [5, 2, 4], "visual_dependency_ratings": [1, 5, None], "relevance_min": 2}
    rows = [{"images": [{"bytes": RED, "path": None}], "texts": turns, "source": "s", **ratings}]
    path = table(tmp_path / "0.parquet", rows)
    for fields, numbers in ((), [0, 1, 2]), (("min_ratings=relevance=4",), [0, 2]):
        (document,), _ = read(path, options=options(*fields))
        assert document.text == "".join(f"Question {n}?Answer {n}." for n in numbers)
    (document,), _ = read(path, options=options("min_ratings=relevance=3,visual_dependency=2"))
    assert document.text == "Question 2?Answer 2."
    documents, ledger = read(path, options=options("min_ratings=relevance=4.5,visual_dependency=2"))
    assert not documents
    assert drops(ledger) == {"conversation whose turns are rated lower than asked (min_ratings)": 1}
    assert not ledger.unexpected()
    with pytest.raises(ValueError, match="min_ratings"):
        options("min_ratings=beauty=4")


def test_a_mixture_of_llava_next(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(RED)
    for name in "abc":
        talk = [{"id": f"{name}{n}", "image": "a.png", "conversations": [QUESTION, ANSWER]} for n in range(10)]
        (tmp_path / f"{name}.json").write_text(json.dumps(talk))
    path = tmp_path / "mix.yaml"
    path.write_text(
        "datasets:\n  - json_path: '{a,b}.json'\n    sampling_strategy: 'first:25%'\n"
        f"  - json_path: {tmp_path}/c.json\n    sampling_strategy: end:2\n"
    )
    documents, ledger = read(path, pictures=tmp_path / "pictures")
    assert [document.id.rpartition("/")[2] for document in documents] == [
        "a0",
        "a1",
        "a2",
        "b0",
        "b1",
        "b2",
        "c8",
        "c9",
    ]
    assert drops(ledger) == {"conversation that the mixture's sampling_strategy leaves out": 22}
    assert not ledger.unexpected()
    path.write_text("datasets:\n  - json_path: a.json\n    sampling_strategy: random:3\n")
    assert len(read(path, pictures=tmp_path / "pictures")[0]) == 3
    for text, message in (
        ("datasets:\n  - json_path: d.json\n", "there is no .*d.json"),
        ("datasets:\n  - json_path: a.json\n    sampling_strategy: half\n", "'half'; expected all, or first"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read(path)


PAGE_ROWS = {
    "wikipedia": {"id": "1", "url": "https://en.wikipedia.org/wiki/A", "title": "A"},
    "c4": {"url": "https://e.org/page.html", "timestamp": "2019-04-25T12:57:54Z"},
    "culturax": {"url": "https://e.org/page", "source": "mC4"},
}


@pytest.mark.parametrize("form", PAGE_ROWS)
def test_the_address_of_a_page_is_not_taken_for_a_pictures(tmp_path, form):
    path = table(tmp_path / "train.parquet", [{**PAGE_ROWS[form], "text": "A river flows."}])
    (document,), _ = read(path)
    assert shapes(document) == ["A river flows."]
    assert document.metadata == {"url": PAGE_ROWS[form]["url"]}


def test_the_address_of_a_picture_beside_a_text_is_one(tmp_path):
    rows = [{"url": f"https://e.org/{n}.jpg?w=3", "text": "a thing", "width": 3} for n in range(2)]
    _, ledger = read(table(tmp_path / "coyo.parquet", rows))
    assert drops(ledger) == {"picture by address only, not fetched (fetch=true fetches)": 2}


def test_splits_of_a_saved_data_set(tmp_path):
    def split(*texts: str) -> datasets.Dataset:
        return datasets.Dataset.from_list([{"text": text} for text in texts])

    datasets.DatasetDict(train=split("one", "two"), test=split("three")).save_to_disk(tmp_path / "set")
    (tmp_path / "set" / "train" / "cache-0123.arrow").write_bytes(b"what map() has computed")
    everything, _ = read(tmp_path / "set")
    assert sorted(document.text for document in everything) == ["one", "three", "two"]
    documents, ledger = read(tmp_path / "set", options=options("split=train"))
    assert [document.text for document in documents] == ["one", "two"]
    assert not ledger.unexpected()
    with pytest.raises(InputError, match="no split dev; it has test, train"):
        read(tmp_path / "set", options=options("split=dev"))


def test_splits_by_name_of_file_or_by_column(tmp_path):
    for name in ("train-00000-of-00001", "train_sft-00000-of-00001", "test-00000-of-00001"):
        table(tmp_path / "data" / f"{name}.parquet", [{"text": name.partition("-")[0]}])
    for split in ("train_sft", "test"):
        documents, _ = read(tmp_path, options=options(f"split={split}"))
        assert [document.text for document in documents] == [split]
    rows = [{"text": name, "split": name} for name in ("train", "val")]
    documents, ledger = read(table(tmp_path / "one.parquet", rows), options=options("split=val"))
    assert [document.text for document in documents] == ["val"]
    assert drops(ledger) == {"record of another split": 1}
    with pytest.raises(InputError, match="no split val"):
        read(table(tmp_path / "two.parquet", [{"text": "x"}]), options=options("split=val"))


def test_karpathys_splits(tmp_path):
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014" / "a.png").write_bytes(RED)
    (tmp_path / "b.png").write_bytes(GREEN)
    sentences = [{"raw": "A red  thing."}, {"raw": "It is red."}]
    images = [
        {"filepath": "val2014", "filename": "a.png", "split": "restval", "imgid": 0, "sentences": sentences},
        {"filename": "b.png", "split": "test", "imgid": 1, "sentences": [{"raw": "A green thing."}]},
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    documents, _ = read(tmp_path / "dataset_coco.json")
    assert [shapes(one) for one in documents] == [[RED, "A red thing."], [RED, "It is red."], [GREEN, "A green thing."]]
    documents, ledger = read(tmp_path / "dataset_coco.json", options=options("split=test"))
    assert [shapes(one) for one in documents] == [[GREEN, "A green thing."]]
    assert drops(ledger) == {"record of another split": 2}


def test_rows_of_several_pictures_are_not_taken_for_coco(tmp_path):
    (tmp_path / "a.png").write_bytes(RED)
    row = {"images": ["a.png"], "text": "a red thing", "dataset": "mine", "license": "cc0"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    (document,), _ = read(tmp_path)
    assert shapes(document) == [RED, "a red thing"]
    assert document.metadata == {"license": "cc0"}


@pytest.mark.parametrize("indent", [None, 1])
def test_arrays_of_texts(tmp_path, indent):
    (tmp_path / "texts.json").write_text(json.dumps([{"text": "one"}, {"text": "two"}], indent=indent))
    assert detect_kind(tmp_path) == "text"
    assert [document.text for document in read(tmp_path)[0]] == ["one", "two"]


def write_tar(path: Path, *members: tuple[str, str]) -> Path:
    with webdataset.TarWriter(str(path)) as tar:
        for name, ending in members:
            data = RED if ending.endswith("jpg") else b"words about it"
            tar.write({"__key__": name, ending: data})
    return path


def test_names_with_dots_in_a_tar_are_named_or_read_by_their_last_dot(tmp_path):
    names = [f"22.{number:02}" for number in range(3)]
    path = write_tar(tmp_path / "0.tar", *((name, ending) for name in names for ending in ("jpg", "txt")))
    documents, ledger = read(path)
    assert not documents
    assert drops(ledger) == {"sample whose names have more than one dot (--key last-dot, or columns=)": 1}
    assert ledger.examples[0].detail == "22.00.jpg, 22.01.jpg, 22.02.jpg"
    assert ledger.pictures.read == 3
    documents, ledger = read(path, options=options("key=last-dot"))
    assert [document.id for document in documents] == [f"0.tar/{name}" for name in names]


def test_a_sample_with_a_word_before_its_endings_is_read(tmp_path):
    path = write_tar(
        tmp_path / "0.tar", ("a", "input.jpg"), ("a", "output.txt"), ("b", "input.jpg"), ("b", "output.txt")
    )
    assert [shapes(document) for document in read(path)[0]] == [[RED, "words about it"]] * 2
    path = write_tar(tmp_path / "1.tar", ("a", "before.jpg"), ("a", "after.jpg"), ("a", "note.txt"))
    (document,), _ = read(path, options=options("columns=image=after.jpg,text=note.txt"))
    assert shapes(document) == [RED, "words about it"]


def test_captions_in_the_json_of_a_sample(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "0.tar")) as tar:
        tar.write({"__key__": "a", "jpg": RED, "json": {"caption": ["one", "two"], "url": "https://e.org"}})
        tar.write({"__key__": "b", "JPG": GREEN, "TXT": "three"})
        tar.write({"__key__": "c", "jpg": BLUE, "json": {"caption": None}})
    documents, ledger = read(tmp_path)
    assert [shapes(document) for document in documents] == [[RED, "one"], [RED, "two"], [GREEN, "three"]]
    assert drops(ledger) == {"sample without a caption": 1}


def test_unusual_columns_are_named_and_unknown_ones_said(tmp_path):
    path = table(tmp_path / "x.parquet", [{"pic": RED, "alternative": "a red thing", "caption": "not this"}])
    (document,), _ = read(path, options=options("columns=image=pic,text=alternative"))
    assert shapes(document) == [RED, "a red thing"]
    with pytest.raises(InputError, match="no column 'photo'; it has alternative, caption, pic"):
        read(path, options=options("columns=image=photo"))
    path = table(tmp_path / "y.parquet", [{"pic": RED, "label": 3}])
    with pytest.raises(InputError, match=r"has the columns label, pic; expected .*columns=image=NAME,text=NAME"):
        read(path)
    with pytest.raises(ValueError, match="columns"):
        options("columns=sound=x")
    path = table(tmp_path / "news.parquet", [{"url": "https://e.org/news", "title": "News", "body": "A river flows."}])
    (document,), _ = read(path, options=options("columns=text=body"))
    assert shapes(document) == ["A river flows."]
    (tmp_path / "odd.jsonl").write_text('{"image": "x.png", "caption": "a"}\n{"image": "x.png"}\n{"caption": "b"}\n')
    _, ledger = read(tmp_path / "odd.jsonl")
    assert drops(ledger) == {"picture that is missing": 1, "row without a text": 1, "row without a picture": 1}
    (tmp_path / "z.jsonl").write_text('{"body": "A river flows."}\n')
    (document,), _ = read(tmp_path / "z.jsonl", kind="text", options=options("columns=text=body"))
    assert shapes(document) == ["A river flows."]


def test_a_phones_folder_with_captions_says_what_it_cannot_read(tmp_path):
    for number, (caption, codec) in enumerate([("café", "utf-8-sig"), ("café", "utf-16"), ("café", "cp1252")]):
        (tmp_path / f"IMG_{number}.JPG").write_bytes((RED, GREEN, BLUE)[number])
        (tmp_path / f"IMG_{number}.TXT").write_text(caption, encoding=codec)
    (tmp_path / "IMG_7.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "IMG_8.MOV").write_bytes(b"\0\0\0\x14ftypqt  ")
    documents, ledger = read(tmp_path)
    assert [shapes(document) for document in documents] == [[RED, "café"], [GREEN, "café"]]
    assert drops(ledger) == {
        "text that is not UTF-8": 1,
        "picture in HEIC, which is not read; export it as JPEG": 1,
        "file that the kind 'pairs' doesn't read (.mov)": 1,
    }


def test_an_unknown_folder_says_what_it_holds(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"x")
    (tmp_path / "b.png").write_bytes(RED)
    with pytest.raises(
        InputError,
        match=r"cannot detect the kind of .* which has 1 files with .heic, 1 files with .png; its pictures have no "
        r"captions: write one beside each \(b.txt beside b.png\), or .* file_name and text; or name",
    ):
        detect_kind(tmp_path)
