"""What is missing before a run can start: all of it at once, each with the command that makes it."""

import shutil
from pathlib import Path

import pytest
import small

from mm1.checkpoint import CheckpointError
from mm1.config import run as config
from mm1.config.base import ConfigError
from mm1.config.sample import SAMPLE
from mm1.data.store import StoreError
from mm1.recipes.index import recipe
from mm1.train.inputs import check_inputs
from mm1.train.run import train_run


def test_a_paper_recipe_without_its_inputs_lists_them_all_with_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as raised:
        train_run(recipe("mm1_3b"), tmp_path / "run")
    head, *lines = str(raised.value).splitlines()
    assert head == "6 inputs of mm1_3b are missing:"
    assert [line.strip() for line in lines] == [
        "no document store at captions.lance",
        "mm1 prepare YOUR_FILES --to captions, then data.sources.captions.store=captions/images.lance",
        "no document store at interleaved.lance",
        "mm1 prepare YOUR_FILES --to interleaved, then data.sources.interleaved.store=interleaved/images.lance",
        "no document store at text.lance",
        "mm1 prepare YOUR_FILES --to text, then data.sources.text.store=text/text.lance",
        "no tokenizer at tokenizer.json; expected a tokenizer.json or a folder with one",
        "mm1 import LANGUAGE_MODEL --to runs/model, then data.tokenizer=runs/model",
        "no run at runs/vit_h_14_378",
        "mm1 import apple/DFN5B-CLIP-ViT-H-14-378 --to runs/vit_h_14_378, or mm1 train vit_h_14_378 --to "
        "runs/vit_h_14_378; start_from={} starts from random weights",
        "no run at runs/language_3b",
        "mm1 import LANGUAGE_MODEL --to runs/language_3b, or mm1 train RECIPE --to runs/language_3b; "
        "start_from={} starts from random weights",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_fine_tuning_without_its_data_names_the_command_of_every_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as raised:
        train_run(recipe("mm1_3b_sft"), tmp_path / "run")
    head, *lines = [line.strip() for line in str(raised.value).splitlines()]
    assert head == "18 inputs of mm1_3b_sft are missing:"
    remedies = dict(zip(lines[::2], lines[1::2], strict=True))
    assert remedies["no document store at sft/llava_conv/images.lance"] == (
        "mm1 prepare conversation_58k.json pictures=coco/train2017 --to sft/llava_conv, from "
        "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K"
    )
    assert remedies["no document store at sft/gqa/images.lance"] == (
        "mm1 prepare task:gqa data=GQA --to sft/gqa, from https://cs.stanford.edu/people/dorarad/gqa"
    )
    assert remedies["no document store at sft/text_only/text.lance"] == (
        "mm1 prepare CHATS.json --to sft/text_only, from chats of your own: MM1's are internal, like ShareGPT's"
    )
    assert remedies["no run at runs/mm1_3b"].startswith("mm1 train mm1_3b --to runs/mm1_3b")
    assert sum("--to sft/" in remedy for remedy in remedies.values()) == 17


def test_starts_that_are_recipes_name_the_command_that_trains_them(tmp_path):
    with pytest.raises(ConfigError, match=rf"mm1 train tiny_language --to {tmp_path}/tiny_language"):
        check_inputs(
            config.override(
                recipe("tiny"),
                [f'start_from={{"decoder":"{tmp_path}/tiny_language","vision":"{tmp_path}/tiny_encoder"}}'],
            ),
            tmp_path / "run",
        )


def test_a_single_missing_input_keeps_its_own_error(stores, tmp_path):
    run = small.run(stores)
    run.data.validation = {"pages": str(tmp_path / "pages.lance")}
    with pytest.raises(StoreError, match=r"no document store at .*then data\.validation\.pages=pages/images\.lance"):
        check_inputs(run, tmp_path / "run")


def test_a_mistyped_store_is_answered_with_its_neighbour_alone(stores, tmp_path):
    (tmp_path / "chats" / "images.lance").mkdir(parents=True)
    run = small.run(stores)
    run.data.sources["text"].store = str(tmp_path / "chats" / "image.lance")
    with pytest.raises(StoreError, match=r"did you mean '.*/chats/images\.lance'\?$"):
        check_inputs(run, tmp_path / "run")


def test_a_broken_input_is_named_without_a_command(stores, tmp_path):
    run = small.run(stores)
    (tmp_path / "broken.lance").mkdir()
    (tmp_path / "broken.json").write_text("{")
    run.data.sources["text"].store = str(tmp_path / "broken.lance")
    run.data.tokenizer = str(tmp_path / "broken.json")
    with pytest.raises(ConfigError) as raised:
        check_inputs(run, tmp_path / "run")
    assert "broken.lance is not a readable document store" in str(raised.value)
    assert "broken.json is not a tokenizer.json" in str(raised.value)
    assert "mm1 " not in str(raised.value)


def test_a_run_that_was_started_needs_its_starts_no_more(stores, tmp_path):
    run = small.run(stores)
    run.steps = 2
    train_run(run, tmp_path / "first")
    later = config.override(run, [f"start_from.model={tmp_path / 'first'}"])
    train_run(later, tmp_path / "second")
    shutil.rmtree(tmp_path / "first")
    (tmp_path / "second/checkpoints/step-2/whole.json").stat()
    assert train_run(later, tmp_path / "second") == tmp_path / "second"
    with pytest.raises(Exception, match="no run at"):
        train_run(later, tmp_path / "third")


def test_whole_inputs_pass(stores, tmp_path):
    run = small.run(stores)
    run.data.tokenizer = str(SAMPLE)
    check_inputs(run, Path(tmp_path))


def test_a_start_that_is_no_run_is_not_proposed_again_and_a_wrong_field_is_shown_alone(stores, tmp_path):
    (tmp_path / "st").mkdir()
    run = config.override(small.run(stores), [f"start_from.model={tmp_path / 'st'}"])
    with pytest.raises(CheckpointError, match="st is there, but is no run; name the folder of a run") as refused:
        check_inputs(run, tmp_path / "run")
    assert "did you mean" not in str(refused.value)
    (tmp_path / "done/checkpoints/step-2").mkdir(parents=True)
    (tmp_path / "done/config.json").write_text("{}")
    part = config.override(small.run(stores), [f"start_from.model={tmp_path / 'done/checkpoints/step-2'}"])
    with pytest.raises(CheckpointError, match=r"part of a run; name the run: start_from\.model=.*/done$"):
        check_inputs(part, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"is no JSON: '\{chats: 1\}'; names are in double quotes"):
        config.override(small.run(stores), ["data.sources={chats: 1}"])
    with pytest.raises(ConfigError, match=r"try 16$"):
        config.override(run, ["model.vision.image_size=20"])
