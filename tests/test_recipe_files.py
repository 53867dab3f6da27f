"""A run from a user's own file: what is found, what is recorded, and what each mistake says."""

import re
import sys
import textwrap
from pathlib import Path

import pytest
import small

from mm1.__main__ import main
from mm1.ablate.plan import make_plan
from mm1.checkpoint import load_for_use
from mm1.config import run as config
from mm1.config.base import ConfigError
from mm1.config.run import RunConfig
from mm1.exchange.export import export_run
from mm1.recipes.ablations.index import ablation
from mm1.recipes.index import recipe
from mm1.recipes.tiny import tiny

ROOT = Path(__file__).parents[1]
HEAD = "from mm1.config.run import RunConfig\n"


def write(folder: Path, body: str, *, name: str = "mine.py") -> str:
    path = folder / name
    path.write_text(HEAD + textwrap.dedent(body))
    return str(path)


@pytest.mark.parametrize(
    "body",
    [
        "def mine(): return RunConfig(steps=3)",
        "def mine() -> RunConfig: return RunConfig(steps=3)\ndef other(): ...\ndef third() -> int: ...",
        "def mine() -> 'RunConfig': return RunConfig(steps=3)\ndef _hidden() -> RunConfig: ...",
        "from mm1.recipes.tiny import tiny\ndef mine(): return RunConfig(steps=3)",
    ],
)
def test_the_only_function_that_can_be_meant_needs_no_name(body, tmp_path):
    file = write(tmp_path, body)
    assert recipe(file) == recipe(f"{file}:mine") == RunConfig(steps=3, recipe="mine")


def test_a_file_may_import_files_beside_it_and_define_dataclasses(tmp_path):
    (tmp_path / "sizes_beside.py").write_text("STEPS = 7\n")
    body = """
    from __future__ import annotations
    from dataclasses import dataclass
    from sizes_beside import STEPS
    @dataclass
    class Choice:
        steps: int = STEPS
    def mine() -> RunConfig:
        return RunConfig(steps=Choice().steps)
    """
    file = tmp_path / "mine.py"
    file.write_text(textwrap.dedent(body).replace("import annotations\n", f"import annotations\n{HEAD}"))
    path = list(sys.path)
    assert recipe(str(file)).steps == 7
    assert sys.path == path


@pytest.mark.parametrize(
    ("body", "target", "said"),
    [
        ("def mine(): ...", "mind.py", "no file at {0}/mind.py; did you mean '{0}/mine.py'?"),
        ("def mine(): ...", "mine.py:mane", "{0}/mine.py has no function 'mane'; did you mean 'mine'?"),
        ("steps = 3", "mine.py:steps", "{0}/mine.py has no function 'steps'; it defines none"),
        ("steps = 3", "mine.py", "has no function that returns a RunConfig; write one: def NAME() -> RunConfig"),
        ("def a(): ...\ndef b(): ...", "mine.py", "more than one function to choose from: a, b; name one, for example"),
        ("def mine(): ...", "mine.py", "{0}/mine.py:mine returned NoneType; it must return a RunConfig"),
        ("def mine(): return RunConfig", "mine.py", "mine returned the class RunConfig; it must return a RunConfig"),
        ("def mine(x): ...", "mine.py", "called with no arguments: missing a required argument: 'x'; give its other"),
        ("def mine():\n    x = {}\n    return x['captions']", "mine.py", "{0}/mine.py, line 4: KeyError: 'captions'"),
        ("def mine():\n    raise RuntimeError", "mine.py", "{0}/mine.py, line 3: RuntimeError"),
        ("def f(): 1 / 0\ndef mine() -> RunConfig: f()", "mine.py", "mine.py, line 2: ZeroDivisionError: division by"),
        ("import nowhere", "mine.py", "{0}/mine.py, line 2: ModuleNotFoundError: No module named 'nowhere'"),
        ("def mine(:", "mine.py", "{0}/mine.py, line 2: SyntaxError: "),
        ("raise SystemExit(1)", "mine.py", "{0}/mine.py, line 2: SystemExit: 1"),
        ("def mine(): return RunConfig(steps=0)", "mine.py", "mine.py, line 2: steps: Input should be greater than"),
        (
            "def mine():\n    run = RunConfig()\n    run.data.sources['a'] = {'store': 3}\n    return run",
            "mine.py",
            "data.sources.a.store: Input should be a valid string (found 3)",
        ),
    ],
)
def test_a_mistake_in_a_file_is_one_line(body, target, said, tmp_path, monkeypatch, capsys):
    write(tmp_path, body)
    monkeypatch.setattr(sys, "argv", ["mm1", "train", str(tmp_path / target), "--to", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said.format(tmp_path) in error
    assert not (tmp_path / "run").exists()


def test_the_cause_of_an_error_in_a_file_is_kept(tmp_path):
    with pytest.raises(ConfigError) as raised:
        recipe(write(tmp_path, "def mine(): return {}['x']"))
    assert isinstance(raised.value.__cause__, KeyError)


def test_a_run_goes_on_is_used_and_exported_without_its_file(stores, tmp_path, monkeypatch):
    config.save(small.run(stores), tmp_path / "small.json")
    body = f"""
    from pathlib import Path
    from mm1.config.run import load
    def mine() -> RunConfig:
        return load(Path({str(tmp_path / "small.json")!r}))
    """
    file = write(tmp_path, body)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mm1", "train", f"{file}:mine", "steps=2"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    Path(file).unlink()
    run = config.load(tmp_path / "runs/mine/config.json")
    assert (run.recipe, run.steps) == ("mine", 2)
    monkeypatch.setattr(sys, "argv", ["mm1", "train", "runs/mine/config.json", "--to", "runs/mine"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert load_for_use(tmp_path / "runs/mine").step == 2
    export_run(tmp_path / "runs/mine", tmp_path / "export")


def page_file(name: str, folder: Path) -> str:
    """A file of docs/recipes.md, written to a folder."""
    page = (ROOT / "docs/recipes.md").read_text()
    (body,) = re.findall(rf"<!-- file: {re.escape(name)} -->\n```python\n(.*?)```", page, re.DOTALL)
    (folder / name).write_text(body)
    return str(folder / name)


def test_the_pages_own_file_is_a_recipe(tmp_path):
    file = page_file("wide.py", tmp_path)
    run = recipe(f"{file}:wide")
    assert config.differences(tiny("runs/demo"), run) == {
        "model.connector.width": (128, 256),
        "recipe": ("tiny", "wide"),
    }
    assert recipe(f"{file}:wide_cold").optim.warmup_steps == 0


def test_the_pages_own_ablation_is_planned(tmp_path):
    plan = make_plan(ablation(page_file("rates.py", tmp_path), "tiny"), tmp_path, seeds=3)
    assert [arm.learning_rate for arm in plan.arms] == [0.001, 0.0003, 0.003]
    assert len(plan.runs) == 9
