"""A run takes over what it starts from: shapes, tokenizer, and, of its own folder, the steps that are done."""

import json
from pathlib import Path

import pytest
import small
import torch
from test_published_text import letters
from typer.testing import CliRunner

from mm1 import checkpoint
from mm1.__main__ import app
from mm1.checkpoint import load_for_use
from mm1.config import run as config
from mm1.config.base import ConfigError
from mm1.data.tokenizer import Tokenizer
from mm1.exchange.importing import import_model
from mm1.recipes.index import recipe
from mm1.recipes.starts import with_starts
from mm1.train.run import train_run

transformers = pytest.importorskip("transformers")

LANGUAGE = {"hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 6}
VISION = {"hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 5}


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, Path]:
    """A published language model and a published encoder, imported: neither has the shapes of a recipe."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    settings = transformers.LlamaConfig(vocab_size=270, num_key_value_heads=3, **LANGUAGE)
    transformers.LlamaForCausalLM(settings).save_pretrained(folder / "llama")
    (folder / "llama/tokenizer.json").write_text(letters(["<s>", "</s>"]).to_str())
    shape = transformers.CLIPVisionConfig(image_size=32, patch_size=8, **VISION)
    transformers.CLIPVisionModel(shape).save_pretrained(folder / "clip")
    for name in ("llama", "clip"):
        import_model(str(folder / name), folder / f"runs/{name}")
    return {name: folder / f"runs/{name}" for name in ("llama", "clip")}


def test_a_recipe_takes_the_shapes_and_the_tokenizer_of_what_it_starts_from(parts, tmp_path):
    starts = [f"start_from.vision={parts['clip']}", f"start_from.decoder={parts['llama']}"]
    short = ["steps=1", "batch_size=1", "micro_batch_size=1", "data.validation={}", "data.workers=0"]
    arguments = ["train", "tiny", *starts, *short, "--to", str(tmp_path / "run")]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    loaded = load_for_use(tmp_path / "run")
    decoder, vision = loaded.run.model.decoder, loaded.run.model.vision
    assert (decoder.width, decoder.layers, decoder.heads, decoder.kv_heads) == (48, 3, 6, 3)
    assert (vision.width, vision.heads, vision.patch_size) == (40, 5, 8)
    assert vision.image_size == 96  # the recipe's: positions are resized
    assert loaded.tokenizer.fingerprint == Tokenizer(parts["llama"]).fingerprint


def test_a_recipe_sees_images_of_the_nearest_size_that_the_patches_of_its_start_fill(parts, tmp_path):
    start = config.load(parts["clip"] / "config.json")
    for patch_size, seen in ((8, 96), (14, 98), (18, 90), (200, 200)):
        shape = {"patch_size": patch_size, "image_size": 3 * patch_size}
        start.model.vision = start.model.vision.model_copy(update=shape)
        config.save(start, tmp_path / "config.json")
        assert with_starts(recipe("tiny"), [f"start_from.vision={tmp_path}"]).model.vision.image_size == seen


def test_fields_of_the_command_line_change_what_a_start_gives(parts):
    start = f"start_from.decoder={parts['llama']}"
    run = with_starts(recipe("tiny"), ["model.decoder.norm_epsilon=0.5", start, "data.tokenizer=sample"])
    assert (run.model.decoder.width, run.model.decoder.norm_epsilon) == (48, 0.5)
    assert run.data.tokenizer == "sample"
    assert with_starts(recipe("tiny"), ["start_from.decoder=missing"]).model == recipe("tiny").model


def test_a_file_that_starts_from_other_tokens_is_refused_by_name(parts, stores, tmp_path):
    run = small.run(stores)
    run.model.decoder = config.load(parts["llama"] / "config.json").model.decoder
    run.model.decoder.vocabulary = 4096
    run.start_from = {"decoder": str(parts["llama"])}
    with pytest.raises(ConfigError, match=r"learned another tokenizer.*set data\.tokenizer="):
        train_run(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_import_that_is_moved_trains_from_another_working_directory(parts, stores, tmp_path, monkeypatch):
    monkeypatch.chdir(parts["llama"].parent.parent)
    import_model("llama", Path("again"))
    Path("again").rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = config.load(Path("../moved/config.json"))
    run.data.sources = {"text": config.SourceConfig(store=str(stores["text"]))}
    run.steps = run.micro_batch_size = run.batch_size = 1
    run.data.workers = 0
    assert load_for_use(train_run(run, tmp_path / "trained")).step == 1


def _state(folder: Path) -> dict[str, torch.Tensor]:
    return load_for_use(folder).model.state_dict()


def test_a_finished_run_goes_on_to_more_steps_with_its_moments(stores, tmp_path, capsys):
    """With a constant rate it ends with the weights of a run that had the larger number of steps from the start."""
    run = small.run(stores)
    run.optim.schedule, run.optim.learning_rate = "constant", 1e-2
    whole = train_run(run, tmp_path / "whole")
    first = run.model_copy(update={"steps": 4})
    train_run(first, tmp_path / "run")
    capsys.readouterr()
    assert "already trained" in _printed(first, tmp_path / "run", capsys)
    with pytest.raises(ConfigError, match="holds this run with steps=4, not 8: --continue-to 8 goes on"):
        train_run(run, tmp_path / "run")
    train_run(run, tmp_path / "run", longer=True)
    assert "continues to step 8 instead of 4: the learning rate was 0.01 at step 4" in capsys.readouterr().out
    ours, theirs = _state(tmp_path / "run"), _state(whole)
    assert all(torch.equal(x, theirs[name]) for name, x in ours.items())
    with pytest.raises(ConfigError, match="with steps=8, not 4: it can't become shorter"):
        train_run(first, tmp_path / "run", longer=True)


def _printed(run, folder: Path, capsys) -> str:
    train_run(run, folder)
    return capsys.readouterr().out


def test_what_changes_nothing_that_was_done_may_change(stores, tmp_path):
    """How often a checkpoint is written, the guard, validation: a stopped run goes on with others."""
    run = small.run(stores)
    train_run(run.model_copy(update={"steps": 4}), tmp_path / "run")
    run.checkpoint_every, run.guard.skips, run.validate_every = 5, 7, 3
    run.data.validation = {"held": str(stores["captions"])}
    train_run(run, tmp_path / "run", longer=True)
    newest = checkpoint.newest(tmp_path / "run")
    assert newest.step == 8
    assert json.loads((tmp_path / "run/config.json").read_text())["checkpoint_every"] == 5
    run.optim.weight_decay = 0.5
    with pytest.raises(ConfigError, match=r"optim\.weight_decay: 0\.1 there, 0\.5 now"):
        train_run(run, tmp_path / "run")
