"""What a user's mistake costs: one clear line that names the nearest right thing, exit code 2, no traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

from mm1.__main__ import main
from mm1.config import run as config
from mm1.config.base import ConfigError
from mm1.config.run import RunConfig

VERBS = (
    "demo",
    "train",
    "eval",
    "chat",
    "serve",
    "show",
    "report",
    "prepare",
    "tokenize",
    "export",
    "import",
    "doctor",
    "law",
)


def mm1(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "mm1", *words], capture_output=True, text=True, cwd=cwd, check=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "tinny"), "no recipe 'tinny'; did you mean 'tiny'?"),
        (("train", "tiny", "stepz=3"), "no field 'stepz' in a run; did you mean 'steps'?"),
        (("train", "tiny", "optim.learningrate=1"), "did you mean 'optim.learning_rate'?"),
        (("train", "tiny", "data.sources.captions.shar=2"), "did you mean 'data.sources.captions.share'?"),
        (("train", "tiny", 'data.curriculum=[{"stepp":3}]'), "did you mean 'data.curriculum.0.step'?"),
        (("train", "tiny", "model.vision.heads=0"), "model.vision.heads: Input should be greater than 0"),
        (("train", "tiny", "model.decoder.width=-3"), "model.decoder.width: Input should be greater than 0"),
        (("train", "tiny", "seed=-1"), "seed: Input should be greater than or equal to 0"),
        (("train", "tiny", "steps=many"), "steps: Input should be a valid integer"),
        (("train", "tiny", "batch_size=9"), "is not a multiple of micro_batch_size"),
        (("train", "tiny", "model.connector.tokens=15"), "must be a square number"),
        (("train", "tiny", "data.image_tokens=64", "--to", "x"), "it is now 'model.connector.tokens'"),
        (("train", "tiny", "data.sources.captions.store=nowhere", "--to", "x"), "no document store at nowhere"),
        (("train", "missing.json"), "missing.json"),
        (("eval", "nothing"), "no run at nothing"),
        (("eval", "x", "--by", "likelihood"), "there is no option --by; it is now --scoring"),
        (("eval", "x", "--full-shots=2"), "there is no option --full-shots; it is now --subimage-shots"),
        (("eval", "x", "--text-shots", "2"), "there is no option --text-shots; it is now --text-only-shots"),
        (("report", "nothing"), "nothing"),
        (("chat", "nothing", "hello"), "no run at nothing"),
        (("report", "run/tinny"), "did you mean 'run/tiny'?"),
        (("show", "sample:caption-train"), "did you mean 'captions-train'?"),
        (("show", "sample:captions-trian"), "captions-train"),
        (("tokenize", "sample:caption-test"), "did you mean 'captions-test'?"),
        (("tokenize", "sample:captions-test", "--tokenizer", "nothing"), "no tokenizer at nothing"),
        (("export", "nothing", "--to", "x"), "no run at nothing"),
        (("export", "run/tiny", "--to", "x", "--shard-size", "5"), "a size is written as 5GB or 200MB; found '5'"),
        (("import", "run/tiny", "--to", "x"), "run/tiny has no config.json"),
        (("prepare", "samples"), "there is no samples; expected a file or a folder"),
        (("prepare", "sample.txt", "--kind", "tar"), "kind: Input should be 'tars'"),
        (
            ("prepare", "x", "max_sidee=3", "--kind", "tars"),
            "no field 'max_sidee' in a preparation; did you mean 'max_side'?",
        ),
        (("tran",), "Did you mean"),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_right_name(words, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "run" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mm1", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_mistake_ends_the_command_without_a_traceback(tmp_path):
    result = mm1("train", "tinny", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == "error: no recipe 'tinny'; did you mean 'tiny'?\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb):
    result = mm1(verb, "--help")
    assert result.returncode == 0
    assert f"mm1 {verb}" in result.stdout
    assert "Example" in result.stdout


def test_overrides_reach_every_depth_and_keep_the_rest():
    run = config.override(RunConfig(), ["steps=3", "model.vision.width=64", "data.sources.web.store=w.lance"])
    assert run.steps == 3
    assert run.model.vision.width == 64
    assert run.data.sources["web"].store == "w.lance"
    assert set(config.differences(RunConfig(), run)) >= {"steps", "model.vision.width"}


def test_a_saved_run_is_the_run_that_was_saved(tmp_path):
    run = config.override(RunConfig(), ["seed=9", "start_from.vision=a/b"])
    config.save(run, tmp_path / "config.json")
    assert config.load(tmp_path / "config.json") == run


def test_an_override_that_hits_a_group_lists_its_fields():
    with pytest.raises(ConfigError, match=r"model\.vision, model\.tiling, model\.connector, model\.decoder"):
        config.override(RunConfig(), ["model=3"])
