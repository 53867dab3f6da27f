"""Every benchmark starts as its page says, `python benchmarks/NAME.py`, from any folder and without PYTHONPATH."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
START = """
import importlib, sys
import mm1  # the only package that is installed
root, folder, *names = sys.argv[1:]
path = [folder, *(each for each in sys.path[1:] if each not in ("", root))]
for name in names:
    sys.path[:] = path
    importlib.import_module(name)
    for module in [each for each in sys.modules if each.partition(".")[0] in ("sample_build", "tests")]:
        del sys.modules[module]
"""


def test_every_benchmark_finds_what_it_imports(tmp_path: Path):
    names = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
    command = [sys.executable, "-c", START, str(ROOT), str(ROOT / "benchmarks"), *names]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(names) > 20
