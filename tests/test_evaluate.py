"""`mm1 eval` from the command line, on a run of a hundred thousand parameters."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import layouts
import layouts_tuned
import numpy as np
import pytest
import small
import torch

from mm1.__main__ import app
from mm1.checkpoint import load_for_use
from mm1.data.encode import encode
from mm1.data.image import load
from mm1.document import Document, Text
from mm1.eval.fewshot import prompt
from mm1.eval.harness import load_task
from mm1.eval.model import Request
from mm1.eval.models import Ours, model_name, open_model
from mm1.eval.results import read_answers, read_results
from mm1.tiling import TileSpec
from mm1.train.run import train_run


@pytest.fixture(scope="module")
def run(stores: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = small.run(stores)
    settings.steps = 2
    return train_run(settings, tmp_path_factory.mktemp("runs") / "small")


def mm1(*words: object) -> None:
    app([str(word) for word in words], standalone_mode=False)


def test_one_call_scores_keeps_and_shows(run: Path, tmp_path: Path, capsys):
    for name in ("vqav2", "mmbench"):
        layouts.HUB[name](tmp_path / "data" / name)
    words = ("eval", run, "--tasks", "vqav2,mmbench", "--data", tmp_path / "data", "--shots", "0,2", "--limit", "4")
    mm1(*words, "--trials", "2", "--same-shots", "--to", tmp_path / "a")
    printed = capsys.readouterr().out
    assert "mmbench" in printed
    folder = tmp_path / "a" / "eval"
    scores = read_results(folder).scores
    assert [(score.task, score.shots, score.trials, score.protocol) for score in scores] == [
        *(("mmbench", 0, 1, "same"), ("mmbench", 2, 2, "same"), ("vqav2", 0, 1, "same"), ("vqav2", 2, 2, "same"))
    ]
    assert all(score.blind is not None and score.chance >= 0 for score in scores)
    assert (folder / "answers.html").read_text().count("<article") == 8
    files = {path: path.stat().st_mtime_ns for path in folder.glob("*.jsonl")}
    assert len(files) == 6
    mm1(*words, "--trials", "2", "--same-shots", "--to", tmp_path / "a")
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.jsonl")} == files
    mm1(*words, "--same-shots", "--seed", "0", "--to", tmp_path / "b")
    capsys.readouterr()
    mm1("eval", "--compare", tmp_path / "a", tmp_path / "b")
    assert "vqav2-2shot-same" in capsys.readouterr().out


@pytest.mark.long
def test_workers_of_ray_give_what_one_process_gives(run: Path, tmp_path: Path, capfd):
    pytest.importorskip("ray")
    layouts.vqav2(tmp_path / "data")
    words = ("eval", run, "--tasks", "vqav2", "--data", tmp_path / "data", "--shots", "0,2", "--limit", "4")
    words = (*words, "--trials", "2", "--to")
    mm1(*words, tmp_path / "alone")
    # in a process of its own: Ray leaves threads behind
    command = [sys.executable, "-m", "mm1", *map(str, words), "spread", "--runner", "ray", "--workers", "2"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    folders = [tmp_path / name / "eval" for name in ("alone", "spread")]
    assert read_results(folders[0]) == read_results(folders[1])
    files = sorted(path.name for path in folders[0].glob("*.jsonl"))
    assert len(files) == 3
    assert [(folders[0] / name).read_text() for name in files] == [(folders[1] / name).read_text() for name in files]


@pytest.mark.parametrize(
    "options", [("--similar-shots",), ("--subimage-shots", "1"), ("--scoring", "loglikelihood"), ("--beams", "3")]
)
def test_every_protocol_runs_on_a_run(run: Path, tmp_path: Path, options: tuple[str, ...]):
    layouts_tuned.scienceqa(tmp_path / "data")
    mm1("eval", run, "--tasks", "scienceqa", "--data", tmp_path / "data", "--shots", "1", "--limit", "3", *options,
        "--to", tmp_path)  # fmt: skip
    (score,) = read_results(tmp_path / "eval").scores
    assert score.protocol
    assert len(read_answers(tmp_path / "eval", score)) == 3


def test_chain_of_thought_runs_on_a_run(run: Path, tmp_path: Path):
    layouts_tuned.scienceqa(tmp_path / "data")
    mm1("eval", run, "--tasks", "scienceqa", "--data", tmp_path / "data", "--shots", "1", "--limit", "2", "--reasoning",
        "--to", tmp_path)  # fmt: skip
    (score,) = read_results(tmp_path / "eval").scores
    assert "The answer is B." in read_answers(tmp_path / "eval", score)[0].prompt.text


def test_scores_of_other_weights_are_not_taken_for_current_ones(run: Path, stores: dict[str, Path], tmp_path: Path):
    """A folder trained anew to the same step has the same step and tokenizer, but other weights."""
    first = load_for_use(run)
    settings = small.run(stores)
    settings.steps, settings.seed = 2, 1
    again = tmp_path / "again"
    train_run(settings, again)
    second = load_for_use(again)
    assert first.step == second.step
    assert first.tokenizer.fingerprint == second.tokenizer.fingerprint
    assert model_name(first) != model_name(second)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    assert model_name(load_for_use(copy)) == model_name(first)


def test_likelihoods_of_choices_are_those_of_a_plain_pass(run: Path, tmp_path: Path):
    layouts_tuned.scienceqa(tmp_path)
    ours = open_model(str(run))
    assert isinstance(ours, Ours)
    task = load_task("scienceqa", limit=2, seed=0, data=str(tmp_path), form="plain")
    requests = [Request(prompt(task, query, shots=[]), choices=query.choices) for query in task.queries]
    for request, nats in zip(requests, ours.loglikelihoods(requests), strict=True):
        document = request.prompt
        before = encode(document, ours.tokenizer, tile=TileSpec(24, 4), end=False)
        size = ours.model.config.vision.image_size
        pixels_NCYX = torch.stack([torch.from_numpy(load(image.data, size)) for image in document.images])
        with torch.no_grad():
            features_NSD = ours.model.encode_images(pixels_NCYX)
        for choice, value in zip(request.choices, nats, strict=True):
            after = ours.tokenizer.encode(f" {choice}")
            tokens_BT = torch.tensor([[*before.tokens.tolist(), *after]])
            with torch.no_grad():
                x_BTD = ours.model.embed(tokens_BT, features_NSD)
                hidden_BTD = ours.model.decoder(x_BTD, torch.arange(tokens_BT.shape[1])[None])
                likely = ours.model.decoder.logits(hidden_BTD)[0].log_softmax(-1)
            start = len(before.tokens)
            selected = likely[start - 1 : -1].gather(1, tokens_BT[0, start:, None])
            assert value == pytest.approx(float(selected.mean()), abs=1e-5)
    assert ours.features([query.image for query in task.queries]).shape[0] == 2
    assert ours.prompt_tokens(Document((Text("a"),))) >= 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name a run's folder, hf:FOLDER or http"),
        (("x", "--same-shots", "--similar-shots"), "two ways to draw; give one"),
        (("x", "--text-only-shots", "2"), "give it with --shots 0"),
        (("x", "--scoring", "loglikelihood", "--beams", "3"), "--beams is for generated answers"),
        (("x", "--workers", "2"), "--workers and --address are for --runner ray"),
        (("x", "--form", "poem"), "--form is plain or chat; found 'poem'"),
        (("x", "--scoring", "luck"), "--scoring is generate or loglikelihood; found 'luck'"),
        (("x", "--tasks", "vqav2", "--data", "nowhere"), "no folder nowhere; --data takes the folder of vqav2"),
        (("--compare", "x", "y"), "x has no scores; run mm1 eval x first"),
    ],
)
def test_a_mistake_of_a_call_is_named(words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        mm1("eval", *words)


def test_answers_are_lines_that_others_can_read(run: Path, tmp_path: Path):
    layouts.vqav2(tmp_path / "data")
    mm1("eval", run, "--tasks", "vqav2", "--data", tmp_path / "data", "--shots", "1", "--limit", "3", "--to", tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "eval" / "vqav2-1shot.jsonl").read_text().splitlines()]
    keys = {"query", "prompt", "request", "shots", "answer", "references", "score", "blind_answer", "blind_score"}
    assert all(keys <= line.keys() for line in lines)
    assert np.isfinite([line["score"] for line in lines]).all()
