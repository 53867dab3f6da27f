"""What the pages say is what the commands do: every command and every Python block."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from PIL import Image as Picture

from mm1.__main__ import app
from mm1.config import run as config
from mm1.config.sample import SAMPLE
from mm1.data.store import write_store
from mm1.document import Document, Text
from mm1.prepare.request import PrepareRequest
from mm1.recipes.index import recipe

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
FENCE = re.compile(r"(?P<run><!-- run -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `run` when a `<!-- run -->` comment stands right above it."""

    page: str
    line: int
    language: str
    body: str
    run: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def text(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str) -> list[Block]:
    whole = text(page)
    return [
        Block(page, whole.count("\n", 0, match.start()) + 1, match["language"], match["body"], bool(match["run"]))
        for match in FENCE.finditer(whole)
    ]


def commands(block: Block) -> list[str]:
    """The commands of a shell block; in a `console` block those after `$ `, the rest is output."""
    joined = block.body.replace("\\\n", " ")
    if block.language == "console":
        return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def words(command: str) -> list[str]:
    """The words of a command, without settings before it and without its comment."""
    parts = shlex.split(command, comments=True)
    while parts and re.fullmatch(r"[A-Z_]+=.*", parts[0]):
        parts.pop(0)
    return parts


BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in BLOCKS if block.language in ("bash", "console")]
PYTHON = [block for block in BLOCKS if block.language == "python"]
COMMANDS = [(block, words(command)) for block in SHELL for command in commands(block)]

ENTRY = f'mm1() {{ {shlex.quote(sys.executable)} -m mm1 "$@"; }}'
"""What `mm1` means in a block that is run: this interpreter's, installed or not."""


def run(arguments: list[str], folder: Path, *, seconds: int = 300) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
        "NO_COLOR": "1",
        "TERM": "dumb",
    }
    return subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )


@pytest.mark.parametrize(
    "command", [pytest.param(command, id=f"{block} {shlex.join(command)}") for block, command in COMMANDS]
)
def test_command_exists(command: list[str]):
    program, *arguments = command
    if program == "make":
        for target in (word for word in arguments if "=" not in word):
            answer = run(["make", "-n", target], ROOT)
            assert answer.returncode == 0, f"no target {target!r} in the Makefile: {answer.stderr}"
    elif program == "mm1":
        check_verb(arguments)
    elif program == "torchrun":
        check_verb(arguments[arguments.index("mm1") + 1 :])


def check_verb(arguments: list[str]) -> None:
    """The door takes the command: verb, options, all that is required; recipe and fields exist."""
    group = typer.main.get_command(app)
    verb, *rest = arguments
    if verb == "--help":
        return
    assert verb in group.commands, f"mm1 has no verb {verb!r}; it has {', '.join(group.commands)}"
    command = group.commands[verb]
    if isinstance(command, typer.core.TyperGroup):
        assert rest[0] in command.commands, f"mm1 {verb} has no verb {rest[0]!r}"
        command, rest = command.commands[rest[0]], rest[1:]
    parameters = command.make_context(verb, list(rest)).params
    if verb in ("train", "budget") and ".py" not in parameters["recipe"] and "/" not in parameters["recipe"]:
        config.override(recipe(parameters["recipe"]), list(parameters["assignments"] or []))
    if verb == "prepare":
        unknown = {
            word.partition("=")[0] for word in parameters["words"] if "=" in word
        } - PrepareRequest.model_fields.keys()
        assert not unknown, f"a preparation has no fields {unknown}"


@pytest.mark.parametrize("block", [block for block in SHELL if block.run], ids=str)
def test_block_runs(block: Block, tmp_path: Path):
    answer = run(["bash", "-euo", "pipefail", "-c", "\n".join([ENTRY, *commands(block)])], tmp_path)
    assert answer.returncode == 0, f"{block} fails:\n{answer.stdout}\n{answer.stderr}"


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_block_runs(block: Block, tmp_path: Path):
    answer = run([sys.executable, "-c", block.body], tmp_path)
    assert answer.returncode == 0, f"{block} fails:\n{answer.stderr}"


SHORTER = {
    "train": ["steps=2", "batch_size=1", "micro_batch_size=1", "validation_sequences=1"],
    "eval": ["--limit", "2"],
    "chat": ["--tokens", "4"],
}
"""What is added to a command of the page so that it ends in seconds."""

ELSEWHERE = ("demo", "prepare", "import", "serve")
"""Verbs that take minutes, a network or input of one's own, or go on until they are stopped: test_prepare,
test_import, test_serve_load and the demo test them."""


def test_the_verbs_of_the_readme_run_as_they_stand(tmp_path: Path):
    stage = recipe("tiny")
    stage.start_from = {}
    config.save(config.override(stage, SHORTER["train"]), tmp_path / "tiny.json")
    answer = run([sys.executable, "-m", "mm1", "train", "tiny.json", "--to", "runs/demo/tiny"], tmp_path)
    assert answer.returncode == 0, answer.stderr
    shutil.copytree(tmp_path / "runs/demo/tiny", tmp_path / "runs/demo/tiny_sft")
    Picture.new("RGB", (64, 64), "red").save(tmp_path / "runs/demo/picture.png")
    write_store([Document((Text("a page"),))], tmp_path / "pages.lance")
    shutil.copy(SAMPLE / "tokenizer.json", tmp_path)
    done = set()
    for block, (program, *arguments) in COMMANDS:
        if block.page == "README.md" and program == "mm1" and arguments[0] not in (*ELSEWHERE, "--help"):
            if "mine" in arguments[-1]:
                continue  # the store that the page's own Python block writes
            answer = run([sys.executable, "-m", "mm1", *arguments, *SHORTER.get(arguments[0], [])], tmp_path)
            assert answer.returncode == 0, f"{shlex.join(arguments)}:\n{answer.stderr}"
            done.add(arguments[0])
    assert done == {"train", "eval", "chat", "show", "report", "export", "tokenize", "ablate", "law", "doctor"}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    targets = re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text())
    local = [target for target in targets if "://" not in target]
    dead = [target for target in local if not (ROOT / page).parent.joinpath(target).exists()]
    assert not dead, f"{page} links to {dead}, which do not exist"


@pytest.mark.parametrize("page", PAGES)
def test_files_a_page_names_are_there(page: str):
    named = re.findall(
        r"`(?:python )?((?:mm1|tests|benchmarks|docs|data|model|train|eval|prepare)/[\w/]+\.\w+)[ `]", text(page)
    )
    missing = [name for name in named if not (ROOT / name).exists() and not (ROOT / "mm1" / name).exists()]
    assert not missing, f"{page} names {missing}, which do not exist"


def test_the_map_shows_what_is_there():
    """docs/design.md speaks of every file and package of mm1."""
    page = (ROOT / "docs/design.md").read_text()
    packages = {path.name for path in (ROOT / "mm1").iterdir() if not path.name.startswith("__")}
    missing = [name for name in sorted(packages) if not re.search(rf"\b{re.escape(name)}", page)]
    assert not missing, f"docs/design.md does not speak of {missing}"
