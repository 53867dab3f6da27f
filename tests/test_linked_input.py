"""Input as people keep it on several disks: linked files and folders, the hub's cache, what macOS leaves behind."""

import json
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from tests.conftest import picture
from tests.reading import drops, read

RED = picture(0, 1)[0]


def write_tar(path: Path, *names: str) -> None:
    with webdataset.TarWriter(str(path)) as tar:
        for name in names:
            tar.write({"__key__": name, "png": picture(0, sum(map(ord, name)))[0], "txt": f"a picture of {name}"})


def test_linked_tars_and_folders_are_read(tmp_path):
    here, there = tmp_path / "in", tmp_path / "disk2"
    (there / "more").mkdir(parents=True)
    here.mkdir()
    write_tar(here / "0.tar", "zero")
    write_tar(there / "1.tar", "one")
    write_tar(there / "more" / "2.tar", "two")
    (here / "1.tar").symlink_to("../disk2/1.tar")
    (here / "more").symlink_to(there / "more")
    (there / "more" / "back").symlink_to(here)  # a circle
    documents, _ = read(here)
    assert [document.text for document in documents] == ["a picture of zero", "a picture of one", "a picture of two"]


def test_a_link_that_leads_nowhere_is_not_passed_over(tmp_path):
    from mm1.prepare.readers.kinds import list_shards

    (tmp_path / "0.tar").symlink_to("../gone.tar")
    assert [shard.name for shard in list_shards(tmp_path, "tars")] == ["0.tar"]


def hub_cache(root: Path, **snapshots: list[dict]) -> Path:
    """A repository as huggingface_hub keeps it; `main` names the first snapshot."""
    (root / "blobs").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(next(iter(snapshots)))
    for name, rows in snapshots.items():
        folder = root / "snapshots" / name / "data"
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), root / "blobs" / f"hash-of-{name}")
        (folder / "train-00000-of-00001.parquet").symlink_to(f"../../../blobs/hash-of-{name}")
    return root


def test_a_repository_in_the_cache_of_the_hub_is_read_once(tmp_path):
    row = {"image": {"bytes": RED, "path": None}}
    root = hub_cache(tmp_path / "datasets--a--b", new=[row | {"text": "new"}], old=[row | {"text": "old"}])
    for folder, text in ((root, "new"), (root / "snapshots" / "old", "old"), (tmp_path, "new")):
        documents, _ = read(folder)
        assert [document.text for document in documents] == [text]


def test_pictures_in_a_linked_folder_are_found(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "0.png").write_bytes(RED)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "coco").symlink_to("../real")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A thing."}]
    (tmp_path / "talk.json").write_text(json.dumps([{"id": "0", "image": "coco/0.png", "conversations": turns}]))
    (document,), ledger = read(tmp_path / "talk.json", pictures=tmp_path / "data")
    assert document.images[0].data == RED
    assert not drops(ledger)


def test_what_macos_adds_is_no_input(tmp_path):
    (tmp_path / "0.png").write_bytes(RED)
    (tmp_path / "0.txt").write_text("a thing")
    (tmp_path / "__MACOSX").mkdir()
    for name in ("._0.png", "._0.txt", ".DS_Store", "__MACOSX/._1.png"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    documents, ledger = read(tmp_path)
    assert [document.text for document in documents] == ["a thing"]
    assert not ledger.unexpected()


@pytest.mark.parametrize(("of_picture", "of_words"), [("NFD", "NFC"), ("NFC", "NFD")])
@pytest.mark.parametrize("layout", ["pairs", "imagefolder"])
def test_a_picture_and_its_words_are_paired_though_one_name_came_from_macos(layout, of_picture, of_words, tmp_path):
    name, words = unicodedata.normalize(of_picture, "Größe"), unicodedata.normalize(of_words, "Größe")
    assert name != words
    (tmp_path / f"{name}.png").write_bytes(RED)
    if layout == "pairs":
        (tmp_path / f"{words}.txt").write_text("a red picture")
    else:
        line = json.dumps({"file_name": f"{words}.png", "text": "a red picture"})
        (tmp_path / "metadata.jsonl").write_text(line)
    documents, ledger = read(tmp_path)
    assert [(document.text, len(document.images)) for document in documents] == [("a red picture", 1)]
    assert drops(ledger) == {}
