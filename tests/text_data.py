"""The data of MM1's text suite in the layouts that lm-eval's own task files read, small and made up, in folders; and
commands that read them, as a user gives them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from mm1.document import Document, Text
from mm1.eval.model import Request
from mm1.eval.models import Ours

COLOURS = ("red", "green", "blue", "white", "black", "yellow")
THINGS = ("circle", "square", "boat", "house", "tree", "bird")


def rows(count: int = 6) -> list[dict[str, Any]]:
    """Questions from which each task's rows are made."""
    return [
        {"question": f"Which thing is {COLOURS[n % 6]}", "choices": [f"the {THINGS[(n + k) % 6]}" for k in range(4)]}
        | {"gold": n % 4, "text": f"In the picture a {COLOURS[n % 6]} {THINGS[n % 6]} stands on the left of a house"}
        for n in range(count)
    ]


def arc(row: dict[str, Any]) -> dict[str, Any]:
    labels = ["A", "B", "C", "D"]
    choices = {"text": row["choices"], "label": labels}
    return {"id": row["question"], "question": row["question"], "choices": choices, "answerKey": labels[row["gold"]]}


def piqa(row: dict[str, Any]) -> dict[str, Any]:
    first, second, *_ = row["choices"]
    return {"goal": row["question"], "sol1": first, "sol2": second, "label": row["gold"] % 2}


def winogrande(row: dict[str, Any]) -> dict[str, Any]:
    first, second, *_ = row["choices"]
    sentence = f"{first.capitalize()} is near {second}, since _ is {row['question'].rpartition(' ')[2]}."
    return {"sentence": sentence, "option1": first, "option2": second, "answer": str(1 + row["gold"] % 2)}


def hellaswag(row: dict[str, Any]) -> dict[str, Any]:
    text = {"activity_label": "Looking", "ctx_a": row["text"] + ".", "ctx_b": "then"}
    return text | {"endings": row["choices"], "label": str(row["gold"])}


def sciq(row: dict[str, Any]) -> dict[str, Any]:
    names = ("distractor1", "distractor2", "distractor3", "correct_answer")
    return {"question": row["question"], "support": row["text"] + "."} | dict(zip(names, row["choices"], strict=True))


FOLDERS = {
    "allenai/ai2_arc": {"ARC-Easy": arc, "ARC-Challenge": arc},
    "baber/piqa": {"default": piqa},
    "EleutherAI/lambada_openai": {"default": lambda row: {"text": row["text"]}},
    "allenai/winogrande": {"winogrande_xl": winogrande},
    "Rowan/hellaswag": {"default": hellaswag},
    "allenai/sciq": {"default": sciq},
    "mandarjoshi/trivia_qa": {
        "rc.nocontext": lambda row: {"question": row["question"], "answer": {"aliases": [row["answer"]]}}
    },
    "stanfordnlp/web_questions": {
        "default": lambda row: {"question": row["question"], "answers": [row["choices"][row["gold"]], "no"]}
    },
}
"""How each data set's rows look, by its name on the hub and its configuration."""


def write_text_data(folder: Path, answers: list[str]) -> None:
    """Write every data set below `folder`, where `datasets` finds them by their names on the hub. `answers` are the
    right ones of the tasks whose answers are written."""
    answered = [row | {"answer": answer} for row, answer in zip(rows(len(answers)), answers, strict=True)]
    for name, configurations in FOLDERS.items():
        (folder / name).mkdir(parents=True)
        lines = ["---", "configs:"]
        for configuration, layout in configurations.items():
            lines += [f"- config_name: {configuration}", "  data_files:"]
            for split in ("train", "validation", "test"):
                file = f"{configuration}-{split}.jsonl"
                lines += [f"  - split: {split}", f"    path: {file}"]
                (folder / name / file).write_text("".join(json.dumps(layout(row)) + "\n" for row in answered))
        (folder / name / "README.md").write_text("\n".join([*lines, "---", ""]))


def write_answered_data(folder: Path, ours: Ours) -> None:
    """Write the data. Every second answer of the tasks whose answers are written is what `ours` writes."""
    first = [f"Question: {row['question']}?\nAnswer:" for row in rows()]
    written = ours.generate(
        [Request(Document((Text(text, train=False),)), stops=("\n", ".", ","), max_tokens=256) for text in first]
    )
    write_text_data(folder, [reply.text.strip() if n % 2 else "no" for n, reply in enumerate(written)])


def command(folder: Path, *words: str) -> None:
    """Run a module's command in `folder`, where it finds the data and asks no hub."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    environment |= {"OPENAI_API_KEY": "none", "PYTHONPATH": str(Path(__file__).parents[1])}
    line = [sys.executable, "-m", *words]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def scores_of_mm1(folder: Path, run: Path) -> dict[str, float]:
    """What `mm1 eval` scores a run on the text suite in fp32, with the data in `folder`."""
    command(folder, "mm1", "eval", str(run), "--tasks", "text", "--precision", "fp32", "--to", "direct")
    scores = json.loads((folder / "direct/eval/text.json").read_text())["scores"]
    scores.pop("mean")
    return scores


def scores_of_lm_eval(folder: Path, *model: str) -> dict[str, float]:
    """What lm-eval's own command scores a model, given by its options, on the same tasks and data."""
    from mm1.eval.text_suite import SUITE

    command(folder, "lm_eval", *model, "--tasks", ",".join(SUITE), "--output_path", "theirs")
    (file,) = (folder / "theirs").rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
    return {name: 100 * value for name, metric in SUITE.items() if (value := _named(results[name], metric)) is not None}


def _named(results: dict[str, Any], metric: str) -> float | None:
    """A metric of lm-eval's results, whatever filter came before it."""
    return next((value for name, value in results.items() if name.partition(",")[0] == metric), None)
