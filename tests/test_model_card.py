"""What an import says of a model, and the card of an export, as the hub reads it."""

import json
from pathlib import Path

import pytest
import small
from huggingface_hub import ModelCard
from test_published_folders import llama, published
from typer.testing import CliRunner

from mm1.__main__ import app
from mm1.exchange.export import export_run
from mm1.exchange.importing import import_model
from mm1.train.run import train_run


@pytest.fixture(scope="module")
def trained(stores, tmp_path_factory) -> Path:
    run = small.run(stores)
    run.steps = run.checkpoint_every = 1
    folder = train_run(run, tmp_path_factory.mktemp("runs") / "small")
    interval = {"mean": 41.25, "low": 38.0, "high": 44.0}
    cell = {"task": "captions", "shots": 4, "queries": 400, "score": interval, "blind": interval | {"mean": 10.5}}
    (folder / "eval").mkdir()
    (folder / "eval/summary.json").write_text(json.dumps({"cells": [cell]}))
    return folder


def test_the_hub_reads_the_card_of_an_export(trained, stores, tmp_path):
    export_run(trained, tmp_path / "out", license_id="apache-2.0")
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "image-text-to-text"
    assert card.data.library_name == "transformers"
    assert "| captions | captions.lance | 3 |" in card.text
    assert "| captions | 4 | 400 | 41.2 [38.0, 44.0] | 10.5 |" in card.text
    assert "image encoder: ViT of 1 layers" in card.text
    assert str(Path(stores["captions"]).parent) not in card.content  # no path of this machine


def test_an_export_of_an_import_keeps_its_card(trained, tmp_path):
    export_run(trained, tmp_path / "out")
    import_model(str(tmp_path / "out"), tmp_path / "back")
    export_run(tmp_path / "back", tmp_path / "again")
    assert (tmp_path / "again/README.md").read_bytes() == (tmp_path / "out/README.md").read_bytes()


def test_an_import_says_what_it_is_and_the_run_says_it_later(tmp_path):
    source = published(tmp_path / "tiny-llama", llama(max_position_embeddings=2048))
    said = CliRunner().invoke(app, ["import", str(source), "--to", str(tmp_path / "run")], catch_exceptions=False)
    later = CliRunner().invoke(app, ["show", str(tmp_path / "run"), "--model"], catch_exceptions=False)
    assert said.output.endswith(later.output)
    for part in (
        "from:          tiny-llama",
        "2 layers, width 32, 4 heads (2 of keys)",
        "context:       2,048 positions",
    ):
        assert part in later.output
    assert "chat form:     none" in later.output
