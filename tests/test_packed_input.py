"""Files as they come down from servers and off archives: packed in several ways, in UTF-16, broken off, unnamed."""

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile
import zlib

import pyarrow as pa
import pytest
import zstandard
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from mm1.prepare.pipeline import prepare
from mm1.prepare.readers.kinds import detect_kind
from mm1.prepare.request import parse_request
from mm1.prepare.shard import InputError
from tests.conftest import picture
from tests.reading import drops, read

RED, GREEN = (picture(0, number)[0] for number in (1, 2))
WORDS = "The harbour lay still in the morning, and its boats at the long pier did not move for hours."


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("inside", data)
    return buffer.getvalue()


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd, ".zip": zipped}
ROWS = [{"text": f"{WORDS} {number}"} for number in range(2)]
TALK = [
    {"image": "1.png", "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A thing."}]}
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
FORMS = {
    "a.jsonl": (LINES, "text", 2),
    "a.ndjson": (LINES, "text", 2),
    "a.json": (json.dumps(ROWS, indent=1), "text", 2),
    "a.txt": (WORDS, "text", 1),
    "chat.json": (json.dumps(TALK), "llava", 1),
    "rows.csv": ("image,caption\n1.png,a red thing\n", "rows", 1),
}


@pytest.mark.parametrize("packed", ["", *PACKERS])
@pytest.mark.parametrize("name", FORMS)
def test_a_file_of_text_is_read_however_it_is_packed(tmp_path, name, packed):
    content, kind, count = FORMS[name]
    (tmp_path / "1.png").write_bytes(RED)
    path = tmp_path / f"{name}{packed}"
    path.write_bytes(PACKERS.get(packed, bytes)(content.encode()))
    assert detect_kind(path) == kind
    documents, ledger = read(path)
    assert len(documents) == count
    assert not ledger.unexpected()


@pytest.mark.parametrize("name", FORMS)
def test_a_file_of_text_is_read_in_utf_16(tmp_path, name):
    """PowerShell and Excel write it."""
    content, kind, count = FORMS[name]
    (tmp_path / "1.png").write_bytes(RED)
    (tmp_path / name).write_text(content, encoding="utf-16")
    documents, _ = read(tmp_path / name, kind)
    assert len(documents) == count


@pytest.mark.parametrize("packed", PACKERS)
def test_a_packed_array_that_breaks_off_is_refused_by_name(tmp_path, packed):
    path = tmp_path / f"a.json{packed}"
    path.write_bytes(PACKERS[packed](json.dumps(ROWS).encode()[:-1]))
    with pytest.raises(InputError, match=r"a\.json.* breaks off"):
        read(path, "text")
    path.write_bytes(PACKERS[packed](json.dumps(ROWS * 99).encode())[:-20])
    with pytest.raises(InputError, match=r"a\.json.* breaks off"):
        read(path, "text")


@pytest.mark.parametrize(
    ("header", "row"),
    [("image;caption", "1.png;a red, round thing"), ("image| x| caption", "1.png| 0| a red, round thing")],
)
def test_a_table_whose_cells_are_parted_by_another_sign(tmp_path, header, row):
    (tmp_path / "1.png").write_bytes(RED)
    (tmp_path / "rows.csv").write_text(f"{header}\n{row}\n")
    (document,), _ = read(tmp_path / "rows.csv")
    assert document.text == "a red, round thing"


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"])
def test_a_tar_is_read_however_it_is_packed(tmp_path, ending):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in (("1.png", RED), ("1.txt", b"a red thing")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    pack = {**PACKERS, ".tgz": gzip.compress}.get(f".{ending.rpartition('.')[2]}", bytes)
    (tmp_path / f"0{ending}").write_bytes(pack(buffer.getvalue()))
    (document,), _ = read(tmp_path)
    assert document.text == "a red thing"


def page(number: int) -> bytes:
    return f"<!doctype html><html><body><h1>Title</h1><p>{WORDS} {number}</p><img src='/a.png'></body></html>".encode()


def test_pages_of_a_crawl_are_read_whatever_their_names_are(tmp_path):
    """wget names a page as its address ends, and keeps it compressed if the server sent it so."""
    site = tmp_path / "e.org"
    site.mkdir()
    (site / "a.png").write_bytes(picture(0, 1)[0])
    names = [
        "about",
        "article?id=1",
        "index.html",
        "packed.html",
        "packed.html.gz",
        "post.php?x=1&y=2",
        "zlib.html.zlib",
    ]
    for number, name in enumerate(names):
        pack = {"packed": gzip.compress, "zlib": zlib.compress}.get(name.partition(".")[0], bytes)
        (site / name).write_bytes(pack(page(number)))
    (site / "style.css").write_text("body { color: red }")
    (site / "feed").write_text("<?xml version='1.0'?><rss><channel/></rss>")
    (site / "pic?id=7").write_bytes(GREEN)
    documents, _ = read(tmp_path)
    assert [document.id for document in documents] == [f"e.org/{name}" for name in names]
    assert all(f"{WORDS} {number}" in document.text for number, document in enumerate(documents))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(gzip.compress(page(1))[:-40], id="torn"),
        pytest.param(bytes(range(256)) * 20, id="every byte"),
        pytest.param(page(1).decode().encode("utf-16-le"), id="UTF-16 without a mark"),
    ],
)
def test_a_page_that_is_no_text_is_left_out(tmp_path, content):
    (tmp_path / "good.html").write_bytes(page(0))
    (tmp_path / "odd.html").write_bytes(content)
    documents, ledger = read(tmp_path)
    assert [document.id for document in documents] == ["good.html"]
    assert set(drops(ledger)) & {"page that is binary, no text", "response whose compression is broken"}


@pytest.mark.parametrize("packed", [True, False])
def test_a_warc_that_breaks_off_anywhere_is_refused_by_name(tmp_path, packed):
    whole = io.BytesIO()
    writer = WARCWriter(whole, gzip=packed)
    ends = []
    for number in range(3):
        headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
        body = io.BytesIO(page(number))
        writer.write_record(writer.create_warc_record(f"http://e.org/{number}", "response", body, http_headers=headers))
        ends.append(whole.tell())
    path = tmp_path / ("a.warc.gz" if packed else "a.warc")
    path.write_bytes(whole.getvalue())
    assert len(read(path)[0]) == 3
    path.write_bytes(whole.getvalue() + b"\n")
    assert len(read(path)[0]) == 3
    for size in range(20, len(whole.getvalue()) - 4, 13):
        if not any(end - 4 <= size <= end for end in ends):
            path.write_bytes(whole.getvalue()[:size])
            with pytest.raises(InputError, match=f"{path.name} (breaks off|holds no|is no)"):
                read(path)


def zstd_warc(*, dictionary: bool) -> bytes:
    """Pages and their picture, a frame each (https://iipc.github.io/warc-specifications/specifications/warc-zstd/)."""
    bodies = [("text/html", page(number), str(number)) for number in range(3)] + [("image/png", RED, "a.png")]
    records = []
    for kind, body, name in bodies:
        record, headers = io.BytesIO(), StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.1")
        writer = WARCWriter(record, gzip=False)
        url = f"http://e.org/{name}"
        writer.write_record(writer.create_warc_record(url, "response", io.BytesIO(body), http_headers=headers))
        records.append(record.getvalue())
    if not dictionary:
        return b"".join(map(zstandard.ZstdCompressor().compress, records))
    words = zstandard.train_dictionary(1024, [page(number) for number in range(1000)])
    pack = zstandard.ZstdCompressor(dict_data=words).compress
    return b"\x5d\x2a\x4d\x18" + len(words).to_bytes(4, "little") + words.as_bytes() + b"".join(map(pack, records))


@pytest.mark.parametrize("dictionary", [False, True])
def test_a_warc_packed_by_zstd_is_read_with_its_pictures(tmp_path, dictionary):
    whole, path = zstd_warc(dictionary=dictionary), tmp_path / "a.warc.zst"
    path.write_bytes(whole)
    documents, _ = read(tmp_path)
    assert [[image.data for image in document.images] for document in documents] == [[RED]] * 3
    path.write_bytes(whole[:-20])
    with pytest.raises(InputError, match=r"a\.warc\.zst .*breaks off"):
        read(tmp_path)


def test_an_object_over_several_lines_is_named_and_stands_in_nobodys_way(tmp_path):
    (tmp_path / "infos.json").write_text(json.dumps({"data": [{"text": "some words"}] * 3}, indent=2))
    with pytest.raises(ValueError, match="no document is left; not read: file with one JSON object over"):
        prepare(parse_request([str(tmp_path / "infos.json")]), tmp_path / "out")
    (tmp_path / "a.jsonl").write_text('{"text": "some words"}\n')
    documents, ledger = read(tmp_path)
    assert len(documents) == 1
    assert drops(ledger) == {"file with one JSON object over several lines, in place of records": 1}


def samples_tar(count: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number in range(count):
            for name, data in ((f"{number}.png", RED), (f"{number}.txt", b"a red thing")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
def test_a_packed_tar_that_breaks_off_anywhere_fails(ending, tmp_path):
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}[ending]
    whole = pack(samples_tar(60))
    path = tmp_path / f"a.tar{ending}"
    for cut in range(len(whole) // 9, len(whole) - 40, len(whole) // 9):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="is no tar, or breaks off"):
            read(path)


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz"])
def test_a_tar_packed_in_several_streams_is_read_whole(ending, tmp_path):
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[ending]
    whole = samples_tar(20)
    (tmp_path / f"a.tar{ending}").write_bytes(pack(whole[:9000]) + pack(whole[9000:]))
    documents, _ = read(tmp_path)
    assert len(documents) == 20


def test_a_zip_that_nobody_can_unpack_fails_by_name(tmp_path):
    path = tmp_path / "a.jsonl.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jsonl", '{"text": "some words"}')
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1  # says that it is encrypted
    data[6] |= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.jsonl\.zip .*encrypted"):
        read(path, kind="text")


def test_a_chat_in_the_json_of_a_tar_may_be_a_list_and_keeps_its_licence(tmp_path):
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A red thing."}]
    contents = {"1": turns, "2": {"conversations": turns, "license": "CC0-1.0"}, "3": {"messages": "3 new"}}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in contents.items():
            files = {"png": RED, "json": json.dumps(content).encode()} | (
                {"txt": b"a red thing"} if name == "3" else {}
            )
            for ending, data in files.items():
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    first, second, third = read(tmp_path)[0]
    assert first.text == second.text
    assert second.metadata["license"] == "CC0-1.0"
    assert third.text == "a red thing"


def test_what_begins_with_many_comments_or_is_no_file_is_no_page(tmp_path):
    (tmp_path / "index.html").write_text(f"<html><body><p>{WORDS * 4}</p></body></html>")
    (tmp_path / "comments").write_bytes(b"<!---->" * 500 + b"x")
    (tmp_path / "about").write_text(f"<!-- by hand --><!doctype html><body><p>{WORDS[::-1] * 4}</p></body>")
    os.mkfifo(tmp_path / "pipe")
    documents, ledger = read(tmp_path)
    assert len(documents) == 2
    assert not drops(ledger)


def test_names_that_lead_out_of_the_input_leave_no_trace_of_what_is_there(tmp_path):
    outside, folder = tmp_path / "secret.png", tmp_path / "in"
    outside.write_bytes(RED)
    folder.mkdir()
    (folder / "a.csv").write_text(
        f"image,caption\n{outside},one\n../secret.png,two\nhere.png,three\nfile://[x/a.png,four\n"
    )
    (folder / "here.png").write_bytes(RED)
    prepare(parse_request([str(folder)]), tmp_path / "out")
    assert str(outside) not in (tmp_path / "out" / "inputs.json").read_text()
    assert "here.png" in (tmp_path / "out" / "inputs.json").read_text()


def with_dictionary(packed: bytes, code: int) -> bytes:
    """An .xz file that asks for a dictionary of another size (xz-file-format 1.2, sections 3.1 and 5.3.1)."""
    size = (packed[12] + 1) * 4
    header = bytearray(packed[12 : 12 + size - 4])
    header[header.index(b"\x21\x01") + 2] = code
    return packed[:12] + bytes(header) + zlib.crc32(header).to_bytes(4, "little") + packed[12 + size :]


@pytest.mark.parametrize(("name", "content"), [("a.jsonl.xz", LINES.encode()), ("a.tar.xz", samples_tar(3))])
@pytest.mark.parametrize("cut", [0, 40])
def test_an_xz_file_that_asks_for_much_memory_fails_by_name(tmp_path, name, content, cut):
    first, last, path = lzma.compress(content[:cut]), lzma.compress(content[cut:]), tmp_path / name
    path.write_bytes(first + with_dictionary(last, 32))  # 256 MB
    assert read(path)[0]
    path.write_bytes(first + with_dictionary(last, 40))  # 4 GB
    with pytest.raises(InputError, match=rf"{name} takes more than 256 MB of memory to unpack; .*xz -6"):
        read(path, "tars" if "tar" in name else "text")


AFTER_STREAM = {
    "nothing": b"",
    "zeros": bytes(4),
    "many zeros": bytes(200_000),
    "zeros and a stream": bytes(8) + lzma.compress(b"\n"),
}
NO_XZ = {
    "empty": b"",
    "zeros alone": bytes(64),
    "text after the stream": lzma.compress(LINES.encode()) + b"text",
    "text after zeros": lzma.compress(LINES.encode()) + bytes(4) + b"text",
    "three zeros": lzma.compress(LINES.encode()) + bytes(3),
    "zeros before a stream": bytes(4) + lzma.compress(LINES.encode()),
    "a cut stream after a whole one": lzma.compress(LINES.encode()) + lzma.compress(b"\n")[:-9],
}


@pytest.mark.parametrize("name", AFTER_STREAM)
def test_an_xz_file_may_have_zeros_and_streams_after_its_first(tmp_path, name):
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(lzma.compress(LINES.encode()) + AFTER_STREAM[name])
    assert len(read(path)[0]) == 2


@pytest.mark.parametrize("name", NO_XZ)
def test_what_is_no_whole_xz_file_is_refused_by_name(tmp_path, name):
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(NO_XZ[name])
    with pytest.raises(InputError, match=r"a\.jsonl\.xz breaks off or is no \.xz file: "):
        read(path, "text")


def test_a_zip_packed_by_lzma_fails_by_name(tmp_path):
    path = tmp_path / "a.jsonl.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.jsonl", LINES)
    with pytest.raises(InputError, match=r"a\.jsonl\.zip is packed by LZMA, .* pack it as \.xz"):
        read(path, "text")


def test_links_that_lead_to_themselves_or_nowhere_stand_in_nobodys_way(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(RED)
    (folder / "a.txt").write_text(WORDS)
    (folder / "itself").symlink_to("itself")
    (folder / "back").symlink_to(folder)
    (folder / "b.png").symlink_to("b.png")
    documents, ledger = read(folder)
    assert len(documents) == 1
    assert drops(ledger) == {"picture without a text beside it": 1}
