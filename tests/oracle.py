"""Models that always write the right answer, or always a wrong one: the table of what each task makes of them.

    python tests/oracle.py           prints the table of docs/evaluate.md
    python tests/oracle.py --write   writes it there

A script stands where each kind of model computes: in place of the engine's steps, of `generate` of `transformers`,
and of the server. Prompts, stop strings, longest answers and the reading of answers are those of `mm1 eval`.
"""

import dataclasses
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import small
import torch
from rich.progress import Progress

from mm1.data.tokenizer import Tokenizer, load_tokenizer
from mm1.eval.fewshot import Example, Judged, Task
from mm1.eval.harness import load_task
from mm1.eval.hf_model import HfModel
from mm1.eval.http_model import HttpModel
from mm1.eval.metrics.short_answers import LETTERS
from mm1.eval.model import Model, Request
from mm1.eval.models import Ours
from mm1.eval.shots import DEFAULT, prompts
from mm1.eval.task_evaluation import Settings, TaskEvaluation
from mm1.generate.request import Completion

MANNERS: dict[str, Callable[[str], str]] = {
    "bare": str,
    "sentence": lambda answer: f"The answer is {answer}.",
    "Markdown": lambda answer: f"**{answer}**",
}
SAMPLE = ("captions", "easy_vqa", "easy_vqa_plain", "languages")
TEXTS = ("3.5", "Smith, John", "12:30 p.m.", "$1,200.50", "50%", "no. 7, left", "the red one", "yes")
NUMBERS = ("3.5", "1200", "50%", "0", "Smith, John", "2014", "-7", "yes")
GOLD: dict[str, Sequence[str]] = {
    **dict.fromkeys(("docvqa", "infovqa", "vqav2", "okvqa", "textvqa", "vizwiz"), TEXTS),
    "chartqa": NUMBERS,
}
"""Right answers with the marks that real ones have, where those of the layouts are single words."""

DOCS = Path(__file__).parents[1] / "docs" / "evaluate.md"
BEGIN, END = "<!-- tests/oracle.py: begin -->", "<!-- tests/oracle.py: end -->"


class Script:
    """What an answering part writes for what it sees: first it learns whose request this is, then it answers."""

    def __init__(self) -> None:
        self.tokenizer: Tokenizer = load_tokenizer("sample")
        self.queries: dict[str, str] = {}
        self.learns = ""  # the id of the query whose request comes next
        self.says: dict[str, str] = {}

    def text(self, seen: Any) -> str:
        """The text for a request that looks like `seen`."""
        key = hashlib.sha256(repr(seen).encode()).hexdigest()
        if self.learns:
            self.queries[key] = self.learns
        return self.says.get(self.queries.get(key, ""), "")

    def learn(self, model: Model, task: Task) -> None:
        """Remember how the request of each query looks to this part."""
        self.queries, self.says = {}, {}
        documents = prompts(task, task.queries, drawn=[[]] * len(task.queries), shots=0, protocol=DEFAULT)
        for query, document in zip(task.queries, documents, strict=True):
            self.learns = query.id
            model.generate([Request(document)])
        self.learns = ""


def our_model(script: Script) -> Model:
    """A run's model whose engine writes the tokens of the script's text."""

    def generate(requests, decoding, *, done):
        completions = []
        for number, prompt in enumerate(requests):
            whole = script.tokenizer.encode(script.text((prompt.tokens, [one.name for one in prompt.images])))
            tokens: list[int] = []
            for token in whole[: decoding.max_tokens]:
                tokens.append(token)
                if decoding.stopped is not None and decoding.stopped(tokens):
                    break
            completions.append(Completion(tokens))
            done(number, completions[-1])
        return completions

    config = small.config()
    config.image_token_id = script.tokenizer.image
    ours = Ours(small.MLLM(config), script.tokenizer, name="ours")
    ours.writer.engine.generate = generate
    return ours


class Inputs(dict):
    """What a processor returns."""

    def to(self, device: Any) -> "Inputs":
        return self


class Processor:
    """A processor whose prompts are one token each: the number of what it has seen."""

    chat_template, image_token = "a template", "<image>"

    def __init__(self, tokenizer: Tokenizer):
        self.words, self.tokenizer, self.seen = tokenizer, self, []
        self.bos_token = self.pad_token = None
        self.pad_token_id, self.padding_side = -1, "left"

    def apply_chat_template(self, conversation: Any, **how: Any) -> str:
        return json.dumps(conversation)

    def __call__(self, *, text: list[str], images: Any, **how: Any) -> Inputs:
        rows = images if images and isinstance(images[0], list) else [images or []]
        for words, pictures in zip(text, rows, strict=True):
            self.seen.append((words, [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures]))
        first = len(self.seen) - len(text)
        ids = torch.arange(first, len(self.seen))[:, None]
        return Inputs(input_ids=ids, attention_mask=torch.ones_like(ids))

    def decode(self, tokens: torch.Tensor, **how: Any) -> str:
        return self.words.decode([token for token in tokens.tolist() if token >= 0])


def hf_model(script: Script) -> Model:
    """A model of `transformers` whose `generate` writes the tokens of the script's text."""
    model = HfModel.__new__(HfModel)
    processor = Processor(script.tokenizer)

    class Generates:
        device = "cpu"

        def generate(self, *, input_ids: torch.Tensor, max_new_tokens: int, **how: Any) -> torch.Tensor:
            texts = [script.text(processor.seen[number]) for number in input_ids[:, -1].tolist()]
            tokens = [script.tokenizer.encode(text)[:max_new_tokens] for text in texts]
            written = torch.full((len(tokens), max(map(len, tokens))), -1)
            for row, of_row in enumerate(tokens):
                written[row, : len(of_row)] = torch.tensor(of_row, dtype=torch.long)
            return torch.cat([input_ids, written], dim=1)

    model.processor, model.model, model.folder, model.name = processor, Generates(), Path("oracle"), "hf"
    model.rows = 1
    return model


def http_model(script: Script) -> Model:
    """A server's model: it stops at the first four stop strings, as servers do."""

    class Server(HttpModel):
        def _call(self, path: str, body: Any = None) -> Any:
            tokens = script.tokenizer.encode(script.text(body["messages"]))
            text = script.tokenizer.decode(tokens[: body["max_tokens"]])
            for stop in body.get("stop", ()):
                text = text.partition(stop)[0]
            return {"choices": [{"message": {"content": text}}]}

    return Server("http://oracle/v1", model="http", parallel=1)


KINDS: dict[str, Callable[[Script], Model]] = {"ours": our_model, "hf": hf_model, "http": http_model}


class Judge:
    """A judge that gives the points of an answer with the right one in it."""

    name, prompt_name = "oracle", "none"

    def score(self, rule: Any, query: Example, *, answer: str) -> Judged:
        return Judged(float(query.answers[0] in answer))


def tasks(name: str, folder: Path) -> dict[str, Task]:
    """The task in each form that it has, in miniature."""
    if name in SAMPLE:
        task = load_task(name, limit=8, seed=0)
        return {task.style.form: task}
    if not any(folder.iterdir()):
        (layouts.HUB.get(name) or layouts.FILES[name])(folder)
    forms = {form: load_task(name, limit=100, seed=0, data=str(folder), form=form) for form in ("plain", "chat")}
    return {form: with_marks(task) for form, task in forms.items()}


def with_marks(task: Task) -> Task:
    """`task` with right answers as real ones are, and all people of one mind."""
    texts = GOLD.get(task.name)
    if texts is None:
        return task
    queries = [
        dataclasses.replace(query, answers=(texts[number % len(texts)],) * len(query.answers))
        for number, query in enumerate(task.queries)
    ]
    return dataclasses.replace(task, queries=queries)


def wrong(query: Example) -> str:
    """An answer that isn't right: another letter, the other of yes and no, or nonsense."""
    right = query.answers[0]
    if query.choices:
        return LETTERS[(LETTERS.index(right) + 1) % len(query.choices)]
    return {"yes": "no", "no": "yes"}.get(right.lower(), "98765" if right[:1].isdecimal() else "zebra crossing")


def score(task: Task, model: Model, folder: Path) -> float:
    """The points of a model's answers, as `mm1 eval` computes them at zero shots."""
    settings = Settings(folder, judge=Judge() if task.scoring.judge is not None else None)
    evaluation = TaskEvaluation(task, model, settings=settings, progress=Progress(disable=True))
    return 100 * float(np.mean([answer.score for answer in evaluation.answers(0, 0)]))


def scores(name: str, folder: Path) -> dict[tuple[str, str, str], float]:
    """The points by form, kind of model and manner (of the right answer, or `wrong`)."""
    results: dict[tuple[str, str, str], float] = {}
    for form, task in tasks(name, folder).items():
        for kind, make in KINDS.items():
            script = Script()
            model = make(script)
            script.learn(model, task)
            for manner in (*MANNERS, "wrong"):
                write = MANNERS.get(manner)
                script.says = {one.id: write(one.answers[0]) if write else wrong(one) for one in task.queries}
                with tempfile.TemporaryDirectory() as fresh:
                    results[form, kind, manner] = score(task, model, Path(fresh))
    return results


def names() -> list[str]:
    """All tasks."""
    return sorted({*SAMPLE, *layouts.HUB, *layouts.FILES})


def lines(name: str, points: dict[tuple[str, str, str], float]) -> list[str]:
    """The lines of one task; the kinds of models have the same points, or all of them are shown."""
    rows = []
    for form in dict.fromkeys(form for form, _, _ in points):
        shown = [sorted({f"{points[form, kind, manner]:.0f}" for kind in KINDS}) for manner in (*MANNERS, "wrong")]
        rows.append(f"| {name} | {form} | " + " | ".join("/".join(one) for one in shown) + " |")
    return rows


def table() -> str:
    """The table of all tasks."""
    manners = (*MANNERS, "wrong")
    rows = ["| task | form | " + " | ".join(manners) + " |", "|---|---|" + "---|" * len(manners)]
    for name in names():
        with tempfile.TemporaryDirectory() as folder:
            rows += lines(name, scores(name, Path(folder)))
    return "\n".join(rows)


if __name__ == "__main__":
    rows = table()
    if "--write" in sys.argv:
        before, _, rest = DOCS.read_text().partition(BEGIN)
        DOCS.write_text(f"{before}{BEGIN}\n{rows}\n{END}{rest.partition(END)[2]}")
    else:
        print(rows)
