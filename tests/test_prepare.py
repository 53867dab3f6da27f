"""A preparation: filters as published, copies found, evaluation sets kept out, work in parts that survives."""

import importlib.util
import io
import json
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import PIL.Image
import pytest
import webdataset

from mm1.data.store import Store, write_store
from mm1.document import Document, Image, Text
from mm1.prepare import pipeline as work
from mm1.prepare.card import Prepared, write_card
from mm1.prepare.dedup import Prints, PrintsFile, copies, guard_of, joined, prints_of, repeated_pictures, signature
from mm1.prepare.executor import Runner
from mm1.prepare.filters.image_filters import Bounds, Seen, screened
from mm1.prepare.filters.text_filters import FILTERS, Filter, c4, fineweb, gopher, repetition
from mm1.prepare.pipeline import BusyError, prepare
from mm1.prepare.request import Input, Order

PROSE = """The house of the painter stood on a hill that looked over the town. It was built of grey stone, and the
windows were small. In the evening the light of the sun fell on the wall of the garden. A path led to the gate.
People who came by have often asked to see the rooms. They were told to wait with the dog until somebody came.
The pictures of the painter hung in every room of the house, and some of them were never finished by him."""


def test_every_filter_has_its_function():
    assert set(FILTERS) == set(get_args(Filter))


@pytest.mark.parametrize("name", FILTERS)
def test_prose_passes(name):
    assert FILTERS[name](PROSE) is None


@pytest.mark.parametrize(
    ("check", "text", "why"),
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
def test_what_is_no_prose_fails_for_its_reason(check, text, why):
    found = check(text)
    assert found is not None
    assert any(part in found for part in why.split("|")) or pytest.fail(found)


def other_encoding(data: bytes) -> bytes:
    """The same picture, scaled to three quarters and encoded anew."""
    image = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    file = io.BytesIO()
    image.resize((image.width * 3 // 4, image.height * 3 // 4)).save(file, "JPEG", quality=90)
    return file.getvalue()


def photo(seed: int) -> bytes:
    """A picture with structure of its own: smooth noise."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(noise).resize((96, 96), PIL.Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def pair(data: bytes, text: str) -> Document:
    return Document((Image(data), Text(text)))


def remembered(folder: Path, *parts: list[Document]) -> Prints:
    """The prints of all parts, written to files and read back as a preparation does."""
    for number, part in enumerate(parts):
        (folder / str(number)).mkdir()
        with PrintsFile(folder / str(number)) as file:
            file.add(prints_of(seen(part)))
    return joined([folder / str(number) for number in range(len(parts))], folder / "words")


def seen(documents: list[Document]) -> list[Seen]:
    return [screened(document, Bounds(), Counter()) for document in documents]


def test_copies_are_found_across_encodings_parts_and_only_copies(tmp_path):
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
        Document((Text("The sea is wide. " + " ".join(words[:30])),)),  # 7 shares a part only
    ]
    found = copies(remembered(tmp_path, documents[:3], documents[3:]))
    assert found.exact.tolist() == [1]
    assert found.near.tolist() == [2, 6]


@pytest.mark.parametrize("share", [0.9, 0.75, 0.5, 0.1])
def test_signatures_estimate_how_much_two_texts_share(share):
    words = [f"w{number}" for number in range(4000)]
    shift = round(2000 * (1 - share) / (1 + share))  # of two windows so far apart, this share of runs is of both
    one, other = " ".join(words[:2000]), " ".join(words[shift : shift + 2000])
    assert abs((signature(one) == signature(other)).mean() - share) < 0.15


def test_pictures_in_many_documents_are_logos():
    logo = photo(7)
    prints = prints_of(seen([pair(logo, f"page {n}") for n in range(5)] + [pair(photo(8), "x"), pair(photo(8), "y")]))
    gone = repeated_pictures(prints, 3)
    assert gone.tolist() == [int(prints.bytes[0])]


def test_evaluation_sets_are_kept_out():
    tested = [pair(photo(1), PROSE), Document((Text("How many red cats are on the sofa?"),))]
    guard = guard_of(seen(tested))

    def fault(document: Document) -> str | None:
        return guard.fault(seen([document])[0])

    assert "picture" in (fault(pair(other_encoding(photo(1)), "other words")) or "")
    assert "13 words" in (fault(Document((Text("And so: " + " ".join(PROSE.split()[4:20])),))) or "")
    assert "8 words" in (fault(Document((Text("They asked how many RED cats are on the sofa today"),))) or "")
    assert fault(pair(photo(2), "The house of the painter stood on a mountain.")) is None


def test_pictures_that_do_not_count_are_left_out_by_reason():
    tiny, long = io.BytesIO(), io.BytesIO()
    PIL.Image.new("RGB", (8, 8)).save(tiny, "PNG")
    PIL.Image.new("RGB", (900, 40)).save(long, "PNG")
    data = [photo(1), tiny.getvalue(), long.getvalue(), photo(2), photo(3)]
    document = Document((*map(Image, data), Text("x")))
    drops: Counter[str] = Counter()
    assert len(screened(document, Bounds(max_images=2, max_side=48), drops).document.images) == 2
    assert sum(drops.values()) == 3
    small = screened(document, Bounds(max_side=48), Counter()).document.images[0]
    assert max(PIL.Image.open(io.BytesIO(small.data)).size) == 48


def tars(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        with webdataset.TarWriter(str(folder / f"{number:05}.tar")) as tar:
            for sample in range(4):
                name = 10 * number + sample
                tar.write({"__key__": f"{name:06}", "png": photo(name), "txt": f"caption of picture {name}"})
    return folder


def order_of(*paths: Path, kind: str = "tars", **more) -> Order:
    return Order(inputs=[Input(path=str(path), kind=kind) for path in paths], **more)


STOPPED = """
import os, sys, time
from mm1.prepare import pipeline as work
once = work.do_part
def do_part(order, part, place, *, guard):
    if part.name == "00002.tar":
        os.kill(os.getpid(), int(sys.argv[3]))
        time.sleep(1)
    return once(order, part, place, guard=guard)
work.do_part = do_part
try:
    work.prepare(work.Order.model_validate_json(sys.argv[1]), work.Path(sys.argv[2]))
except KeyboardInterrupt:
    os._exit(130)
"""


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)], ids=["killed", "Ctrl-C"])
def test_a_stopped_preparation_goes_on_with_what_is_done(tmp_path, how, code):
    order, out = order_of(tars(tmp_path / "in", 4)), tmp_path / "out"
    words = [sys.executable, "-c", STOPPED, order.model_dump_json(), str(out), str(int(how))]
    stopped = subprocess.run(
        words,
        check=False,
        capture_output=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background would ignore it
    )
    assert stopped.returncode == code, stopped.stderr
    assert not out.exists()
    done = [place.name for place in tmp_path.glob("out.part/00000?")]
    assert done
    for name in done:
        (tmp_path / f"in/{name[1:]}.tar").write_bytes(b"junk" * 500)  # what is done is not read again
    result = prepare(order, out)
    assert result.stores == {"images": 16}
    assert not result.failed
    assert not (tmp_path / "out.part").exists()


def test_a_folder_of_another_preparation_is_left_alone(tmp_path):
    order = order_of(tars(tmp_path / "in", 1))
    with work._begun(order, tmp_path / "out"), pytest.raises(BusyError, match="another process"):
        prepare(order, tmp_path / "out")
    with pytest.raises(BusyError, match="another preparation"):
        prepare(order_of(tmp_path / "in", min_side=99), tmp_path / "out")


def test_a_part_that_fails_is_named_and_stops_nobody(tmp_path):
    order = order_of(tars(tmp_path / "in", 3))
    (tmp_path / "in/00001.tar").write_bytes(b"junk" * 500)
    result = prepare(order, tmp_path / "out")
    assert result.stores == {"images": 8}
    assert list(result.failed) == ["00001.tar"]
    assert "breaks off" in result.failed["00001.tar"]


def test_the_result_does_not_depend_on_the_workers(tmp_path):
    order = order_of(tars(tmp_path / "in", 3))
    for workers in (1, 2):
        prepare(order, tmp_path / f"out{workers}", runner=Runner(workers=workers))
    one, two = (list(Store(tmp_path / f"out{w}" / "images.lance").scan()) for w in (1, 2))
    assert one == two


ON_RAY = """
import sys
from mm1.prepare import pipeline as work
order, to = work.Order.model_validate_json(sys.argv[1]), work.Path(sys.argv[2])
work.prepare(order, to, runner=work.Runner("ray", workers=2))
"""


@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="ray is not installed: pip install 'mm1[ray]'")
def test_ray_makes_what_this_machine_makes(tmp_path):
    order = order_of(tars(tmp_path / "in", 5))
    (tmp_path / "in" / "00003.tar").write_bytes(b"junk" * 500)
    # in a process of its own: a process has one runner
    words = [sys.executable, "-c", ON_RAY, order.model_dump_json(), str(tmp_path / "ray")]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    prepare(order, tmp_path / "native")
    one, two = (list(Store(tmp_path / name / "images.lance").scan()) for name in ("native", "ray"))
    assert one == two
    cards = [json.loads((tmp_path / name / "card.json").read_text()) for name in ("native", "ray")]
    assert cards[0]["failed"] == cards[1]["failed"]
    assert list(cards[0]["failed"]) == ["00003.tar"]


def test_an_address_without_a_cluster_is_said_at_once(tmp_path):
    order = order_of(tars(tmp_path / "in", 1))
    for address, why in (("127.0.0.1:1", "nobody answers"), ("cluster", "expected HOST:PORT")):
        with pytest.raises(ValueError, match=why):
            prepare(order, tmp_path / "out", runner=Runner("ray", address))


def test_copies_go_across_inputs_and_each_document_says_its_source(tmp_path):
    one, other = tars(tmp_path / "one", 1), tars(tmp_path / "other", 2)
    result = prepare(order_of(one, other), tmp_path / "out")
    assert result.stores == {"images": 8}
    assert result.drops == {"copy of an earlier document": 4}
    found = Counter(document.source for document in Store(tmp_path / "out" / "images.lance").scan())
    assert found == {"one": 4, "other": 4}


def test_documents_without_pictures_go_to_the_text_store_and_nothing_is_lost_uncounted(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes(photo(number))
        (folder / "head.png").write_bytes(photo(99))
        own = f"<img src={number}.png>" if number < 3 else ""
        said = f"Page {number} is about the number {number} and about {'nothing ' * number} else at all, as we said."
        (folder / f"{number}.html").write_text(f"<p>{said}<img src=head.png>{own}<p>The end.")
    result = prepare(order_of(folder, kind="html", max_image_repeats=4, licence="CC0-1.0"), tmp_path / "out")
    assert result.stores == {"images": 3, "text": 3}
    assert result.before == {"documents": 6, "pictures": 9}
    assert result.drops == {"picture in more than 4 documents": 6}
    documents = [d for name in result.stores for d in Store(tmp_path / "out" / f"{name}.lance").scan()]
    assert {document.metadata["licence"] for document in documents} == {"CC0-1.0"}


def test_contaminated_documents_are_counted(tmp_path):
    write_store([pair(other_encoding(photo(0)), "x")], tmp_path / "test.lance")
    result = prepare(
        order_of(tars(tmp_path / "in", 1), decontaminate=(str(tmp_path / "test.lance"),)), tmp_path / "out"
    )
    assert result.stores == {"images": 3}
    assert result.drops == {"contaminated: shows a picture of an evaluation set": 1}


def test_the_card_says_what_is_there(tmp_path):
    prepare(order_of(tars(tmp_path / "in", 2), licence="CC0-1.0"), tmp_path / "out")
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    store = card["stores"]["images"]
    assert (store["documents"], store["images"]) == (8, 8)
    assert store["words"] == 8 * 4
    assert store["licences"] == {"CC0-1.0": 8}
    page = (tmp_path / "out" / "card.html").read_text()
    assert page.count("<img") == 8
    assert "caption of picture 13" in page


def test_what_a_page_says_cannot_act_in_the_card(tmp_path):
    documents = [Document((Text("<script>alert(1)</script>"),), id="<b>x", source="s")]
    (tmp_path / "out").mkdir()
    write_store(documents, tmp_path / "out" / "text.lance")
    write_card(tmp_path / "out", Prepared({"text": 1}, {"<i>why": 1}, {"<u>part": "<s>"}, {}), title="x")
    page = (tmp_path / "out" / "card.html").read_text()
    assert not any(tag in page for tag in ("<script>alert", "<b>x", "<i>why", "<u>part"))


def test_memory_does_not_grow_with_the_input():
    script = Path(__file__).parents[1] / "benchmarks" / "prepare_memory.py"
    said = subprocess.run(
        [sys.executable, str(script), "--megabytes", "40,200"], capture_output=True, text=True, check=True
    ).stdout
    small, large = (int(peak.replace(",", "")) for peak in re.findall(r"peak ([\d,]+) MB", said))
    assert large < small + 80, said  # of 160 MB more


def test_a_failure_leaves_no_half_table(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/0.tar").write_bytes(b"junk" * 500)
    with pytest.raises(ValueError, match="no document"):
        prepare(order_of(tmp_path / "in"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
