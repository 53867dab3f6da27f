"""Files and folders that the user has no right to read cost themselves alone, and are named or counted."""

import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mm1.__main__ import app
from mm1.prepare.shard import InputError
from tests.conftest import picture

Close = Callable[[Path], None]


@pytest.fixture
def close(monkeypatch) -> Close:
    """Takes the right to read a file or a folder from everybody, root too, whom no mode of a file stops."""
    closed: set[str] = set()

    def refusing(function: Callable) -> Callable:
        def call(path, *more, **options):
            if isinstance(path, str | Path) and str(path) in closed:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return function(path, *more, **options)

        return call

    monkeypatch.setattr(io, "open", refusing(io.open))  # which `Path.open` calls
    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    return lambda path: closed.add(str(path))


def prepared(folder: Path, to: Path) -> tuple[int, str, dict]:
    """The status, what is said, and the card of a preparation."""
    ended = CliRunner().invoke(app, ["prepare", str(folder), "--to", str(to)])
    return ended.exit_code, ended.output, json.loads((to / "card.json").read_text())


@pytest.mark.parametrize("name", ["a.jsonl", "b.jsonl"])
@pytest.mark.parametrize("record", [{"text": "Some words."}, {"instruction": "Add 2 and 3.", "output": "It is 5."}])
def test_a_file_that_cannot_be_read_is_named_and_the_others_are_read(
    name: str, record: dict, tmp_path: Path, close: Close
):
    folder = tmp_path / "in"
    folder.mkdir()
    for file in ("a.jsonl", "b.jsonl"):
        (folder / file).write_text(json.dumps(record))
    close(folder / name)
    status, said, card = prepared(folder, tmp_path / "out")
    assert status == 3
    assert f"failed: {name}: {name} cannot be read: Permission denied" in " ".join(said.split())
    assert card["records"]["kept"] == 1


def test_a_folder_that_cannot_be_read_is_counted_and_the_others_are_read(tmp_path: Path, close: Close):
    folder = tmp_path / "in"
    for name in ("closed", "open"):
        (folder / name).mkdir(parents=True)
        (folder / name / "a.jsonl").write_text('{"text": "Some words."}\n')
    close(folder / "closed")
    status, _, card = prepared(folder, tmp_path / "out")
    assert status == 0
    assert card["skipped"] == card["unexpected"] == {"folder that cannot be read": 1}
    assert card["records"]["kept"] == 1


def test_an_input_of_nothing_but_a_folder_that_cannot_be_read_says_so(tmp_path: Path, close: Close):
    (tmp_path / "in" / "closed").mkdir(parents=True)
    close(tmp_path / "in" / "closed")
    ended = CliRunner().invoke(app, ["prepare", str(tmp_path / "in"), "--to", str(tmp_path / "out")])
    assert isinstance(ended.exception, InputError)
    assert "1 folders that cannot be read" in str(ended.exception)


def test_a_page_keeps_its_text_where_a_picture_cannot_be_read(tmp_path: Path, close: Close):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "0.jpg").write_bytes(picture(0, 1)[0])
    (folder / "1.jpg").write_bytes(picture(0, 2)[0])
    words = "These are some words of a page, which has more than ten of them."
    (folder / "0.html").write_text(f"<html><body><p>{words}</p><img src=0.jpg><p>{words}</p><img src=1.jpg>")
    close(folder / "1.jpg")
    _, _, card = prepared(folder, tmp_path / "out")
    assert card["records"] == {"read": 1, "kept": 1, "dropped": {}, "failed": 0}
    assert card["pictures"]["dropped"] == {"picture whose file cannot be read": 1}
    assert card["pictures"]["kept"] == 1
