"""Pages rendered from text: the transcription is what stands there, and the seed decides every pixel."""

import io
import json
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image as Canvas
from typer.testing import CliRunner

from mm1.__main__ import app
from mm1.data.store import Store, open_store, write_store
from mm1.document import Document, Text
from mm1.prepare.ledger import Dropped
from mm1.prepare.pipeline import prepare
from mm1.prepare.readers.chats import TRANSCRIBE
from mm1.prepare.rendering import pages
from mm1.prepare.rendering.fonts import characters, find_fonts
from mm1.prepare.rendering.layouts import LAYOUTS, Ink
from mm1.prepare.rendering.pages import Rendering
from mm1.prepare.rendering.papers import PAPERS, photographed
from mm1.prepare.request import parse_request

FOLDER = str(Path(matplotlib.get_data_path()) / "fonts/ttf")
"""Fonts that are the same on every machine; which words fit a page depends on its font."""

FONTS = find_fonts(FOLDER)
SENTENCE = "A lost node and a new world size change nothing in what the model sees."
WORDS = tuple(SENTENCE.split())


def chance(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def drawn(layout: str, words: tuple[str, ...], seed: int = 0) -> tuple[np.ndarray, str]:
    """The grey pixels of a white page with black letters, and the text that was written."""
    page = Canvas.new("RGB", (400, 300), "white")
    ink = Ink(str(next(font for font in FONTS if font.endswith("DejaVuSans.ttf"))), 20, (0, 0, 0), 1.3)
    written = LAYOUTS[layout](page, words, ink, chance(seed))
    return np.asarray(page.convert("L")), written


def test_pages_are_a_pure_function_of_their_seed_and_number():
    rendering = Rendering("sample:text-test", FONTS, words=30, side=256)
    whole = list(rendering.pages(0, 8))
    assert list(rendering.pages(3, 5)) == whole[3:5]
    other = list(Rendering("sample:text-test", FONTS, seed=1, words=30, side=256).pages(0, 8))
    assert not {page.images[0].data for page in whole} & {page.images[0].data for page in other}
    assert len({page.text for page in whole}) == 8


def test_a_page_is_a_chat_whose_answer_is_words_in_a_row_of_the_source():
    sources = [" ".join(document.text.split()) for document in open_store("sample:text-test").scan()]
    for page in Rendering("sample:text-test", FONTS, words=12, side=256).pages(0, 12):
        picture, question, answer = page.pieces
        assert question == Text(TRANSCRIBE, train=False)
        assert answer.train
        assert page.metadata["form"] == "chat"
        assert page.metadata["licence"]
        size = Canvas.open(io.BytesIO(picture.data)).size
        assert 128 <= max(size) <= 256
        lines = answer.text.splitlines()
        if page.metadata["layout"] == "listed":
            assert all(line.startswith("- ") for line in lines)
            lines = [line.removeprefix("- ") for line in lines]
        assert any(" ".join(lines) in source for source in sources)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_transcription_has_every_word_that_stands_on_the_page_and_no_other(layout: str):
    empty, nothing = drawn(layout, ())
    assert nothing == ""
    assert (empty == 255).all()
    pixels, written = drawn(layout, WORDS)
    assert [word for word in written.split() if word != "-"] == list(WORDS)[: len(written.replace("- ", "").split())]
    assert (pixels < 128).any()
    # one word more on the page is one word more in the transcription, and ink where it stands
    fewer, before = drawn(layout, WORDS[:3])
    more, after = drawn(layout, WORDS[:4])
    assert len(after.replace("- ", "").split()) == len(before.replace("- ", "").split()) + 1
    assert (more != fewer).any()
    # nothing is cut at the edge of the page
    for seed in range(20):
        pixels, _ = drawn(layout, WORDS * 20, seed)
        edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (edges == 255).all()


@pytest.mark.parametrize("paper", PAPERS)
def test_papers_and_cameras_keep_a_page_readable(paper: str):
    for seed in range(10):
        sheet = PAPERS[paper]((200, 160), (240, 236, 228), chance(seed))
        assert sheet.size == (200, 160)
        assert np.asarray(sheet).mean() > 180
        box = (60, 60, 140, 100)
        sheet.paste((20, 20, 20), box)
        seen = np.asarray(photographed(sheet, (240, 236, 228), chance(seed)).convert("L"), float)
        assert seen[70:90, 80:120].mean() + 60 < seen[110:150, 20:180].mean()


def test_fonts_of_the_system_are_used_beside_those_of_matplotlib():
    assert set(FONTS) <= set(find_fonts())


def test_only_fonts_of_text_are_used_and_each_has_the_characters_of_its_page():
    names = {Path(font).name for font in FONTS}
    assert {"DejaVuSans.ttf", "DejaVuSerif.ttf", "STIXGeneral.ttf"} <= names
    assert not {"cmex10.ttf", "cmsy10.ttf", "LastResortHE-Regular.ttf", "STIXSizOneSymReg.ttf"} & names
    by_name = {Path(font).name: font for font in FONTS}
    for page in Rendering("sample:text-test", FONTS, words=40, side=256).pages(0, 20):
        assert set(page.pieces[2].text) - {" ", "\n"} <= characters(by_name[page.metadata["font"]])


def test_texts_that_cannot_be_drawn_are_counted(tmp_path: Path):
    texts = ["\u0645\u0631\u062d\u0628\u0627", "\ue000 \U0010ffff", "x" * 5000, "Two words."]
    write_store((Document((Text(text),), id=str(n)) for n, text in enumerate(texts)), tmp_path / "texts.lance")
    words = ["rendered_text", f"text={tmp_path / 'texts.lance'}", "count=40", "page_side=128", f"fonts={FOLDER}"]
    prepare(parse_request(words), tmp_path / "to")
    records = json.loads((tmp_path / "to/card.json").read_text())["records"]
    kept = [document.pieces[2].text for document in Store(tmp_path / "to/images.lance").scan()]
    assert {word for text in kept for word in text.split()} <= {"-", "Two", "words."}
    reason = "text without a word that a font has and a page has room for"
    assert records["read"] == 40
    assert records["dropped"][reason] > 20
    assert records["kept"] == len(kept)


def test_a_word_that_is_too_wide_is_tried_in_smaller_letters(monkeypatch):
    document = Document((Text("incomprehensibilities"),))
    rendering = Rendering("unread", FONTS, side=600, letters=(0.2, 0.2))
    for number in range(5):
        assert rendering._page(number, document).pieces[2].text.endswith("incomprehensibilities")
    monkeypatch.setattr(pages, "_TRIES", 1)
    assert isinstance(rendering._page(0, document), Dropped)


def test_the_command_renders_the_same_pages_each_time(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(pages, "_PAGES_PER_SHARD", 5)
    words = ["rendered_text", "text=sample:text-test", "count=12", "page_side=256", "page_words=8", "seed=4"]
    words.append(f"fonts={FOLDER}")
    result = CliRunner().invoke(app, ["prepare", *words, "--to", str(tmp_path / "one")])
    assert result.exit_code == 0, result.output
    prepare(parse_request([*words, "page_letters=0.02,0.08"]), tmp_path / "two")
    one, two = (list(Store(tmp_path / name / "images.lance").scan()) for name in ("one", "two"))
    assert one == two
    assert len(one) == 12
    assert [document.source for document in one] == ["rendered_text"] * 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rendered_text", "text=sample:text-test"], "text=STORE and count=N go with rendered_text"),
        (["rendered_text", "count=3"], "text=STORE and count=N go with rendered_text"),
        (["rendered_text", "text=nowhere.lance", "count=3"], "no document store at nowhere.lance"),
        (["rendered_text", "text=sample:text-test", "count=3", "fonts=empty"], "empty has no font"),
        (["rendered_text", "text=sample:text-test", "count=x"], "count"),
        (["text=sample:text-test", "count=3", "empty"], "kind 'rendered_text' is not read from empty"),
    ],
)
def test_a_request_that_lacks_something_says_what(words: list[str], message: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        prepare(parse_request(words, kind="" if "rendered_text" in words else "rendered_text"), tmp_path / "to")


def test_a_folder_of_fonts_is_all_that_is_used(tmp_path: Path):
    shutil.copy(next(font for font in FONTS if font.endswith("STIXGeneral.ttf")), tmp_path)
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    words = ["rendered_text", "text=sample:text-test", "count=4", "page_side=128", f"fonts={tmp_path}"]
    prepare(parse_request(words), tmp_path / "to")
    fonts = {document.metadata["font"] for document in Store(tmp_path / "to/images.lance").scan()}
    assert fonts == {"STIXGeneral.ttf"}
