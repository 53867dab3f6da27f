"""No words about a picture that is not there, no turns run together: what a record means survives its preparation."""

import io
import json
from pathlib import Path

import PIL.Image
import pytest
import reading

from mm1.data.store import Store
from mm1.document import Document, Image, Text
from mm1.prepare.filters.image_filters import ImageBounds, screen
from mm1.prepare.ledger import Dropped, InlineImage, Ledger, MissingImage, Page
from mm1.prepare.pipeline import prepare
from mm1.prepare.request import parse_request
from mm1.prepare.shard import InputError
from mm1.prepare.summary import summary_lines
from tests.conftest import picture

RED = picture(0, 1)[0]


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (width, height), "teal").save(file, "PNG")
    return file.getvalue()


REFUSED = {
    "cut.jpg": RED[: len(RED) // 2],
    "empty.jpg": b"",
    "tiny.jpg": png(3, 3),
    "long.jpg": png(2000, 32),
    "avif.jpg": b"\x00\x00\x00 ftypavif" + b"\xff" * 40,
}


def talk(folder: Path, names: list[str]) -> Path:
    """A LLaVA file with a chat about each picture; `good.jpg` is one, the others are refused or missing."""
    (folder / "pics").mkdir()
    for name, data in (REFUSED | {"good.jpg": RED}).items():
        (folder / "pics" / name).write_bytes(data)
    entries = []
    for name in names:
        answer = {"from": "gpt", "value": f"A thing that is called {name}."}
        entries.append({"image": name, "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, answer]})
    (folder / "talk.json").write_text(json.dumps(entries))
    return folder / "talk.json"


def prepared(path: Path, *fields: str) -> tuple[dict[str, int], Ledger]:
    to = path.parent / "out"
    result = prepare(parse_request([str(path), *fields]), to)
    return result.stores, result.ledger


def test_a_refused_picture_takes_its_chat_with_it(tmp_path):
    names = ["good.jpg", *REFUSED, "no-such.jpg"]
    stores, ledger = prepared(talk(tmp_path, names), f"pictures={tmp_path}/pics")
    assert stores == {"images": 1}
    assert ledger.records.dropped.total() == len(names) - 1
    assert ledger.pictures.dropped == ledger.records.dropped


def test_the_user_may_keep_the_words(tmp_path):
    path = talk(tmp_path, ["good.jpg", "tiny.jpg"])
    stores, ledger = prepared(path, f"pictures={tmp_path}/pics", "on_missing_image=keep_text")
    assert stores == {"images": 1, "text": 1}
    assert ledger.records.dropped == {}
    assert ledger.pictures.dropped == {"picture of fewer than 32 pixels": 1}


def test_a_page_keeps_its_text_and_its_lines_go_on():
    missing = MissingImage(reason="picture that is missing", inline=True)
    pieces = (Text("Press\n"), missing, Text("\nto go on.\n"), Image(b"junk"), Text("The end.\n"))
    page = screen(Page(pieces), ImageBounds(), Ledger()).document
    assert page.text == "Press to go on.\nThe end.\n"
    inline = Page((Text("Press\n"), InlineImage(b"junk"), Text("\nto go on.\n")))
    assert screen(inline, ImageBounds(), Ledger()).document.text == "Press to go on.\n"
    with pytest.raises(Dropped, match="picture that is missing"):
        screen(Page(pieces), ImageBounds(on_missing="drop"), Ledger())


def test_a_repeated_picture_takes_its_caption_with_it(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(RED if number else picture(0, 2)[0])
        (folder / f"{number}.txt").write_text(f"a thing that has the number {number}")
    result = prepare(parse_request([str(folder), "max_image_repeats=2", "min_side=1"]), tmp_path / "out")
    assert result.stores == {"images": 1}
    assert result.ledger.records.dropped == {"picture in more than 2 documents": 3}


def test_the_terminal_says_which_picture_is_missing_and_where_to_name_its_folder(tmp_path):
    request = parse_request([str(talk(tmp_path, ["good.jpg", "gone.jpg"])), f"pictures={tmp_path}/pics"])
    lines = list(summary_lines(prepare(request, tmp_path / "out"), tmp_path / "out"))
    assert f"{1:>10} pictures  picture that is missing; first: element 1, gone.jpg" in lines
    assert f"{'':10} pictures=FOLDER names the folder of the pictures, if they are elsewhere" in lines


def test_a_picture_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        prepare(parse_request([str(talk(tmp_path, ["good.jpg"])), f"pictures={tmp_path}/nowhere"]), tmp_path / "out")


def chat_of(folder: Path, *turns: tuple[str, str]) -> Document:
    entry = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    (folder / "talk.json").write_text(json.dumps([entry]))
    ((document,), _) = reading.read(folder / "talk.json", "llava")
    return document


def test_turns_of_one_role_are_joined_by_a_line(tmp_path):
    turns = ("system", "Be brief."), ("human", "Hello."), ("human", "Who?"), ("gpt", "I."), ("gpt", "And you?")
    document = chat_of(tmp_path, *turns)
    assert document.text == "Be brief.\nHello.\nWho?I.\nAnd you?"
    trained = [piece.train for piece in document.pieces if isinstance(piece, Text)]
    assert trained == [False, False, False, True, True]


def test_system_turns_stay_system_turns(tmp_path):
    turns = ("system", "Be brief."), ("system", "Be kind."), ("human", "Hello."), ("gpt", "Hi.")
    assert chat_of(tmp_path, *turns).metadata["system_pieces"] == "2"
    assert "system_pieces" not in chat_of(tmp_path, *turns[2:]).metadata
    prepare(parse_request([str(tmp_path / "talk.json")]), tmp_path / "out")
    (stored,) = Store(tmp_path / "out" / "text.lance").scan()
    assert stored.text == "Hello.Hi."
