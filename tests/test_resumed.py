"""A stopped preparation goes on with what is missing, and with what has arrived, changed or been repaired meanwhile."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mm1.data.store import Store
from mm1.prepare import json_arrays, pipeline
from mm1.prepare.ledger import Ledger
from mm1.prepare.pipeline import prepare
from mm1.prepare.readers import ranges
from mm1.prepare.readers.kinds import READERS, list_shards
from mm1.prepare.request import PrepareRequest, parse_request

STOPPED = """
import os, sys, time
from mm1.prepare import pipeline
from mm1.prepare.readers import ranges
ranges.RECORDS = int(sys.argv[5])
original = pipeline.process_shard
def process_shard(request, shard, to, *, decontaminator):
    if shard.title == sys.argv[4]:
        os.kill(os.getpid(), int(sys.argv[3]))
        time.sleep(1)
    return original(request, shard, to, decontaminator=decontaminator)
pipeline.process_shard = process_shard
try:
    pipeline.prepare(pipeline.PrepareRequest.model_validate_json(sys.argv[1]), pipeline.Path(sys.argv[2]))
except KeyboardInterrupt:
    os._exit(130)
"""


def stop_at(
    shard: str, request: PrepareRequest, to: Path, *, by: signal.Signals = signal.SIGKILL, records: int = 250
) -> int:
    """The status of a preparation that a signal stopped when it began with this shard."""
    words = [sys.executable, "-c", STOPPED, request.model_dump_json(), str(to), str(int(by)), shard, str(records)]
    ended = subprocess.run(
        words,
        check=False,
        capture_output=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job would ignore it
    )
    assert not to.exists(), ended.stderr
    return ended.returncode


def check_read_again(titles: list[str], *expected: str) -> None:
    """These parts were read again, and at most one more, which was in work when the process was stopped."""
    assert set(expected) <= set(titles)
    assert len(titles) == len(set(titles)) <= len(expected) + 1


def photo(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(noise).resize((64, 64), PIL.Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, number: int, *, text: str = "a thing") -> None:
    with webdataset.TarWriter(str(path)) as tar:
        for sample in range(3):
            name = 10 * number + sample
            tar.write({"__key__": f"{name:06}", "png": photo(name), "txt": f"{text} with the number {name}"})


def shards_read(monkeypatch) -> list[str]:
    """The titles of the shards that are read from now on, in order."""
    titles: list[str] = []
    original = pipeline.process_shard

    def process_shard(request, shard, to, *, decontaminator):
        titles.append(shard.title)
        return original(request, shard, to, decontaminator=decontaminator)

    monkeypatch.setattr(pipeline, "process_shard", process_shard)
    return titles


def contents(folder: Path) -> tuple[dict, dict]:
    """All documents of a prepared folder, and what its card counts."""
    stores = {path.stem: list(Store(path).scan()) for path in sorted(folder.glob("*.lance"))}
    card = json.loads((folder / "card.json").read_text())
    return stores, {name: card[name] for name in ("records", "pictures", "skipped", "failed", "unexpected")}


@pytest.mark.parametrize(("by", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)], ids=["killed", "Ctrl-C"])
def test_what_arrives_changes_or_is_repaired_is_read(tmp_path, monkeypatch, by, status):
    folder, to = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(1, 6):
        write_tar(folder / f"{number:05}.tar", number)
    whole = (folder / "00003.tar").read_bytes()
    (folder / "00003.tar").write_bytes(whole[:700])
    request = parse_request([str(folder)])
    assert stop_at("00005.tar", request, to, by=by) == status
    write_tar(folder / "00000.tar", 0)  # arrives before all others
    write_tar(folder / "00002.tar", 2, text="another thing")
    (folder / "00003.tar").write_bytes(whole)
    (folder / "00004.tar").unlink()
    titles = shards_read(monkeypatch)
    prepare(request, to)
    check_read_again(titles, "00000.tar", "00002.tar", "00003.tar", "00005.tar")
    assert "00001.tar" not in titles  # it is as it was
    prepare(request, tmp_path / "never-stopped")
    assert contents(to) == contents(tmp_path / "never-stopped")
    assert not (tmp_path / "out.part").exists()


def test_a_repaired_shard_is_read_by_the_same_command(tmp_path, monkeypatch):
    folder, to = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(3):
        write_tar(folder / f"{number:05}.tar", number)
    whole = (folder / "00001.tar").read_bytes()
    (folder / "00001.tar").write_bytes(whole[:700])
    request = parse_request([str(folder)])
    assert list(prepare(request, to).failed) == ["00001.tar"]
    titles = shards_read(monkeypatch)
    assert list(prepare(request, to).failed) == ["00001.tar"]  # still broken
    (folder / "00001.tar").write_bytes(whole)
    assert not prepare(request, to).failed
    assert titles == ["00001.tar", "00001.tar"]
    assert len(contents(to)[0]["images"]) == 9
    assert not (tmp_path / "out.part").exists()


def test_a_finished_preparation_says_what_has_changed_since(tmp_path):
    folder, to = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(3):
        write_tar(folder / f"{number:05}.tar", number)
    request = parse_request([str(folder)])
    prepare(request, to)
    with pytest.raises(
        FileExistsError, match="out exists; remove it first or prepare elsewhere; its input is the same"
    ):
        prepare(request, to)
    write_tar(folder / "00003.tar", 3)
    write_tar(folder / "00001.tar", 1, text="another thing")
    (folder / "00000.tar").unlink()
    with pytest.raises(FileExistsError, match=r"new: 00003\.tar; changed: 00001\.tar; gone: 00000\.tar"):
        prepare(request, to)
    with pytest.raises(FileExistsError, match=r"prepare elsewhere$"):
        prepare(parse_request([str(folder), "min_side=40"]), to)


def test_a_folder_of_something_else_is_never_replaced(tmp_path):
    folder, to = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    write_tar(folder / "0.tar", 0)
    request = parse_request([str(folder)])
    assert stop_at("0.tar", request, to) == -9
    to.mkdir()
    (to / "mine").write_text("work of years")
    with pytest.raises(FileExistsError, match="out exists; remove it first"):
        prepare(request, to)
    assert (to / "mine").exists()


def talk(path: Path, count: int) -> None:
    turns = [
        [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": f"Thing {n} [of] 9."}] for n in range(count)
    ]
    path.write_text(json.dumps([{"image": f"{n}.png", "conversations": turns[n]} for n in range(count)]))


def test_a_picture_that_arrives_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "RECORDS", 2)
    talk(tmp_path / "talk.json", 10)
    for number in (0, *range(2, 10)):
        (tmp_path / f"{number}.png").write_bytes(photo(number))
    request, to = parse_request([str(tmp_path / "talk.json")]), tmp_path / "out"
    assert stop_at("talk.json, from record 9", request, to, records=2) == -9
    (tmp_path / "1.png").write_bytes(photo(1))
    titles = shards_read(monkeypatch)
    result = prepare(request, to)
    assert result.stores == {"images": 10}, result
    check_read_again(titles, "talk.json, from record 1", "talk.json, from record 9")


def test_a_large_file_is_cut_into_ranges_and_only_missing_ones_are_read_again(tmp_path, monkeypatch):
    talk(tmp_path / "talk.json", 600)
    (tmp_path / "pics").mkdir()
    for number in range(600):
        os.link(tmp_path / "pics/0.png", tmp_path / f"pics/{number}.png") if number else (
            tmp_path / "pics/0.png"
        ).write_bytes(photo(0))
    request, to = parse_request([str(tmp_path / "talk.json"), f"pictures={tmp_path}/pics"]), tmp_path / "out"
    assert stop_at("talk.json, from record 501", request, to) == -9
    titles = shards_read(monkeypatch)
    assert prepare(request, to).ledger.records.read == 600
    check_read_again(titles, "talk.json, from record 501")


VALUES = st.recursive(
    st.one_of(st.none(), st.integers(), st.text('a"\\[]{},: é\u4e2d\n', max_size=12)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text('b"\\]', max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=150, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    entries=st.lists(st.dictionaries(st.text("key", max_size=3), VALUES, max_size=3), max_size=12),
    block=st.integers(1, 40),
    records=st.integers(1, 5),
    indent=st.sampled_from([None, 1]),
    plain=st.booleans(),
)
def test_ranges_of_an_array_hold_each_element_once(tmp_path_factory, entries, block, records, indent, plain):
    path = tmp_path_factory.mktemp("array") / "x.json"
    path.write_text(json.dumps(entries, indent=indent, ensure_ascii=plain), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_arrays, "_BLOCK", block)
        patch.setattr(ranges, "RECORDS", records)
        (shard,) = list_shards(path, "llava")
        ledger = Ledger()
        entries_read = [entry for part in ranges.cut(shard) for entry in json_arrays.read_json_array(part, ledger)]
    assert [number for number, _ in entries_read] == list(range(len(entries)))
    assert [entry for _, entry in entries_read] == entries
    assert ledger.records.read == 0


@pytest.mark.parametrize("kind", ["text", "parquet"])
def test_ranges_of_lines_and_rows_hold_each_record_once(tmp_path, monkeypatch, kind):
    texts = [f"some words {number} " * (1 + number % 7) for number in range(500)]
    monkeypatch.setattr(ranges, "SIZE", 2000)
    monkeypatch.setattr(ranges, "_BLOCK", 700)
    if kind == "text":
        (tmp_path / "x.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    else:
        pq.write_table(pa.table({"text": texts}), tmp_path / "x.parquet", row_group_size=130, compression="none")
    (shard,) = list_shards(tmp_path, kind)
    parts = ranges.cut(shard)
    documents = [document for part in parts for document in READERS[kind](part, Ledger())]
    assert len(parts) > 5
    assert [document.text for document in documents] == texts
    assert [document.id for document in documents] == [document.id for document in READERS[kind](shard, Ledger())]


def test_a_malformed_element_costs_itself(tmp_path):
    (tmp_path / "x.json").write_bytes(b'[{"conversations": []}, {"a": tru}, 7, {"b": "\xff"}, {"conversations": [1]}]')
    ledger = Ledger()
    (shard,) = list_shards(tmp_path / "x.json", "llava")
    assert [number for number, _ in json_arrays.read_json_array(shard, ledger)] == [0, 4]
    assert ledger.records.dropped == {"element that is no JSON object": 3}
