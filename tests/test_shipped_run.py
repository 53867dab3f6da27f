"""Runs that ship with the package: `sample:NAME`, made of a finished run in half precision."""

from pathlib import Path

import conftest
import pytest
import torch
from test_copied_run import chats, settings
from typer.testing import CliRunner

from mm1.__main__ import app
from mm1.checkpoint import Weights, load_for_use
from mm1.config import sample
from mm1.config.base import ConfigError
from mm1.data.store import open_store
from mm1.eval.models import open_model
from mm1.train.run import train_run
from sample_build.chats import QUESTIONS
from sample_build.chats import chats as questions
from sample_build.ship import ship


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run, which also ships as `sample:small`."""
    run = train_run(settings(tmp_path, chats(40)), tmp_path / "run")
    monkeypatch.setattr(sample, "SAMPLE", tmp_path / "sample")
    ship(run, tmp_path / "sample" / "small")
    return run


def test_a_shipped_run_has_the_weights_of_its_run_in_half_precision(run: Path):
    folder = sample.run_folder("sample:small")
    ours, theirs = Weights(folder), Weights(run)
    assert ours.shapes.keys() == theirs.shapes.keys()
    for name in theirs.shapes:
        assert torch.equal(ours.read(name), theirs.read(name).to(torch.float16)), name
    loaded, original = load_for_use(folder), load_for_use(run)
    assert (loaded.step, loaded.chats, loaded.run.model) == (original.step, original.chats, original.run.model)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert open_model("sample:small").name.startswith(f"step {original.step}, ")
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    stored = sum(file.stat().st_size for file in (folder / "checkpoints").rglob("*") if file.is_file())
    assert stored < 2 * parameters + 300_000


def test_a_shipped_run_chats_by_its_name(run: Path, tmp_path: Path):
    (tmp_path / "picture.png").write_bytes(conftest.picture(0, 0)[0])
    command = ["chat", "sample:small", "What is it?", "--image", str(tmp_path / "picture.png"), "--tokens", "4"]
    assert CliRunner().invoke(app, command).exit_code == 0
    wrong = CliRunner().invoke(app, ["chat", "sample:smal", "What is it?"])
    assert wrong.exit_code == 2
    assert "the sample has no run 'smal'; did you mean 'small'?" in " ".join(wrong.output.replace("│", "").split())
    with pytest.raises(ConfigError, match="the sample has no run 'tiny'; known: small"):
        sample.run_folder("sample:tiny")
    assert sample.run_folder("runs/small") == Path("runs/small")


def test_questions_about_a_picture_are_in_the_language_of_its_label():
    captions, pages = open_store("sample:captions-test"), open_store("sample:languages-test")
    documents = list(questions(captions, pages))
    assert len(documents) == len(captions) + sum(len(page.images) for page in pages.scan(with_images=False))
    languages = [chat.id.split("/")[1] if chat.id.startswith("languages-test/") else "en" for chat in documents]
    assert {*languages} == {*QUESTIONS}
    for chat, language in zip(documents, languages, strict=True):
        image, question, answer = chat.pieces
        assert question.text in QUESTIONS[language]
        assert (question.train, answer.train, chat.metadata["form"]) == (False, True, "chat")
        assert image.data
        assert answer.text == answer.text.strip()
