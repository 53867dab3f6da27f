"""Every record and picture of an input is kept, left out under a reason, or failed: nothing is lost in silence."""

import io
import json
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reading
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from mm1.__main__ import app
from mm1.prepare.readers.kinds import NOT_FILES, READERS
from tests.conftest import picture

RED = picture(0, 1)[0]
GARBAGE = b"\x00\x00\x00 ftypavif" + b"\xff" * 40
TALK = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A thing."}]
FLAWS = ("good", "no text", "no picture", "broken picture", "surrogate", "wrong type", "other encoding")


@dataclass
class Written:
    """What a test put into an input."""

    records: int = 0
    pictures: int = 0
    good: int = 0
    odd: list = field(default_factory=list)

    def count(self, flaw: str, *, pictures: int) -> None:
        self.records += 1
        self.pictures += pictures
        self.good += flaw == "good"


def text_of(flaw: str, number: int) -> object:
    texts = {"no text": "", "surrogate": f"half \ud83d {number}", "wrong type": {"text": [number]}}
    return texts.get(flaw, f"a thing with the number {number}")


def data_of(flaw: str) -> bytes | None:
    return {"no picture": None, "broken picture": GARBAGE}.get(flaw, RED)


def tars(folder: Path, flaws: list[str]) -> Written:
    written = Written()
    with tarfile.open(folder / "0.tar", "w") as tar:
        for number, flaw in enumerate(flaws):
            data, text = data_of(flaw), text_of(flaw, number)
            content = {"other encoding": b"\xe4\xf6 caf\xe9"}.get(flaw, str(text).encode("utf-8", "surrogatepass"))
            members = {"jpg": data, "txt": content}
            members |= {"json": json.dumps({"caption": text}).encode()} if flaw == "surrogate" else {}
            for ending, body in members.items():
                if body is not None:
                    member = tarfile.TarInfo(f"{number:05}.{ending}")
                    member.size = len(body)
                    tar.addfile(member, io.BytesIO(body))
            written.count("good" if flaw == "wrong type" else flaw, pictures=data is not None)
    return written


def tables(folder: Path, flaws: list[str]) -> Written:
    written, rows = Written(), []
    for number, flaw in enumerate(f for f in flaws if f not in ("surrogate", "other encoding", "wrong type")):
        data = data_of(flaw)
        rows.append({"image": None if data is None else {"bytes": data, "path": None}, "text": text_of(flaw, number)})
        written.count(flaw, pictures=data is not None)
    picture_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.Table.from_pylist(rows, schema=pa.schema([("image", picture_type), ("text", pa.string())]))
    if folder.name == "dataset":
        with pa.OSFile(str(folder / "0.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, folder / "0.parquet")
    return written


def lines_of(values: list[tuple[str, object]]) -> bytes:
    lines = []
    for flaw, value in values:
        line = json.dumps(value).encode()
        lines.append(line[:-3] + b"\xff\xfe" if flaw == "other encoding" else line)
    return b"\n".join(lines)


def text(folder: Path, flaws: list[str]) -> Written:
    written, values = Written(), []
    for number, flaw in enumerate([*flaws, "good"]):
        values.append((flaw, {"text": text_of(flaw, number)}))
        written.count("good" if "picture" in flaw else flaw, pictures=0)
    (folder / "0.jsonl").write_bytes(lines_of(values))
    return written


def mmc4(folder: Path, flaws: list[str]) -> Written:
    written, values = Written(), []
    for number, flaw in enumerate(flaws):
        data = data_of(flaw)
        if data is not None:
            (folder / f"{number}.jpg").write_bytes(data)
        info = [{"image_name": f"{number}.jpg", "matched_text_index": 0}]
        values.append((flaw, {"text_list": [text_of(flaw, number)], "image_info": info}))
        # the text of a page stays where its picture is missing
        written.count("good" if "picture" in flaw else flaw, pictures=flaw != "other encoding")
    (folder / "0.jsonl").write_bytes(lines_of(values))
    return written


def llava(folder: Path, flaws: list[str]) -> Written:
    written, values = Written(), []
    for number, flaw in enumerate(flaws):
        data = data_of(flaw)
        if data is not None:
            (folder / f"{number}.jpg").write_bytes(data)
        answer = {"from": "gpt", "value": text_of(flaw, number)}
        talk = {"no text": [], "wrong type": "no talk"}.get(flaw, [TALK[0], answer])
        values.append({"id": number, "image": f"{number}.jpg", "conversations": talk})
        written.count("good" if flaw == "other encoding" else flaw, pictures=1)
    (folder / "0.json").write_text(json.dumps(values))
    return written


def mixture(folder: Path, flaws: list[str]) -> Written:
    (folder / "mix.yaml").write_text("datasets:\n  - json_path: 0.json\n    sampling_strategy: all\n")
    return llava(folder, flaws)


def rows(folder: Path, flaws: list[str]) -> Written:
    written, values = Written(), []
    for number, flaw in enumerate(flaws):
        data = data_of(flaw)
        if data is not None:
            (folder / f"{number}.jpg").write_bytes(data)
        values.append((flaw, {"file_name": f"{number}.jpg", "text": text_of(flaw, number)}))
        written.count(flaw, pictures=flaw != "other encoding")
    (folder / "metadata.jsonl").write_bytes(lines_of(values))
    return written


def coco(folder: Path, flaws: list[str]) -> Written:
    written, images, captions = Written(), [], []
    for number, flaw in enumerate(flaws):
        data = data_of(flaw)
        if data is not None:
            (folder / f"{number}.jpg").write_bytes(data)
        images.append({"id": number, "file_name": f"{number}.jpg"})
        captions.append({"image_id": number, "caption": text_of(flaw, number)})
        written.count("good" if flaw == "other encoding" else flaw, pictures=1)
        written.records += flaw in (
            "no text",
            "wrong type",
        )  # the annotation, and the picture that it leaves without one
    (folder / "0.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return written


def pairs(folder: Path, flaws: list[str]) -> Written:
    written = Written()
    for number, flaw in enumerate(f for f in flaws if f != "no picture"):
        (folder / f"{number:03}.jpg").write_bytes(data_of(flaw) or b"")
        (folder / f"{number:03}.txt").write_bytes(
            b"caf\xe9 au lait"
            if flaw == "other encoding"
            else str(text_of(flaw, number)).encode("utf-8", "surrogatepass")
        )
        written.count("good" if flaw == "wrong type" else flaw, pictures=1)
    return written


def page(flaw: str, number: int) -> bytes:
    words = "" if flaw == "no text" else f"These are some words of page {number}, which has more than ten of them."
    return f"<html><body><p>{words}</p>{'' if flaw == 'no text' else f'<img src={number}.jpg>'}".encode()


def html(folder: Path, flaws: list[str]) -> Written:
    written = Written()
    for number, flaw in enumerate(flaws):
        if (data := data_of(flaw)) is not None:
            (folder / f"{number}.jpg").write_bytes(data)
        (folder / f"{number}.html").write_bytes(page(flaw, number))
        written.count(flaw if flaw == "no text" else "good", pictures=flaw != "no text")
    return written


def warc(folder: Path, flaws: list[str]) -> Written:
    written = Written()
    with (folder / "0.warc").open("wb") as file:
        writer = WARCWriter(file, gzip=False)

        def write(name: str, kind: str, body: bytes) -> None:
            headers = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.1")
            url, stream = f"https://e.org/{name}", io.BytesIO(body)
            writer.write_record(writer.create_warc_record(url, "response", stream, http_headers=headers))

        for number, flaw in enumerate(flaws):
            if (data := data_of(flaw)) is not None:
                write(f"{number}.jpg", "image/jpeg", data)
            write(f"{number}.html", "text/html", page(flaw, number))
            written.count(flaw if flaw == "no text" else "good", pictures=flaw != "no text")
    return written


MAKERS = {
    "tars": tars,
    "parquet": tables,
    "dataset": tables,
    "text": text,
    "mmc4": mmc4,
    "llava": llava,
    "mixture": mixture,
    "coco": coco,
    "pairs": pairs,
    "rows": rows,
    "imagefolder": rows,
    "html": html,
    "warc": warc,
}


def test_every_reader_has_an_input_of_good_and_odd_records():
    assert MAKERS.keys() == READERS.keys() - set(NOT_FILES)


@pytest.mark.parametrize("kind", sorted(MAKERS))
@settings(max_examples=12, suppress_health_check=list(HealthCheck), derandomize=True)
@given(flaws=st.lists(st.sampled_from(FLAWS), min_size=1, max_size=9))
def test_what_is_read_is_kept_or_left_out_under_a_reason(kind: str, flaws: list[str], tmp_path_factory):
    folder = tmp_path_factory.mktemp("input") / kind
    folder.mkdir()
    written = MAKERS[kind](folder, [*flaws, "good"])
    documents, ledger = reading.read(folder, kind)
    assert ledger.records.read == written.records
    assert ledger.pictures.read == written.pictures
    assert ledger.records.kept == len(documents) == written.good
    assert ledger.records.kept + ledger.records.dropped.total() == written.records
    assert ledger.pictures.kept == sum(len(document.images) for document in documents)
    assert {example.reason for example in ledger.examples} >= ledger.records.dropped.keys()


def mm1(*words: object):
    return CliRunner().invoke(app, ["prepare", *map(str, words)])


def test_a_preparation_ends_with_a_table_and_the_same_numbers_on_its_card(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    tars(folder, ["good", "good", "no text", "broken picture", "no picture"])
    ended = mm1(folder, "--to", tmp_path / "out")
    assert ended.exit_code == 0, ended.output
    lines = [line.split() for line in ended.stdout.splitlines()]
    assert ["read", "kept", "left", "out", "failed"] in lines
    assert ["records", "5", "2", "3", "0"] in lines
    assert ["pictures", "4", "2", "2", "0"] in lines
    first = ["1", "records", "sample", "without", "a", "caption;", "first:", "sample", "00002,"]  # then its endings
    assert first in [line[: len(first)] for line in lines]
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    for name in ("records", "pictures"):
        account = card[name]
        assert account["read"] == account["kept"] + sum(account["dropped"].values()) + account["failed"]
    assert card["records"]["dropped"] == {
        "picture that cannot be decoded": 1,
        "sample without a caption": 1,
        "sample without a picture": 1,
    }
    page = (tmp_path / "out" / "card.html").read_text()
    assert "sample without a caption" in page


def test_what_was_left_out_can_be_looked_at(tmp_path):
    lines = [json.dumps({"text": "", "note": f"number {number}"}) for number in range(30)]
    (tmp_path / "x.jsonl").write_text("\n".join([*lines, "{", json.dumps({"text": "Some words."})]))
    assert mm1(tmp_path / "x.jsonl", "--to", tmp_path / "out").exit_code == 0
    examples = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert [example["reason"] for example in examples].count("line without a text") == 20
    assert examples[3] | {"detail": ""} == {
        "reason": "line without a text",
        "what": "record",
        "input": "x.jsonl",
        "position": "line 4",
        "text": "number 3",
        "detail": "",
    }
    assert examples[-1]["position"] == "line 31"


def test_a_failed_part_ends_with_3_and_so_does_odd_input_if_strict(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    tars(folder, ["good", "no text"])
    assert mm1(folder, "--to", tmp_path / "lenient").exit_code == 0
    assert mm1(folder, "--to", tmp_path / "strict", "--strict").exit_code == 3
    whole = (folder / "0.tar").read_bytes()
    (folder / "1.tar").write_bytes(whole[:-12_000])
    ended = mm1(folder, "--to", tmp_path / "failed")
    assert ended.exit_code == 3
    assert "failed: 1.tar: 1.tar is no tar, or breaks off" in ended.stderr
    card = json.loads((tmp_path / "failed" / "card.json").read_text())
    assert card["records"]["read"] == card["records"]["kept"] + 1 + card["records"]["failed"]


def test_if_every_part_failed_the_counts_are_shown_and_the_status_is_3(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    tars(folder, ["good", "no text"])
    (folder / "0.tar").write_bytes((folder / "0.tar").read_bytes()[:-12_000])
    ended = mm1(folder, "--to", tmp_path / "out")
    assert ended.exit_code == 3
    assert re.search(r"records +(\d+) +0 +0 +\1\n", ended.stdout)
    assert "failed: 0.tar: 0.tar is no tar, or breaks off" in ended.stderr
    assert "no document is left, and nothing was written" in ended.stderr
    assert not (tmp_path / "out").exists()


def test_rules_that_the_user_set_are_no_surprise(tmp_path):
    lines = [json.dumps({"text": text}) for text in ("Too short.", "Too short.", "Some other words.")]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    ended = mm1(tmp_path / "x.jsonl", "--to", tmp_path / "out", "--strict")
    assert ended.exit_code == 0
    assert "copy of an earlier document" in ended.stdout


def test_a_tar_that_is_cut_between_two_members_is_noticed(tmp_path):
    tars(tmp_path, ["good", "good"])
    with tarfile.open(tmp_path / "0.tar") as tar:
        second = tar.getmember("00001.jpg").offset
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:second])
    documents, ledger = reading.read(tmp_path, "tars")
    assert len(documents) == 1
    assert ledger.unexpected() == {"tar without its end: more may have been in it": 1}


def test_an_example_shows_words_and_no_bytes_of_pictures(tmp_path):
    tars(tmp_path, ["other encoding", "good"])
    _, ledger = reading.read(tmp_path, "tars")
    (example,) = ledger.examples
    assert (example.reason, example.position) == ("text that is not UTF-8", "sample 00000")
    assert example.text.startswith(f"({len(RED):,} bytes)")


def test_files_of_another_kind_are_counted_though_the_first_part_fails(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(pa.table({"weight": [1.5], "height": [2.5]}), folder / "a.parquet")
    (folder / "b.jsonl").write_text('{"text": "Some words."}\n')
    pq.write_table(pa.table({"text": ["Some other words."]}), folder / "c.parquet")
    ended = mm1(folder, "--to", tmp_path / "out")
    assert ended.exit_code == 3
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["failed"].keys() == {"a.parquet"}
    assert card["skipped"] == {"file that the kind 'parquet' doesn't read (.jsonl)": 1}


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_table_in_another_encoding_is_left_out_by_that_name(name: str, tmp_path):
    lines = ["text,score", "Café au lait,1", "Tea with milk,2"]
    content = "\n".join(lines).replace(",", "\t" if name.endswith(".tsv") else ",")
    (tmp_path / name).write_text(content, encoding="latin-1")
    documents, ledger = reading.read(tmp_path / name, "rows")
    assert [document.text for document in documents] == ["Tea with milk"]
    assert ledger.records.dropped == {"text that is not UTF-8": 1}


def test_half_a_character_is_no_fault_of_the_encoding(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "half \\ud83d"}\n{"text": "whole"}\n')
    _, ledger = reading.read(tmp_path / "a.jsonl")
    assert ledger.records.dropped == {"text with characters that are no Unicode (lone surrogates)": 1}
