"""Each reader reads files that the field's own writer wrote, in their published layout; their kind is detected."""

import gzip
import io
import json
import zipfile
from collections import Counter
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reading
import webdataset
import zstandard
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from mm1.document import Document, Image, Text
from mm1.prepare import fetch
from mm1.prepare.fetch import Fetcher, FetchError
from mm1.prepare.readers.kinds import detect_kind, list_shards
from mm1.prepare.shard import InputError
from tests.conftest import picture

RED, GREEN = picture(0, 1)[0], picture(0, 2)[0]


def read(path: Path, *, kind: str = "", drops: Counter[str] | None = None, **more) -> list[Document]:
    """The documents of the input, of its detected kind unless one is named."""
    documents, ledger = reading.read(path, kind, **more)
    if drops is not None:
        drops.update(reading.drops(ledger))
    return documents


def shapes(document: Document) -> list[bytes | str]:
    return [piece.data if isinstance(piece, Image) else piece.text.strip() for piece in document.pieces]


def test_tars_of_img2dataset(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "00000.tar")) as tar:
        for number, (data, caption) in enumerate([(RED, "a red thing"), (GREEN, "a green thing")]):
            fields = {"caption": caption, "url": f"https://e.org/{number}", "key": f"{number:09}", "status": "success"}
            tar.write({"__key__": f"{number:09}", "jpg": data, "txt": caption, "json": fields})
        tar.write({"__key__": "000000002", "txt": "nothing to see"})
    pq.write_table(pa.table({"url": ["https://e.org/0"], "caption": ["a red thing"]}), tmp_path / "00000.parquet")
    drops: Counter[str] = Counter()
    first, second = read(tmp_path, drops=drops)
    assert detect_kind(tmp_path) == "tars"
    assert shapes(first) == [RED, "a red thing"]
    assert shapes(second) == [GREEN, "a green thing"]
    assert first.metadata == {"url": "https://e.org/0"}
    assert drops == {"sample without a picture": 1}


@pytest.mark.parametrize("image", [RED, {"bytes": RED, "path": "a.png"}], ids=["bytes", "hub"])
def test_parquet_with_image_bytes(tmp_path, image):
    pq.write_table(pa.Table.from_pylist([{"image": image, "caption": "a thing"}]), tmp_path / "0.parquet")
    assert [shapes(document) for document in read(tmp_path)] == [[RED, "a thing"]]


def test_parquet_of_addresses_is_fetched_only_on_request(tmp_path, monkeypatch):
    rows = [{"URL": "https://e.org/1.jpg", "TEXT": "a thing"}, {"URL": "https://e.org/2.jpg", "TEXT": "another"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0.parquet")
    drops: Counter[str] = Counter()
    assert read(tmp_path, drops=drops) == []
    assert drops["picture by address only, not fetched (fetch=true fetches)"] == 2
    requested = []

    def fake_fetch(address: str) -> bytes:
        requested.append(address)
        if address.endswith("2.jpg"):
            raise FetchError("address that does not answer")
        return RED

    monkeypatch.setattr(fetch, "fetch", fake_fetch)
    for _ in range(2):  # the second time it comes from the cache
        drops = Counter()
        (document,) = read(tmp_path, drops=drops, fetcher=Fetcher(tmp_path / "cache"))
        assert shapes(document) == [RED, "a thing"]
        assert drops["address that does not answer"] == 1
    assert requested.count("https://e.org/1.jpg") == 1


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "0.0.0.0"])
def test_private_addresses_are_refused(address):
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(FetchError, match="private network"):
        fetch.fetch(f"http://{host}/latest/meta-data")


def test_a_redirect_into_the_private_network_is_refused(monkeypatch):
    original = fetch.public_ip
    monkeypatch.setattr(fetch, "public_ip", lambda host: host if host == "public.example" else original(host))
    monkeypatch.setattr(fetch, "connect", lambda *_, **__: io.BytesIO())
    monkeypatch.setattr(fetch, "_exchange", lambda *_: fetch._Response(b"", "http://127.0.0.1/secret"))
    with pytest.raises(FetchError, match="private network"):
        fetch.fetch("http://public.example/x.jpg", robots=False)


def test_obelics_keeps_the_reading_order_and_the_address_of_the_page(tmp_path):
    rows = [
        {
            "images": [None, {"bytes": RED, "path": None}, None],
            "texts": ["Before.", None, "After."],
            "metadata": json.dumps([None, {"src": "https://e.org/i.jpg"}, None]),
            "general_metadata": json.dumps({"url": "https://e.org/page"}),
        }
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train-0.parquet")
    (document,) = read(tmp_path)
    assert shapes(document) == ["Before.", RED, "After."]
    assert document.metadata == {"url": "https://e.org/page"}


def test_obelics_as_published_holds_addresses(tmp_path):
    rows = [{"images": [None, "https://e.org/i.jpg"], "texts": ["Words.", None], "general_metadata": "{}"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train-0.parquet")
    drops: Counter[str] = Counter()
    assert [shapes(document) for document in read(tmp_path, drops=drops)] == [["Words."]]
    assert sum(drops.values()) == 1


def test_rows_of_synthdog_are_chats_with_a_transcription(tmp_path):
    """As the hub has them, in parquet that `datasets` wrote, and as SynthDog writes them: an imagefolder."""
    truths = [{"gt_parse": {"text_sequence": "Two words of an encyclopedia"}}, {"gt_parse": {"text_sequence": " "}}]
    truths += [{"gt_parse": {"menu": [{"nm": "Tea"}]}}, {"gt_parses": []}]
    cells = [*(json.dumps(truth, ensure_ascii=False) for truth in truths), "{torn", None]
    features = datasets.Features({"image": datasets.Image(), "ground_truth": datasets.Value("string")})
    rows = [{"image": {"bytes": RED, "path": "image_0.jpg"}, "ground_truth": cell} for cell in cells]
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    datasets.Dataset.from_list(rows, features).to_parquet(folder / "train-00000-of-00084-26dbc51f3d0903b9.parquet")
    train = tmp_path / "outputs" / "train"
    train.mkdir(parents=True)
    (train / "image_0.jpg").write_bytes(RED)
    lines = [json.dumps({"file_name": "image_0.jpg", "ground_truth": cell}, ensure_ascii=False) for cell in cells]
    (train / "metadata.jsonl").write_text("\n".join(lines))
    for path, kind in ((tmp_path / "hub", "parquet"), (tmp_path / "outputs", "imagefolder")):
        assert detect_kind(path) == kind
        drops: Counter[str] = Counter()
        (document,) = read(path, drops=drops)
        picture, question, answer = document.pieces
        assert (picture.data, question.train, answer.text) == (RED, False, "Two words of an encyclopedia")
        assert answer.train
        assert "transcribe" in question.text
        assert document.metadata["form"] == "chat"
        assert drops == {"row whose ground_truth has no gt_parse.text_sequence": 5}


def test_the_cauldron_trains_on_answers_only(tmp_path):
    turns = [{"user": "What is it?", "assistant": "A thing.", "source": "s"}, {"user": "And?", "assistant": "Red."}]
    rows = [{"images": [{"bytes": RED, "path": None}, {"bytes": GREEN, "path": None}], "texts": turns}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0.parquet")
    (document,) = read(tmp_path)
    assert shapes(document) == [RED, GREEN, "What is it?", "A thing.", "And?", "Red."]
    assert [p.train for p in document.pieces if isinstance(p, Text)] == [False, True, False, True]
    assert document.metadata["form"] == "chat"


@pytest.mark.parametrize("packing", ["", ".gz", ".zip"])
def test_mmc4_puts_a_picture_before_its_sentence(tmp_path, packing):
    info = [{"image_name": "b.png", "raw_url": "https://e.org/b.png", "matched_text_index": 1, "matched_sim": 0.3}]
    page = {
        "url": "https://e.org",
        "text_list": ["One.", "Two."],
        "image_info": info,
        "similarity_matrix": [[0.1, 0.3]],
    }
    line = json.dumps(page).encode() + b"\n"
    path = tmp_path / f"docs_no_face_shard_0_v2.jsonl{packing}"
    if packing == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
            bundle.writestr("docs_no_face_shard_0_v2.jsonl", line)
    else:
        path.write_bytes(gzip.compress(line) if packing else line)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "b.png").write_bytes(RED)
    (document,) = read(tmp_path)
    assert shapes(document) == ["One.", RED, "Two."]
    assert document.metadata == {"url": "https://e.org"}


def test_llava_puts_pictures_at_their_marks(tmp_path):
    (tmp_path / "pictures/coco").mkdir(parents=True)
    (tmp_path / "pictures/coco/1.png").write_bytes(RED)
    talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A thing."}]
    rows = [
        {"id": "1", "image": "coco/1.png", "conversations": talk},
        {"id": "2", "image": "coco/2.png", "conversations": talk},
        {"id": "3", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
    ]
    (tmp_path / "llava.json").write_text(json.dumps(rows, indent=1))
    drops: Counter[str] = Counter()
    with_picture, without = read(tmp_path / "llava.json", drops=drops, pictures=tmp_path / "pictures")
    assert shapes(with_picture) == [RED, "What is it?", "A thing."]
    assert shapes(without) == ["Hi", "Hello."]
    assert drops["picture that is missing"] == 1


def test_coco_captions_with_their_licence(tmp_path):
    (tmp_path / "val2017").mkdir()
    (tmp_path / "val2017/000000000009.jpg").write_bytes(RED)
    content = {
        "info": {"year": 2017},
        "licenses": [{"id": 3, "name": "CC BY", "url": "http://creativecommons.org/licenses/by/2.0/"}],
        "images": [{"id": 9, "file_name": "000000000009.jpg", "license": 3, "coco_url": "http://e.org/9.jpg"}],
        "annotations": [{"id": 1, "image_id": 9, "caption": "A thing."}, {"id": 2, "image_id": 9, "caption": "Red."}],
    }
    (tmp_path / "captions_val2017.json").write_text(json.dumps(content))
    one, other = read(tmp_path / "captions_val2017.json", pictures=tmp_path / "val2017")
    assert shapes(one) == [RED, "A thing."]
    assert shapes(other) == [RED, "Red."]
    assert one.metadata["licence"].startswith("http://creativecommons.org")


def test_text_of_dolma_and_fineweb(tmp_path):
    lines = [{"id": "a", "text": "Some words.", "source": "s", "metadata": {"url": "https://e.org"}}, {"id": "b"}]
    packed = zstandard.compress("".join(json.dumps(line) + "\n" for line in lines).encode())
    (tmp_path / "part-0.jsonl.zst").write_bytes(packed)
    drops: Counter[str] = Counter()
    (document,) = read(tmp_path, drops=drops)
    assert document.text == "Some words."
    assert document.metadata["url"] == "https://e.org"
    assert drops == {"line without a text": 1}
    table = pa.table({"text": ["Other words."], "id": ["x"], "dump": ["CC-1"], "url": ["https://e.org"]})
    (tmp_path / "fineweb").mkdir()
    pq.write_table(table, tmp_path / "fineweb" / "000_00000.parquet")
    assert [shapes(document) for document in read(tmp_path / "fineweb")] == [["Other words."]]


def test_pictures_with_a_text_beside_them(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.png").write_bytes(RED)
    (tmp_path / "sub/a.txt").write_text("a thing\n")
    (tmp_path / "b.png").write_bytes(GREEN)
    drops: Counter[str] = Counter()
    assert [shapes(document) for document in read(tmp_path, drops=drops)] == [[RED, "a thing"]]
    assert drops == {"picture without a text beside it": 1}


def test_a_data_set_saved_to_disk(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = {"image": [{"bytes": RED, "path": None}, {"bytes": GREEN, "path": None}], "caption": ["a thing", "another"]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    assert [shapes(document) for document in read(tmp_path / "saved")] == [[RED, "a thing"], [GREEN, "another"]]


PAGE = b"""<html><body><nav><a href=/>Home</a></nav><main><h1>Title</h1><p>Some words of a page that has a few.</p>
<img src="img/a.png" alt="a thing"><p>And more words after the picture, too.</p></main><footer>(c) us</footer>
</body></html>"""


def test_a_folder_of_pages_in_reading_order(tmp_path):
    (tmp_path / "site/img").mkdir(parents=True)
    (tmp_path / "site/img/a.png").write_bytes(RED)
    (tmp_path / "site/index.html").write_bytes(PAGE)
    (tmp_path / "site/sub").mkdir()
    (tmp_path / "site/sub/other.html").write_bytes(PAGE.replace(b"img/a.png", b"../img/a.png"))
    document, other = read(tmp_path / "site")
    assert shapes(other) == shapes(document)
    assert shapes(document)[1] == RED
    text = "Title Some words of a page that has a few. And more words after the picture, too."
    assert " ".join(document.text.split()) == text


@pytest.mark.parametrize("name", ["crawl.warc", "crawl.warc.gz"])
def test_warc_with_the_images_it_holds(tmp_path, name):
    with (tmp_path / name).open("wb") as file:
        writer = WARCWriter(file, gzip=name.endswith("gz"))
        for url, kind, body in [
            ("https://e.org/index.html", "text/html; charset=utf-8", PAGE),
            ("https://e.org/img/a.png", "image/png", RED),
        ]:
            headers = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.1")
            writer.write_record(writer.create_warc_record(url, "response", io.BytesIO(body), http_headers=headers))
    (document,) = read(tmp_path)
    assert shapes(document)[1] == RED
    assert document.id == "https://e.org/index.html"


def test_an_unknown_input_says_how_to_name_the_kind(tmp_path):
    with pytest.raises(InputError, match="there is no"):
        detect_kind(tmp_path / "nothing")
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="--kind, one of tars, parquet"):
        detect_kind(tmp_path)
    with pytest.raises(InputError, match=r"names that end in \.tar"):
        list_shards(tmp_path, "tars")
