"""The launch files work: scripts and the Ray program train a small run; the Kubernetes file's command is parsed."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
import yaml
from small import run as small_run
from torch.distributed.run import get_args_parser

from mm1 import checkpoint
from mm1.__main__ import app
from mm1.config import run as config
from mm1.recipes.index import recipe

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "docs/launch"

SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo localhost; echo other; else echo "$@" > requeued; fi
"""
SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" > srun.txt
while [ "$1" != torchrun ]; do shift; done
exec "$@"
"""
TORCHRUN = f"""#!/usr/bin/env bash
exec {shlex.quote(sys.executable)} -m torch.distributed.run "$@"
"""


def programs(folder: Path, **scripts: str) -> dict[str, str]:
    """An environment whose PATH begins with these programs, written to `folder`."""
    for name, text in ({"torchrun": TORCHRUN} | scripts).items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("name", ["node.sh", "slurm.sh"])
def test_scripts_are_bash(name: str):
    answer = subprocess.run(["bash", "-n", LAUNCH / name], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


def test_slurm_gives_torchrun_the_nodes_of_the_job_and_requeues_a_run_that_sigterm_ended(tmp_path: Path):
    terminated = "#!/usr/bin/env bash\nexit 143\n"
    environment = programs(tmp_path, scontrol=SCONTROL, srun=SRUN, torchrun=terminated)
    environment |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "x[1-2]", "SLURM_NNODES": "2", "GPUS": "4"}
    answer = start(["bash", str(LAUNCH / "slurm.sh"), "mm1_3b", "--to", "runs/3b"], tmp_path, environment)
    assert answer.returncode == 143
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    words = (tmp_path / "srun.txt").read_text().split("\n")
    options = get_args_parser().parse_args(words[words.index("torchrun") + 1 : -1])
    assert (options.nnodes, options.nproc_per_node, options.rdzv_endpoint) == ("2", "4", "localhost:29500")
    assert (options.training_script, options.training_script_args) == ("mm1", ["train", "mm1_3b", "--to", "runs/3b"])


def test_the_command_of_the_kubernetes_file_exists():
    _, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]["containers"][0]
    nodes = {entry["name"]: entry["value"] for entry in pod["env"]}["NODES"]
    words = [word.replace("$(NODES)", nodes) for word in pod["args"]]
    options = get_args_parser().parse_args(words)
    ranks = int(options.nnodes) * int(options.nproc_per_node)
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(options.nnodes)
    assert int(options.nproc_per_node) == pod["resources"]["limits"]["nvidia.com/gpu"]
    assert options.training_script == "mm1"
    verb, *rest = options.training_script_args
    parameters = typer.main.get_command(app).commands[verb].make_context(verb, rest).params
    run = config.override(recipe(parameters["recipe"]), parameters["assignments"])
    layout = run.parallel
    assert layout.dp_replicate * (layout.dp_shard or ranks) * layout.tp == ranks


@pytest.mark.long
@pytest.mark.parametrize("name", ["node.sh", "slurm.sh"])
def test_scripts_train_on_two_processes(name: str, stores: dict[str, Path], tmp_path: Path):
    small = small_run(stores)
    small.steps = 2
    config.save(small, tmp_path / "small.json")
    environment = programs(tmp_path, scontrol=SCONTROL, srun=SRUN) | {"GPUS": "2"}
    environment |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "1"}
    words = ["small.json", "parallel.dp_shard=2", "--to", "out"]
    answer = start(["bash", str(LAUNCH / name), *words], tmp_path, environment)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("trained: ") == 1  # rank 0 speaks for all
    newest = checkpoint.latest(tmp_path / "out")
    assert newest is not None
    assert newest.step == 2
    assert len([*Path(newest.path).glob("*.distcp")]) == 2  # a shard of each
    assert torch.isfinite(next(checkpoint.load_for_use(tmp_path / "out").model.parameters())).all()


@pytest.mark.nightly
def test_ray_trains_on_two_workers(tmp_path: Path):
    pytest.importorskip("ray.train")
    words = [
        "batch_size=2",
        "micro_batch_size=1",
        "steps=1",
        "validation_sequences=1",
        "start_from={}",
        "data.workers=0",
    ]
    command = [sys.executable, str(LAUNCH / "ray_train.py"), "--workers", "2", "--cpu", "--to", "out", "tiny", *words]
    answer = start(command, tmp_path, programs(tmp_path) | {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"})
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "out/checkpoints/step-1").is_dir()
