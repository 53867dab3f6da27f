"""Hostile or damaged input is counted or refused, its size is bounded, and nothing is written elsewhere."""

import gzip
import io
import json
import os
import struct
import tarfile
import zlib
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reading
import zstandard

from mm1.document import Document, Image, Text
from mm1.prepare import bounded_read
from mm1.prepare.bounded_read import read_lines
from mm1.prepare.filters.image_filters import ImageBounds, screen
from mm1.prepare.html.lines import ImageAddress
from mm1.prepare.html.main_content import main_content
from mm1.prepare.ledger import Ledger, Page
from mm1.prepare.readers import json_lines
from mm1.prepare.shard import InputError
from tests.conftest import picture

RED = picture(0, 1)[0]
WORDS = "These are some words of a page that has a few more than ten."


def read(path: Path, kind: str, **more) -> tuple[list[Document], Counter[str]]:
    documents, ledger = reading.read(path, kind, **more)
    return documents, reading.drops(ledger)


def png_that_claims(width: int, height: int) -> bytes:
    """A few bytes of valid PNG header that claim width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 9999))
        + chunk(b"IEND", b"")
    )


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\n(x) run\n%%EOF\n"  # Ghostscript would run it


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png_that_claims(30_000, 30_000), "picture with too many pixels"),
        (png_that_claims(10_000, 10_000), "picture with too many pixels"),
        (RED[: len(RED) // 2], "picture that cannot be decoded"),
        (b"<svg onload=alert(1)>", "picture in SVG, which is not read"),
        (EPS, "picture that cannot be decoded"),
        (b"", "picture that cannot be decoded"),
    ],
    ids=["900 megapixels", "100 megapixels", "cut off", "no picture", "a program", "empty"],
)
def test_a_picture_that_would_exhaust_the_memory_is_counted(data, reason):
    ledger = Ledger()
    document = screen(Page((Text("a"), Image(data), Text("b"))), ImageBounds(min_side=1), ledger).document
    assert document.pieces == (Text("a\nb"),)
    assert ledger.pictures.dropped == {reason: 1}


MALFORMED = [
    b"",
    b"\0\xff\xfe",
    b"<p>" + WORDS.encode() + b"<table><tr><td><p></div></html><b",
    b"<div>" * 100_000 + WORDS.encode(),
    b"<a href='" + b"x" * 100_000,
    b"<meta charset=no-such-thing><p>" + WORDS.encode(),
    b"<p>" + WORDS.encode() + b"<img src='http://[bad'><img src=''><img>",
    b"<p>&#x110000;&#0;&nosuch; " + WORDS.encode(),
]


@pytest.mark.parametrize("content", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_pages_are_read_as_far_as_possible(content):
    assert all(isinstance(piece, Text | ImageAddress) for piece in main_content(content, "https://e.org/"))


def test_nested_entities_are_not_expanded():
    entities = "".join(f"<!ENTITY l{n} '{f'&l{n - 1};' * 10}'>" for n in range(1, 10))
    kinds = f"<?xml version='1.0'?><!DOCTYPE html [<!ENTITY l0 'ha'>{entities}]>"
    page = f"{kinds}<html><body><p>{WORDS} &l9;</p></body></html>"
    text = "".join(piece.text for piece in main_content(page.encode(), "site:/") if isinstance(piece, Text))
    assert len(text) < 2_000
    assert WORDS in text


def test_an_entity_cannot_read_a_file(tmp_path):
    (tmp_path / "secret").write_text("password")
    page = (
        f"<!DOCTYPE html [<!ENTITY x SYSTEM 'file://{tmp_path}/secret'>]><html><body><p>{WORDS} &x;</p></body></html>"
    )
    assert "password" not in str(main_content(page.encode(), "site:/"))


@pytest.mark.parametrize(
    "broken",
    [lambda data: data[: len(data) // 2 + 100], lambda data: b"junk" * 500, lambda data: data[:512] + b"\xff" * 2000],
    ids=["cut off", "junk", "overwritten"],
)
def test_a_broken_tar_is_refused_by_name(tmp_path, broken):
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        for name, data in (("1.jpg", RED * 40), ("1.txt", b"words"), ("2.jpg", RED * 40), ("2.txt", b"words")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    path = tmp_path / "bad.tar"
    path.write_bytes(broken(path.read_bytes()))
    with pytest.raises(InputError, match=r"bad\.tar is no tar, or breaks off"):
        read(path, "tars")


def test_names_and_links_in_a_tar_write_nothing(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    with tarfile.open(inside / "x.tar", "w") as tar:
        link = tarfile.TarInfo("1.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for name, data in (("../../2.jpg", RED), ("../../2.txt", b"words"), ("/etc/3.txt", b"words")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    documents, drops = read(inside / "x.tar", "tars")
    assert [document.text for document in documents] == ["words"]
    assert drops == {"sample without a picture": 1, "member of a tar that is a link or no file": 1}
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_large_member_of_a_tar_is_left_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("mm1.prepare.readers.tars.LARGEST_FILE", 1000)
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("1.jpg")
        member.size = 5_000_000
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    documents, drops = read(tmp_path, "tars")
    assert documents == []
    assert sum(drops.values()) == 1


def test_a_tar_whose_header_would_exhaust_the_memory_is_refused(tmp_path):
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 2**40
    (tmp_path / "x.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(20 * 512))
    with pytest.raises(InputError, match=r"x\.tar .* a header of 1,099,511,627,776 bytes"):
        read(tmp_path, "tars")


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "loop.png", "sub/../../secret.png", "a\0b", "x" * 5000]
)
def test_no_picture_outside_its_folder_is_read(tmp_path, name):
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(RED)
    os.symlink("loop.png", folder / "loop.png")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A secret."}]
    (tmp_path / "talk.json").write_text(json.dumps([{"image": name, "conversations": turns}]))
    documents, drops = read(tmp_path / "talk.json", "llava", pictures=folder)
    assert documents == []
    assert drops["picture whose name leads out of its folder"] + drops["picture that is missing"] == 1


def test_a_page_cannot_show_a_file_outside_its_folder(tmp_path):
    (tmp_path / "secret.png").write_bytes(RED)
    (tmp_path / "site").mkdir()
    page = (
        f"<p>{WORDS}<img src='../secret.png'><img src='{tmp_path}/secret.png'><img src='file://{tmp_path}/secret.png'>"
    )
    (tmp_path / "site" / "index.html").write_text(page)
    (document,), drops = read(tmp_path / "site", "html")
    assert not document.images
    assert drops == {"image that is not in the folder": 3}


def test_a_table_without_its_column_says_what_it_has(tmp_path):
    pq.write_table(pa.table({"picture_data": [b"x"], "label": [3]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet has the columns label, picture_data; expected"):
        read(tmp_path, "parquet")
    (tmp_path / "y.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(InputError, match=r"y\.parquet is no readable parquet file"):
        read(tmp_path / "y.parquet", "parquet")


@pytest.mark.parametrize("text", ["[" * 100_000, '[{"conversations": ', "[1, 2"])
def test_a_broken_array_is_refused_by_name(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=r"x\.json"):
        read(tmp_path / "x.json", "llava")


@pytest.mark.parametrize("text", ["{}", "\0", '{"conversations": 3}', '{"conversations": [{"from": "x", "value": 1}]}'])
def test_a_broken_line_is_counted(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    documents, drops = read(tmp_path / "x.json", "llava")
    assert documents == []
    assert sum(drops.values()) == 1


def test_a_line_without_end_is_skipped_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded_read, "LARGEST_FILE", 10_000)
    bomb = zstandard.compress(b'{"text": "' + b"a" * 10_000_000 + b'"}\n{"text": "b"}\n')
    assert len(bomb) < 10_000
    (tmp_path / "x.jsonl.zst").write_bytes(bomb)
    ledger = Ledger()
    assert list(read_lines(tmp_path / "x.jsonl.zst", ledger)) == [(1, b'{"text": "b"}\n')]
    assert ledger.records.dropped.total() == 1


def test_a_text_without_end_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "LARGEST_FILE", 10_000)
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(b"and so on\n" * 100_000))
    documents, drops = read(tmp_path, "text")
    assert documents == []
    assert sum(drops.values()) == 1


def test_a_compressed_file_that_breaks_off_is_refused_by_name(tmp_path):
    whole = zstandard.compress(os.urandom(100_000).hex().encode())
    (tmp_path / "x.jsonl.zst").write_bytes(whole[:-1000])
    (tmp_path / "y.jsonl.gz").write_bytes(b"no gzip")
    for name in ("x.jsonl.zst", "y.jsonl.gz"):
        with pytest.raises(InputError, match=name):
            list(read_lines(tmp_path / name, Ledger()))


@pytest.mark.parametrize("content", [b"junk" * 500, b""])
def test_a_file_that_is_no_warc_is_refused_by_name(tmp_path, content):
    (tmp_path / "x.warc").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.warc"):
        read(tmp_path, "warc")
