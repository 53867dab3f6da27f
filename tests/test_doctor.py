"""`mm1 doctor` says what a machine has, what a run uses and what is missing, on machines of every kind."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from mm1 import dist, doctor
from mm1.__main__ import app
from mm1.config.run import RunConfig
from mm1.data.loader import default_workers
from mm1.doctor import Gpu, Machine, lines, missing, settings
from mm1.model import attention

H100 = Gpu("NVIDIA H100 80GB HBM3", 85 * 10**9, (9, 0))
A100 = Gpu("NVIDIA A100-SXM4-40GB", 42 * 10**9, (8, 0))
LAPTOP = Machine(cores=4, memory=2**34, disk=2**36, versions={"torch": "2.13.0"}, compiler="g++", browser="chromium")
NODE = replace(
    LAPTOP, gpus=(H100,) * 8, has_driver=True, versions={"torch": "2.13.0", "CUDA": "13.0", "triton": "3.7.0"}
)


def test_a_machine_that_lacks_nothing_says_so():
    for machine in (LAPTOP, NODE):
        assert missing(machine) == []
        assert lines(machine)[-1].split() == ["missing", "nothing"]


def test_gpus_of_a_kind_are_one_line():
    assert "8 x NVIDIA H100 80GB HBM3, 79 GiB, compute capability 9.0" in doctor.resources(NODE)["GPU"]
    mixed = doctor.resources(replace(NODE, gpus=(H100, A100)))["GPU"]
    assert mixed.count("1 x ") == 2


def test_fp8_needs_every_gpu_to_have_it():
    assert settings(NODE)["fp8"] == "possible"
    for gpus in ((), (A100,), (H100, A100)):
        assert settings(replace(NODE, gpus=gpus))["fp8"].startswith("no: ")


@pytest.mark.parametrize(("machine", "device"), [(LAPTOP, "cpu"), (NODE, "cuda")], ids=["laptop", "node"])
def test_the_settings_are_those_of_a_run(machine: Machine, device: str):
    said = settings(machine)
    assert said["device"].split(",")[0] == device
    precision = dist.resolve_precision(RunConfig().precision, torch.device(device))
    assert said["precision"] == {torch.bfloat16: "bf16", torch.float32: "fp32"}[precision]
    assert said["loader"].split()[0] == str(default_workers(machine.cores, max(1, len(machine.gpus))))


def test_the_attention_on_a_cpu_is_the_one_it_says():
    mask = attention.document_mask(torch.tensor([[1, 1, 2, 2]]))
    assert isinstance(mask, attention.Groups)
    assert "blocks of queries" in settings(LAPTOP)["attention"]


@pytest.mark.parametrize(
    ("machine", "lack", "command"),
    [
        (replace(LAPTOP, has_driver=True), "this is a CPU build", "pip install --force-reinstall torch"),
        (replace(NODE, gpus=()), "a GPU that torch can use", "nvidia-smi"),
        (replace(NODE, missing_compiler="the package triton"), "the package triton", "pip install triton"),
        (replace(NODE, compiler=None), "a C compiler", "apt-get install gcc"),
        (replace(LAPTOP, missing_compiler="a C++ compiler"), "a C++ compiler", "apt-get install g++"),
        (replace(LAPTOP, browser=None), "chromium, for make images", "apt-get install chromium"),
        (replace(LAPTOP, missing_packages={"ray": ["ray"]}), "ray, for --runner ray", "pip install 'mm1[ray]'"),
        (replace(LAPTOP, missing_packages={"new": ["a", "b"]}), "a, b", "pip install 'mm1[new]'"),
    ],
)
def test_what_is_missing_comes_with_its_command(machine: Machine, lack: str, command: str):
    (said,) = missing(machine)
    assert lack in said
    assert command in said.split(": ")[-1]


def test_a_gpu_without_triton_is_not_said_to_compile():
    assert "triton is missing" in settings(replace(NODE, missing_compiler="the package triton"))["compile"]
    assert "is missing" not in settings(NODE)["compile"]


def test_purposes_are_those_of_extras_that_exist():
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert doctor.PURPOSES.keys() <= project["optional-dependencies"].keys()


def test_missing_packages_are_those_of_the_extras(monkeypatch):
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: LINES)
    monkeypatch.setattr(doctor, "_is_installed", lambda name: name in ("mm1", "numpy", "lxml"))
    assert doctor._missing_packages() == {"prepare": ["daft"], "lm-eval": ["lm-eval"]}


LINES = [
    "numpy>=2",
    'daft>=0.7; extra == "prepare"',
    'lxml>=6; extra == "prepare"',
    'lm-eval>=0.4.13; extra == "lm-eval"',
    'pytest>=8; extra == "dev"',
]


def test_the_command_answers_for_this_machine():
    said = CliRunner().invoke(app, ["doctor"])
    assert said.exit_code == 0, said.output
    assert f"torch {torch.__version__}" in said.output
    answer = CliRunner().invoke(app, ["doctor", "--json"])
    assert answer.exit_code == 0, answer.output
    facts = json.loads(answer.stdout)
    assert facts["machine"]["disk"] == pytest.approx(shutil.disk_usage(".").free, rel=0.2)
    assert facts["settings"]["device"].startswith("cuda" if torch.cuda.is_available() else "cpu")
