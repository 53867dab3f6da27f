"""What this machine has, what a run will use of it, and what is missing with the command that installs it."""

import importlib.metadata
import json
import os
import re
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from mm1 import dist
from mm1.data.loader import default_workers
from mm1.train.compilation import missing_compiler
from mm1.train.float8 import FP8_SINCE

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

PURPOSES = {
    "prepare": "mm1 prepare",
    "ray": "--runner ray",
    "tensorboard": "tensorboard=true",
    "wandb": "wandb=PROJECT",
    "fp8": "fp8=true",
    "gguf": "mm1 import FILE.gguf",
    "hf": "mm1 eval hf:FOLDER",
    "lm-eval": "mm1 eval --tasks text",
}
"""What needs the packages of an extra of pyproject.toml. Extras for developers are not reported."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that torch can use."""

    name: str
    bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Machine:
    """The facts about a machine that a run depends on."""

    cores: int
    memory: int  # bytes that this process may take, those of its container if it is in one
    disk: int  # free bytes of the present folder
    versions: dict[str, str]  # torch, the CUDA that it is built for, triton
    gpus: tuple[Gpu, ...] = ()
    has_driver: bool = False  # NVIDIA's, whether torch can use it or not
    compiler: str | None = None  # the path of one that is there
    missing_compiler: str | None = None  # what `train.compilation` misses
    missing_packages: dict[str, list[str]] = field(default_factory=dict)  # by extra
    browser: str | None = None


def inspect() -> Machine:
    """The facts about this machine."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    properties = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    compilers = [shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "cc")]
    browsers = [shutil.which(name) for name in (os.environ.get("CHROMIUM", "chromium"), *BROWSERS)]
    return Machine(
        cores=dist.cores(),
        memory=_memory(),
        disk=shutil.disk_usage(".").free,
        versions=_versions(),
        gpus=tuple(Gpu(each.name, each.total_memory, (each.major, each.minor)) for each in properties),
        has_driver=Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None,
        compiler=next(filter(None, compilers), None),
        missing_compiler=missing_compiler(device),
        missing_packages=_missing_packages(),
        browser=next(filter(None, browsers), None),
    )


def _memory() -> int:
    """Bytes of main memory, or the limit of the container (cgroup v2) if that is lower."""
    whole = dist.machine_memory()
    limit = Path("/sys/fs/cgroup/memory.max")
    words = limit.read_text().strip() if limit.is_file() else "max"
    return min(whole, int(words)) if words.isdecimal() else whole


def _versions() -> dict[str, str]:
    versions = {"torch": str(torch.__version__)}
    if torch.version.cuda:
        versions["CUDA"] = torch.version.cuda
    if _is_installed("triton"):
        versions["triton"] = importlib.metadata.version("triton")
    return versions


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _missing_packages() -> dict[str, list[str]]:
    """The packages of each extra that are not installed; nothing if mm1 runs from its sources without an install."""
    missing: dict[str, list[str]] = {}
    if _is_installed("mm1"):
        for line in importlib.metadata.requires("mm1") or ():
            match = re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", line)
            if match and match[2] not in ("dev", "bench") and not _is_installed(match[1]):
                missing.setdefault(match[2], []).append(match[1])
    return missing


def resources(machine: Machine) -> dict[str, str]:
    """What the machine has, as text, by what it is."""
    counts = Counter(machine.gpus)
    return {
        "processor": f"{_count(machine.cores, 'core', 'cores')}, {_gib(machine.memory)} of memory",
        "disk": f"{_gib(machine.disk)} free here",
        "GPU": "; ".join(
            f"{count} x {gpu.name}, {_gib(gpu.bytes)}, compute capability {gpu.capability[0]}.{gpu.capability[1]}"
            for gpu, count in counts.items()
        )
        or "none",
        "versions": ", ".join(f"{name} {version}" for name, version in machine.versions.items()),
        "compiler": machine.compiler or "none",
    }


def settings(machine: Machine) -> dict[str, str]:
    """What a run with default settings uses, as text, by the setting."""
    on_gpu = bool(machine.gpus)
    workers = default_workers(machine.cores, max(1, len(machine.gpus)))
    compiles = on_gpu and not machine.missing_compiler
    if compiles:
        compiling = "encoder, connector, and the embedding and blocks of the decoder"
    elif on_gpu:
        compiling = f"nothing: {machine.missing_compiler} is missing"
    else:
        compiling = "nothing: a CPU gains little (compile=always compiles" + (
            f", but {machine.missing_compiler} is missing)" if machine.missing_compiler else ")"
        )
    return {
        "device": f"cuda, {_count(len(machine.gpus), 'rank', 'ranks')} at most" if on_gpu else "cpu",
        "precision": "bf16" if on_gpu else "fp32",
        "compile": compiling,
        "attention": "FlexAttention" if on_gpu else "blocks of queries, within documents",
        "loader": f"{_count(workers, 'worker process', 'worker processes')} a rank",
        "fp8": "possible" if supports_fp8(machine) else "no: needs compute capability 8.9 or higher",
    }


def supports_fp8(machine: Machine) -> bool:
    """Whether every GPU multiplies fp8 matrices."""
    return bool(machine.gpus) and all(gpu.capability >= FP8_SINCE for gpu in machine.gpus)


def missing(machine: Machine) -> list[str]:
    """What the machine lacks, each with its purpose and with the command that installs it."""
    lacks = []
    if machine.has_driver and not machine.gpus:
        if "CUDA" in machine.versions:
            lacks.append("a GPU that torch can use: `nvidia-smi` says whether the driver is too old")
        else:
            lacks.append("a torch that uses the GPU; this is a CPU build: pip install --force-reinstall torch")
    if machine.missing_compiler:
        command = "pip install triton" if machine.gpus else "apt-get install g++"
        lacks.append(f"{machine.missing_compiler}, to compile: {command}")
    elif machine.gpus and not machine.compiler:
        lacks.append("a C compiler, for triton: apt-get install gcc")
    for extra, packages in machine.missing_packages.items():
        purpose = f", for {PURPOSES[extra]}" if extra in PURPOSES else ""
        lacks.append(f"{', '.join(packages)}{purpose}: pip install 'mm1[{extra}]'")
    if not machine.browser:
        lacks.append("chromium, for make images: apt-get install chromium")
    return lacks


def lines(machine: Machine) -> list[str]:
    """The whole answer: a line for each resource, each setting and each thing that is missing."""
    rows = [*resources(machine).items(), *settings(machine).items()]
    rows += [("missing", lack) for lack in missing(machine)] or [("missing", "nothing")]
    return [f"{name:<11}{value}" for name, value in rows]


def describe_machine(*, as_json: bool) -> str:
    """The whole answer for this machine: a line for each fact, or JSON for other programs."""
    machine = inspect()
    if as_json:
        facts = {"machine": asdict(machine), "settings": settings(machine), "missing": missing(machine)}
        return json.dumps(facts, indent=2)
    return "\n".join(lines(machine))


def _gib(count: int) -> str:
    return f"{count / 2**30:,.0f} GiB"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
