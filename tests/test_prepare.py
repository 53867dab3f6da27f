"""`mm1 prepare`: published filters, copies, evaluation sets kept out, and work that continues after a stop."""

import importlib.util
import io
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import PIL.Image
import pytest
import reading
import webdataset

from mm1.cluster import Runner
from mm1.config.base import ConfigError, choices
from mm1.config.renamed import PREPARE_FIELDS
from mm1.data.store import Store, write_store
from mm1.document import Document, Image, Text
from mm1.prepare import pipeline
from mm1.prepare.card import Failure, PrepareResult, write_card
from mm1.prepare.decontaminate import index_evaluation_sets
from mm1.prepare.dedup import Hashes, HashFiles, find_copies, hash_documents, load_hashes, repeated_images
from mm1.prepare.filters.image_filters import ImageBounds, Screened, screen
from mm1.prepare.filters.text_filters import FILTERS, Filter, c4, fineweb, gopher, repetition
from mm1.prepare.ledger import Account, Ledger, Page
from mm1.prepare.pipeline import BusyError, prepare
from mm1.prepare.readers.kinds import READERS
from mm1.prepare.request import Input, PrepareRequest, parse_request
from mm1.prepare.second_look import Detail, detail
from mm1.prepare.text_hashes import minhash

PROSE = """The house of the painter stood on a hill that looked over the town. It was built of grey stone, and the
windows were small. In the evening the light of the sun fell on the wall of the garden. A path led to the gate.
People who came by have often asked to see the rooms. They were told to wait with the dog until somebody came.
The pictures of the painter hung in every room of the house, and some of them were never finished by him."""


def test_every_filter_has_its_function_and_every_kind_its_reader():
    assert set(FILTERS) == set(get_args(Filter))
    assert set(READERS) == set(choices(Input, "kind"))


@pytest.mark.parametrize(("old", "new"), PREPARE_FIELDS.items())
def test_the_old_name_of_a_field_gets_the_new_one(old, new):
    with pytest.raises(ConfigError, match=f"no field '{old}' in a preparation; it is now '{new}'"):
        parse_request(["pages", f"{old}=1"], kind="tars")
    assert new in PrepareRequest.model_fields


@pytest.mark.parametrize("name", FILTERS)
def test_prose_passes(name):
    assert FILTERS[name](PROSE) is None


@pytest.mark.parametrize(
    ("check", "text", "expected"),
    [
        (gopher, "Too short.", "fewer than 50 words"),
        (gopher, PROSE.replace("e ", "e# "), "symbol"),
        (gopher, "xy " * 60, "mean length"),
        (gopher, "- something the person\n" * 20, "bullets"),
        (gopher, "the of words go on...\n" * 20, "symbol|ellipsis"),
        (gopher, "the and 1234 5678 " * 20, "letter"),
        (gopher, "lovely words without glue " * 20, "stop words"),
        (repetition, f"{PROSE}\n\n" * 4, "copies"),
        (repetition, "buy now cheap " * 40, "run of"),
        (c4, PROSE + " Lorem ipsum dolor.", "lorem"),
        (c4, PROSE + " if (x) { y(); }", "curly"),
        (c4, "No sentence here", "3 sentences"),
        (fineweb, "Home\nAbout\nContact us\nNews", "punctuation"),
        (fineweb, "One.\nTwo.\nThree.\nFour.", "shorter than 30"),
        (fineweb, f"{PROSE}\n{PROSE}", "copied lines"),
    ],
)
def test_text_that_is_no_prose_fails_for_its_reason(check, text, expected):
    reason = check(text)
    assert reason is not None
    assert any(part in reason for part in expected.split("|")) or pytest.fail(reason)


def other_encoding(data: bytes) -> bytes:
    """The same picture, scaled to three quarters and encoded again."""
    image = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    file = io.BytesIO()
    image.resize((image.width * 3 // 4, image.height * 3 // 4)).save(file, "JPEG", quality=90)
    return file.getvalue()


def photo(seed: int) -> bytes:
    """A picture unlike those of other seeds: smooth noise."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(noise).resize((96, 96), PIL.Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def pair(data: bytes, text: str) -> Document:
    return Document((Image(data), Text(text)))


def stored_hashes(folder: Path, *shards: list[Document]) -> Hashes:
    """The hashes of all shards, written to files and read back as a preparation does."""
    for number, documents in enumerate(shards):
        (folder / str(number)).mkdir()
        with HashFiles(folder / str(number)) as files:
            files.add(hash_documents(screen_all(documents)))
    return load_hashes([folder / str(number) for number in range(len(shards))], folder / "minhash")


def screen_all(documents: list[Document]) -> list[Screened]:
    return [screen(document, ImageBounds(), Ledger()) for document in documents]


def test_copies_are_found_across_encodings_and_shards_and_only_copies(tmp_path):
    words = PROSE.split()
    changed = " ".join([*words[:-3], "more", "than", "once"])
    documents = [
        pair(photo(1), "a thing"),  # 0
        pair(photo(1), "a thing"),  # 1 exact copy of 0
        pair(other_encoding(photo(1)), "A thing!"),  # 2 near copy of 0
        pair(photo(2), "a thing"),  # 3 another picture
        pair(photo(1), "something else altogether"),  # 4 other words
        Document((Text(PROSE),)),  # 5
        Document((Text(changed),)),  # 6 near copy of 5
        Document((Text("The sea is wide. " + " ".join(words[:30])),)),  # 7 shares only some words
    ]

    def details_of(position: int) -> list[Detail | None]:
        return [detail(image.data) for image in documents[position].images]

    copies = find_copies(stored_hashes(tmp_path, documents[:3], documents[3:]), details_of=details_of)
    assert copies.exact.tolist() == [1]
    assert copies.near.tolist() == [2, 6]


@pytest.mark.parametrize("share", [0.9, 0.75, 0.5, 0.1])
def test_minhashes_estimate_the_share_of_ngrams_that_two_texts_have_in_common(share):
    words = [f"w{number}" for number in range(4000)]
    shift = round(2000 * (1 - share) / (1 + share))  # two windows so far apart have this share of n-grams in common
    one, other = " ".join(words[:2000]), " ".join(words[shift : shift + 2000])
    assert abs((minhash(one) == minhash(other)).mean() - share) < 0.15


def test_pictures_in_many_documents_are_logos():
    logo = photo(7)
    documents = [pair(logo, f"page {n}") for n in range(5)] + [pair(photo(8), "x"), pair(photo(8), "y")]
    hashes = hash_documents(screen_all(documents))
    assert repeated_images(hashes, 3).tolist() == [int(hashes.images[0])]


def test_evaluation_sets_are_kept_out(tmp_path):
    evaluation_set = [pair(photo(1), PROSE), Document((Text("How many red cats are on the sofa?"),))]
    decontaminator = index_evaluation_sets(screen_all(evaluation_set), tmp_path / "pictures.lance")

    def reason(document: Document) -> str | None:
        return decontaminator.drop_reason(screen_all([document])[0])

    assert "picture" in (reason(pair(other_encoding(photo(1)), "other words")) or "")
    assert "13 words" in (reason(Document((Text("And so: " + " ".join(PROSE.split()[4:20])),))) or "")
    assert "8 words" in (reason(Document((Text("They asked how many RED cats are on the sofa today"),))) or "")
    assert reason(pair(photo(2), "The house of the painter stood on a mountain.")) is None


def test_pictures_outside_the_bounds_are_counted_by_reason():
    tiny, long = io.BytesIO(), io.BytesIO()
    PIL.Image.new("RGB", (8, 8)).save(tiny, "PNG")
    PIL.Image.new("RGB", (900, 40)).save(long, "PNG")
    data = [photo(1), tiny.getvalue(), long.getvalue(), photo(2), photo(3)]
    document = Page((*map(Image, data), Text("x")))
    ledger = Ledger()
    assert len(screen(document, ImageBounds(max_images=2, max_side=48), ledger).document.images) == 2
    assert ledger.pictures.dropped.total() == 3
    small = screen(document, ImageBounds(max_side=48), Ledger()).document.images[0]
    assert max(PIL.Image.open(io.BytesIO(small.data)).size) == 48


def tars(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        with webdataset.TarWriter(str(folder / f"{number:05}.tar")) as tar:
            for sample in range(4):
                name = 10 * number + sample
                tar.write({"__key__": f"{name:06}", "png": photo(name), "txt": f"caption of picture {name}"})
    return folder


def request_for(*paths: Path, kind: str = "tars", **more) -> PrepareRequest:
    return PrepareRequest(inputs=[Input(path=str(path), kind=kind) for path in paths], **more)


def test_a_folder_of_another_preparation_is_left_alone(tmp_path):
    request = request_for(tars(tmp_path / "in", 1))
    with pipeline._work_folder(request, tmp_path / "out"), pytest.raises(BusyError, match="another process"):
        prepare(request, tmp_path / "out")
    with pytest.raises(BusyError, match="another preparation"):
        prepare(request_for(tmp_path / "in", min_side=99), tmp_path / "out")


def test_a_shard_that_fails_is_named_and_stops_no_other(tmp_path):
    request = request_for(tars(tmp_path / "in", 3))
    (tmp_path / "in/00001.tar").write_bytes(b"junk" * 500)
    result = prepare(request, tmp_path / "out")
    assert result.stores == {"images": 8}
    assert list(result.failed) == ["00001.tar"]
    assert "breaks off" in result.failed["00001.tar"].error


def test_the_result_does_not_depend_on_the_workers(tmp_path):
    request = request_for(tars(tmp_path / "in", 3))
    for workers in (1, 2):
        prepare(request, tmp_path / f"out{workers}", runner=Runner(workers=workers))
    one, two = (list(Store(tmp_path / f"out{w}" / "images.lance").scan()) for w in (1, 2))
    assert one == two


ON_RAY = """
import sys
from mm1.prepare import pipeline
request, to = pipeline.PrepareRequest.model_validate_json(sys.argv[1]), pipeline.Path(sys.argv[2])
pipeline.prepare(request, to, runner=pipeline.Runner("ray", workers=2))
"""


@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="ray is not installed: pip install 'mm1[ray]'")
def test_ray_gives_what_the_native_runner_gives(tmp_path):
    request = request_for(tars(tmp_path / "in", 5))
    (tmp_path / "in" / "00003.tar").write_bytes(b"junk" * 500)
    # in a process of its own: a process has one runner
    words = [sys.executable, "-c", ON_RAY, request.model_dump_json(), str(tmp_path / "ray")]
    on_ray = subprocess.run(words, check=False, capture_output=True, text=True, timeout=300)
    assert on_ray.returncode == 0, on_ray.stderr[-3000:]
    prepare(request, tmp_path / "native")
    one, two = (list(Store(tmp_path / name / "images.lance").scan()) for name in ("native", "ray"))
    assert one == two
    cards = [json.loads((tmp_path / name / "card.json").read_text()) for name in ("native", "ray")]
    assert cards[0]["failed"] == cards[1]["failed"]
    assert list(cards[0]["failed"]) == ["00003.tar"]


def test_an_address_without_a_cluster_fails_at_once(tmp_path):
    request = request_for(tars(tmp_path / "in", 1))
    for address, message in (("127.0.0.1:1", "nobody answers"), ("cluster", "expected HOST:PORT")):
        with pytest.raises(ValueError, match=message):
            prepare(request, tmp_path / "out", runner=Runner("ray", address))


def test_copies_are_removed_across_inputs_and_each_document_names_its_source(tmp_path):
    one, other = tars(tmp_path / "one", 1), tars(tmp_path / "other", 2)
    result = prepare(request_for(one, other), tmp_path / "out")
    assert result.stores == {"images": 8}
    assert reading.drops(result.ledger) == {"copy of an earlier document": 4}
    sources = Counter(document.source for document in Store(tmp_path / "out" / "images.lance").scan())
    assert sources == {"one": 4, "other": 4}


def test_documents_without_pictures_go_to_the_text_store_and_every_loss_is_counted(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes(photo(number))
        (folder / "head.png").write_bytes(photo(99))
        own = f"<img src={number}.png>" if number < 3 else ""
        text = f"Page {number} is about the number {number} and about {'nothing ' * number} else at all, as we said."
        (folder / f"{number}.html").write_text(f"<p>{text}<img src=head.png>{own}<p>The end.")
    result = prepare(request_for(folder, kind="html", max_image_repeats=4, licence="CC0-1.0"), tmp_path / "out")
    assert result.stores == {"images": 3, "text": 3}
    assert (result.ledger.records.read, result.ledger.pictures.read) == (6, 9)
    assert reading.drops(result.ledger) == {"picture in more than 4 documents": 6}
    documents = [d for name in result.stores for d in Store(tmp_path / "out" / f"{name}.lance").scan()]
    assert {document.metadata["licence"] for document in documents} == {"CC0-1.0"}


def test_contaminated_documents_are_counted(tmp_path):
    write_store([pair(other_encoding(photo(0)), "x")], tmp_path / "test.lance")
    result = prepare(
        request_for(tars(tmp_path / "in", 1), decontaminate=(str(tmp_path / "test.lance"),)), tmp_path / "out"
    )
    assert result.stores == {"images": 3}
    assert reading.drops(result.ledger) == {"contaminated: shows a picture of an evaluation set": 1}


def test_the_card_counts_what_the_stores_hold(tmp_path):
    prepare(request_for(tars(tmp_path / "in", 2), licence="CC0-1.0"), tmp_path / "out")
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    store = card["stores"]["images"]
    assert (store["documents"], store["images"]) == (8, 8)
    assert store["words"] == 8 * 4
    assert store["licences"] == {"CC0-1.0": 8}
    page = (tmp_path / "out" / "card.html").read_text()
    assert page.count("<img") == 8
    assert "caption of picture 13" in page


def test_text_of_a_document_cannot_act_in_the_card(tmp_path):
    documents = [Document((Text("<script>alert(1)</script>"),), id="<b>x", source="s")]
    (tmp_path / "out").mkdir()
    write_store(documents, tmp_path / "out" / "text.lance")
    ledger = Ledger(records=Account(2, 1, Counter({"<i>why": 1})))
    result = PrepareResult({"text": 1}, ledger, {"<u>shard": Failure("<s>")})
    write_card(tmp_path / "out", result, title="x")
    page = (tmp_path / "out" / "card.html").read_text()
    assert not any(tag in page for tag in ("<script>alert", "<b>x", "<i>why", "<u>shard"))


def test_memory_does_not_grow_with_the_input():
    script = Path(__file__).parents[1] / "benchmarks" / "prepare_memory.py"
    output = subprocess.run(
        [sys.executable, str(script), "--megabytes", "400,1000"], capture_output=True, text=True, check=True
    ).stdout
    small, large = (int(peak.replace(",", "")) for peak in re.findall(r"peak ([\d,]+) MB", output))
    assert large < small + 120, output  # with 600 MB more input


def test_a_failure_leaves_no_half_result(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/0.tar").write_bytes(b"junk" * 500)
    with pytest.raises(ValueError, match="no document"):
        prepare(request_for(tmp_path / "in"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
