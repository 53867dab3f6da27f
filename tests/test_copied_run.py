"""A run's folder holds all that using it needs: a copy chats, is evaluated and exported without the training data."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import conftest
import pytest
import small

from mm1.checkpoint import load_for_use
from mm1.config.base import ConfigError
from mm1.config.run import RunConfig, SourceConfig
from mm1.config.sample import SAMPLE
from mm1.data.store import write_store
from mm1.document import Document, Text
from mm1.eval.harness import Settings, evaluate, load_task
from mm1.eval.models import open_model
from mm1.exchange.export import export_run
from mm1.serve.chat import answer
from mm1.train.run import train_run


def chats(count: int) -> Iterator[Document]:
    for document in conftest.captions(count):
        image, label = document.pieces
        question = Text("What is it?", train=False)
        yield dataclasses.replace(document, pieces=(image, question, label), metadata={"form": "chat"})


def settings(folder: Path, documents: Iterator[Document]) -> RunConfig:
    """Two steps on `documents`; store and tokenizer stand in `folder`."""
    write_store(documents, folder / "train.lance")
    shutil.copy(SAMPLE / "tokenizer.json", folder / "words.json")
    run = small.run({"captions": folder / "train.lance", "text": folder / "train.lance"})
    run.data.sources = {"train": SourceConfig(store=str(folder / "train.lance"))}
    run.data.tokenizer = str(folder / "words.json")
    run.steps = 2
    return run


def use(run: Path, to: Path) -> dict[str, object]:
    """What comes out of a run: an answer in a chat, answers in an evaluation, the files of an export."""
    (to / "picture.png").write_bytes(conftest.picture(0, 0)[0])
    said = answer(load_for_use(run), "What is it?", images=[to / "picture.png"], tokens=8)
    model = open_model(str(run))
    tasks = [load_task(name, limit=2, seed=0) for name in ("captions", "easy_vqa")]  # plain, and a chat
    evaluate(model, tasks, settings=Settings(to / "eval"), shots=(0, 2))
    export_run(run, to / "export")
    paths = [path for name in ("eval", "export") for path in (to / name).rglob("*") if path.is_file()]
    files = {str(path.relative_to(to)): path.read_bytes() for path in paths}
    return {"answer": said, **{name: content for name, content in files.items() if name != "eval/summary.json"}}


@pytest.mark.parametrize("documents", [chats, conftest.captions])
def test_a_copied_run_is_used_without_its_stores_and_tokenizer(documents, tmp_path: Path):
    data, before, after = tmp_path / "data", tmp_path / "before", tmp_path / "after"
    for folder in (data, before, after):
        folder.mkdir()
    run = train_run(settings(data, documents(40)), tmp_path / "run")
    expected = use(run, before)
    assert ("export/chat_template.jinja" in expected) == (documents is chats)
    shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(run)
    shutil.rmtree(data)
    assert use(tmp_path / "copy", after) == expected


def test_a_run_goes_on_only_with_its_tokenizer(tmp_path: Path):
    run = settings(tmp_path, chats(40))
    train_run(run, tmp_path / "run")
    assert train_run(run, tmp_path / "run") == tmp_path / "run"
    words = json.loads((tmp_path / "words.json").read_text())
    (tmp_path / "words.json").write_text(json.dumps(words))
    with pytest.raises(ConfigError, match=r"was started with a tokenizer of fingerprint .*words\.json has fingerprint"):
        train_run(run, tmp_path / "run")


@pytest.mark.parametrize("name", ["tokenizer.json", "chat.json"])
def test_a_run_without_its_text_record_says_what_is_missing(name, tmp_path: Path):
    folder = train_run(settings(tmp_path, chats(40)), tmp_path / "run")
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=f"{folder} has no {name}"):
        load_for_use(folder)
