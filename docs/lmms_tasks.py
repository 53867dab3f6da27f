"""Two tasks for lmms-eval, made of the shipped sample: the recipe of docs/evaluate.md asks a run under both harnesses.

    python docs/lmms_tasks.py FOLDER                writes the tasks there, for a run that was fine-tuned
    python docs/lmms_tasks.py FOLDER --form plain   the same for one that wasn't
    python docs/lmms_tasks.py FOLDER --show         compares the answers of both there; 1 if any differs

`mm1_generate` has held-out questions of easy-VQA in ChartQA's layout, which `mm1 eval --tasks chartqa` asks.
`mm1_choices` has them in AI2D's layout, with the answers that training pictures have to each as its choices, which
`mm1 eval --tasks ai2d --scoring loglikelihood` ranks.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mm1.eval.data.styles import OFFICIAL, Form
from mm1.eval.fewshot import Example
from mm1.eval.harness import load_task
from mm1.eval.metrics.short_answers import LETTERS

FILE = "test-00000-of-00001.parquet"
YAML = """\
task: {task}
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: {kind}
doc_to_visual: !function lmms_functions.pictures
doc_to_text: {text}
doc_to_target: "{{{{answer}}}}"
{rest}metric_list:
  - metric: {metric}
    aggregation: mean
    higher_is_better: true
"""

FUNCTIONS = '''\
"""What the tasks beside this file compute."""

import io

from PIL import Image

from mm1.eval.metrics.short_answers import relaxed_accuracy


def pictures(doc):
    return [Image.open(io.BytesIO(doc["image"]["bytes"]))]


def points(doc, results):
    return {"points": float(relaxed_accuracy(results, [[doc["answer"]]])[0])}
'''


def write(folder: Path, *, form: Form, limit: int = 200) -> None:
    """Write the tasks, their functions and their data into `folder`."""
    task = load_task("easy_vqa", limit=limit, seed=0)
    answers: dict[str, set[str]] = {}
    for shot in task.pool.read(list(range(task.pool.count))):
        if shot is not None:
            answers.setdefault(shot.question, set()).add(shot.answers[0])
    choices = {question: sorted(of_question) for question, of_question in answers.items()}
    ranked = [query for query in task.queries if query.answers[0] in choices.get(query.question, [])]
    _write_rows(folder / "chartqa", task.queries, lambda query: {"answer": query.answers[0], "type": "human_test"})
    _write_rows(
        folder / "ai2d",
        ranked,
        lambda query: {
            "options": choices[query.question],
            "answer": str(choices[query.question].index(query.answers[0])),
        },
    )
    (folder / "lmms_functions.py").write_text(FUNCTIONS)
    style = OFFICIAL["vqa"].forms[form]
    request_text = style.ask(Example("", task.queries[0].image, "{{question}}", ()))
    until = f"  until: {json.dumps(style.stops)}\n" if style.stops else ""
    points = "process_results: !function lmms_functions.points\n"
    generates = f"{points}generation_kwargs:\n  max_new_tokens: {style.max_tokens}\n{until}"
    for name, (data, kind, rest, metric) in {
        "mm1_generate": ("chartqa", "generate_until", generates, "points"),
        "mm1_choices": ("ai2d", "multiple_choice", "doc_to_choice: options\n", "acc"),
    }.items():
        file = json.dumps(str((folder / data / FILE).resolve()))
        text = json.dumps(request_text)
        (folder / f"{name}.yaml").write_text(
            YAML.format(task=name, file=file, kind=kind, text=text, rest=rest, metric=metric)
        )


def _write_rows(folder: Path, queries: Sequence[Example], more: Callable[[Example], dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": query.id, "question": query.question, "image": {"bytes": query.image.data, "path": None}} | more(query)
        for query in queries
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / FILE)


def answers_of(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """The answers of both harnesses to each query of each task, ours first.

    Raises:
        FileNotFoundError: one of both has left none.
    """
    samples = {file.stem.split("samples_")[1]: file for file in sorted(folder.glob("theirs/**/*samples_mm1_*.jsonl"))}
    pairs: dict[str, list[tuple[str, str]]] = {}
    for task, ours in (("mm1_generate", "chartqa-0shot"), ("mm1_choices", "ai2d-0shot-loglikelihood")):
        if task not in samples:
            raise FileNotFoundError(f"lmms-eval has left no answers to {task} under {folder / 'theirs'}")
        records = sorted(_records(samples[task]), key=lambda record: record["doc_id"])
        theirs = [_answer(record["filtered_resps"]) for record in records]
        mine = [record["answer"] for record in _records(folder / "ours" / "eval" / f"{ours}.jsonl")]
        pairs[task] = list(zip(mine, theirs, strict=True))
    return pairs


def _answer(responses: str | list[Any]) -> str:
    """The text, or the letter of the choice that lmms-eval takes: that with the smallest loss."""
    if isinstance(responses, str):
        return responses
    losses = [float(loss) for loss, _ in responses]
    return LETTERS[losses.index(min(losses))]


def _records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


if __name__ == "__main__":
    target = Path(sys.argv[1])
    if "--show" in sys.argv:
        compared = answers_of(target)
        different = {task: sum(ours != theirs for ours, theirs in pairs) for task, pairs in compared.items()}
        for task, pairs in compared.items():
            print(f"{task}: {different[task]} of {len(pairs)} answers differ")
        sys.exit(any(different.values()))
    write(target, form="plain" if "plain" in sys.argv else "chat")
