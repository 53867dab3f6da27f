"""The house rules that a machine can check: layers, names, sizes, what the repository may hold."""

import ast
import graphlib
import importlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from layers import BEGIN, END, LAYER, LAYERS, ORDER, PAGES, with_map

from mm1.config import base
from mm1.config import model as architecture
from mm1.config import run as config

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mm1"
CODE = ("mm1", "sample_build", "tests", "benchmarks")

# These dicts hold one class, function or preset for each value of the field; the dict is KINDS where none is named.
KINDS = {
    "mm1.tiling": (architecture.TilingConfig, "kind"),
    "mm1.tiling:GRIDS": (architecture.TilingConfig, "grid"),
    "mm1.tiling:FITS": (architecture.TilingConfig, "fit"),
    "mm1.tiling:ORDERS": (architecture.TilingConfig, "order"),
    "mm1.tiling:INDICATORS": (architecture.TilingConfig, "indicators"),
    "mm1.tiling:LAYOUTS": (architecture.TilingConfig, "layout"),
    "mm1.model.connector": (architecture.ConnectorConfig, "kind"),
    "mm1.train.optim": (config.OptimConfig, "kind"),
    "mm1.train.schedule": (config.OptimConfig, "schedule"),
    "mm1.objectives.index": (config.RunConfig, "objective"),
    "mm1.objectives.weighting": (config.RunConfig, "loss_weighting"),
}
DICTS = {"KINDS", "OBJECTIVES"}

BANNED_WORDS = {"utils", "util", "helpers", "helper", "common", "manager"}
SAMPLE_LIMIT = 30 * 2**20  # bytes


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, without the empty `__init__.py` files."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py"
    }


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> list[tuple[int, str]]:
    """Line and dotted name of every import of the package in a file, inside functions too."""
    imported = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            imported.append((node.lineno, "." * node.level + (node.module or "")))
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return [(line, name) for line, name in imported if name.startswith(("mm1.", "."))]


def module_of(name: str) -> str:
    """The module that an imported name comes from: `mm1.data.store.Store` -> `mm1.data.store`."""
    parts = name.split(".")
    while len(parts) > 2 and ".".join(parts) not in modules() and not ROOT.joinpath(*parts).is_dir():
        parts.pop()
    return ".".join(parts)


def edges() -> list[tuple[str, str, str]]:
    """(module, module it imports, where) over the whole package."""
    return [
        (module, module_of(name), f"{short(path)}:{line} imports {name}")
        for module, path in modules().items()
        for line, name in imports(path)
    ]


def package(module: str) -> str:
    return module.split(".")[1]


def file_of(module: str) -> str:
    """The name a module has in its package's order: `mm1.eval.tasks.vqa` -> `tasks`."""
    return module.split(".")[2]


def report(faults: list[str]) -> None:
    assert not faults, "\n" + "\n".join(faults)


def test_every_package_has_a_layer():
    unknown = sorted({package(module) for module in modules()} - LAYER.keys())
    assert not unknown, f"no layer for mm1/{unknown[0]}: give it one in tests/layers.py"


@pytest.mark.parametrize("page", PAGES)
def test_the_map_is_that_of_the_imports(page: str):
    text = (ROOT / page).read_text()
    assert BEGIN in text, f"{page} has no map: put {BEGIN.strip()} and {END.strip()} into it"
    assert text == with_map(text), f"the map in {page} is old: run `python tests/layers.py`"


def test_imports_are_absolute():
    report([where for _, name, where in edges() if name.startswith(".")])


def test_imports_go_down_the_layers():
    faults = []
    for module, imported, where in edges():
        ours, theirs = LAYER.get(package(module), -1), LAYER.get(package(imported), -1)
        names = LAYERS[0].names
        if ours == theirs == 0 and names.index(package(imported)) < names.index(package(module)):
            continue  # the lowest layer is in import order
        if package(module) != package(imported) and ours <= theirs:
            relation = "in the same layer" if ours == theirs else f"above, in layer {theirs + 1}"
            faults.append(f"{where}: {package(module)} is in layer {ours + 1}, {package(imported)} is {relation}")
    report(faults)


def test_files_of_a_package_use_only_those_before_them():
    faults = []
    for module, imported, where in edges():
        order = ORDER.get(package(module), ())
        if package(module) != package(imported) or module.count(".") < 2 or imported.count(".") < 2:
            continue
        ours, theirs = file_of(module), file_of(imported)
        if ours != theirs and {ours, theirs} <= set(order) and order.index(ours) < order.index(theirs):
            faults.append(f"{where}: in {package(module)}/, {theirs} comes after {ours}")
    report(faults)


def circle(graph: dict[str, set[str]]) -> str:
    """Modules that import each other in a circle; empty if none do."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return " <- ".join(error.args[1])
    return ""


def test_no_imports_in_a_circle():
    graph: dict[str, set[str]] = {}
    for module, imported, _ in edges():
        graph.setdefault(module, set()).add(imported)
    assert circle(graph) == ""


def test_init_files_are_empty():
    report([short(path) for path in PACKAGE.rglob("__init__.py") if path.read_text().strip()])


def test_folders_are_two_deep():
    deep = [path for path in modules().values() if len(path.relative_to(PACKAGE).parts) > 2]
    allowed = {"eval/data", "eval/encoders", "eval/metrics", "eval/tasks"}
    allowed |= {"prepare/readers", "prepare/filters", "prepare/html", "prepare/rendering", "recipes/ablations"}
    report([short(path) for path in deep if path.parent.relative_to(PACKAGE).as_posix() not in allowed])


def test_files_are_short():
    lengths = {path: len(path.read_text().splitlines()) for path in python_files(*CODE)}
    report([f"{short(path)} has {lines} lines; 400 at most" for path, lines in lengths.items() if lines > 400])


def test_functions_are_short():
    faults = []
    for path in python_files(*CODE):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > 60:
                    faults.append(f"{short(path)}:{node.lineno} {node.name} has {lines} lines; 60 at most")
    report(faults)


def test_names_say_what_is_inside():
    paths = python_files(*CODE)
    report([short(path) for path in paths if BANNED_WORDS & set(re.split(r"[/_.]", short(path)))])


def test_counts_are_plural_nouns():
    faults = []
    for path in modules().values():
        for node in ast.walk(ast.parse(path.read_text())):
            name = declared(node)
            if re.match(r"(n|num)_", name):
                faults.append(f"{short(path)}:{getattr(node, 'lineno', 0)} {name}: say the plural noun")
    report(faults)


def declared(node: ast.AST) -> str:
    """The name of the parameter or field that this node declares, else nothing."""
    if isinstance(node, ast.arg):
        return node.arg
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        return node.attr
    return ""


def test_every_module_says_what_it_is():
    report([f"{name} has no docstring" for name, path in modules().items() if not docstring(path)])


def docstring(path: Path) -> str | None:
    return ast.get_docstring(ast.parse(path.read_text()))


def test_every_kind_has_its_class():
    defining = {
        module
        for module, path in modules().items()
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign | ast.AnnAssign) and DICTS & set(assigned(node))
    }
    unknown = sorted(defining - KINDS.keys())
    assert not unknown, f"{unknown[0]} has such a dict: name the config field it belongs to in this file's KINDS"
    for where, (model, field) in KINDS.items():
        module, _, of_name = where.partition(":")
        names = {of_name} if of_name else DICTS
        (classes,) = (value for name, value in vars(importlib.import_module(module)).items() if name in names)
        assert sorted(classes) == sorted(base.choices(model, field)), f"the dict of {where} and {field!r} differ"


def test_only_the_dict_of_objectives_knows_their_names():
    """What other code needs to know of an objective is an attribute or a method of its class."""
    values = {"objective", *base.choices(config.RunConfig, "objective")}
    faults = []
    for path in modules().values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and values & words_of(node):
                faults.append(f"{short(path)}:{node.lineno} compares an objective")
    report(faults)


def words_of(node: ast.Compare) -> set[str]:
    """The attributes and strings that a comparison compares."""
    sides = [node.left, *node.comparators]
    constants = {side.value for side in sides if isinstance(side, ast.Constant) and isinstance(side.value, str)}
    return constants | {side.attr for side in sides if isinstance(side, ast.Attribute)}


def assigned(node: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def test_help_does_not_load_torch():
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mm1", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    lines = run.stderr.splitlines()
    assert run.returncode == 0, "\n".join(line for line in lines if not line.startswith("import time:"))
    loaded = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    heavy = sorted(loaded & {"torch", "lance", "transformers", "matplotlib", "pyarrow"})
    assert not heavy, f"`mm1 --help` loads {heavy}: import them inside the verbs"


def test_the_sample_is_small():
    files = [path for path in (PACKAGE / "sample").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    assert files, "mm1/sample is empty: the demo has nothing to train on"
    assert size <= SAMPLE_LIMIT, f"mm1/sample holds {size / 2**20:.1f} MB; 30 at most"


def text_files() -> list[tuple[Path, str]]:
    """Every text file of the repository, new ones too, outside the sample; its path and content."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listing.stdout.splitlines() if not name.startswith("mm1/sample/")]
    contents = [(path, path.read_bytes()) for path in paths if path.is_file()]
    return [(path, data.decode(errors="replace")) for path, data in contents if b"\0" not in data]


# Written in parts, so that this file does not name what it forbids.
HOSTS = ("pypi" + ".org", "python" + "hosted.org", "npm" + "js.org", "npm" + "js.com", "deb." + "debian.org")
HOSTS += ("packages." + "debian.org", "download." + "pytorch.org", "conda." + "anaconda.org")
FOLDERS = ("root", "home/[a-z]", "work", "Users", "opt", "mnt", "tmp/[a-z]")


FORBIDDEN = {
    "registry host": "|".join(re.escape(host) for host in HOSTS),
    "path of one machine": rf"(?<![\w.$~}})/*<-])/({'|'.join(FOLDERS)})[\w.-]*/|file:///\w",
}


@pytest.mark.parametrize("pattern", FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_the_repository_names_no(pattern: str):
    faults = []
    for path, content in text_files():
        for line, text in enumerate(content.splitlines(), 1):
            if match := re.search(pattern, text):
                faults.append(f"{short(path)}:{line} says {match[0]}")
    report(faults)
