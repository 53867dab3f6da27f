"""A published benchmark as a value: where its columns stand, how it is asked and scored. `task(...)` reads it.

Prompts are MM1's for models that continue a text (`plain`, MM1, appendix) and LLaVA-1.5's for fine-tuned ones
(`chat`, https://arxiv.org/abs/2310.03744, appendix A), which most published scores were made with.
"""

import ast
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import snapshot_download

from mm1.eval.data.rows import Row, Rows, TaskError, json_rows, parquet_rows, picture, splits
from mm1.eval.fewshot import (
    CAPTION_STOPS,
    VQA_STOPS,
    Example,
    JudgeRule,
    Pool,
    Task,
    Totals,
    ask_caption,
    ask_vqa,
    clean_vqa,
    rng,
)
from mm1.eval.metrics.answer_parsing import letter_of
from mm1.eval.metrics.references import Metric
from mm1.eval.metrics.short_answers import LETTERS

Kind = Literal["caption", "vqa", "choice", "free"]
Form = Literal["plain", "chat"]
Column = str | Callable[[Row], Any]


@dataclass(frozen=True, slots=True)
class Style:
    """How questions of one kind are asked in both forms, and how their answers end."""

    plain: Callable[[Example], str]
    chat: Callable[[Example], str]
    form: Form
    stops: tuple[str, ...]
    max_tokens: int
    clean: Callable[[str], str] = str.strip


def options(example: Example) -> str:
    """The choices with their letters, one a line."""
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, example.choices, strict=False))


def _chosen_plain(example: Example) -> str:
    return f" Question: {example.question}\n{options(example)}\nAnswer:" if example.choices else ask_vqa(example)


def _chosen_chat(example: Example) -> str:
    if not example.choices:
        return _short_chat(example)
    return f"{example.question}\n{options(example)}\nAnswer with the option's letter from the given choices directly."


def _short_chat(example: Example) -> str:
    return f"{example.question}\nAnswer the question using a single word or phrase."


STYLES: dict[Kind, Style] = {
    "caption": Style(
        ask_caption, lambda _: "Provide a one-sentence caption for the provided image.", "plain", CAPTION_STOPS, 32
    ),
    "vqa": Style(ask_vqa, _short_chat, "plain", VQA_STOPS, 16, clean_vqa),
    "choice": Style(_chosen_plain, _chosen_chat, "chat", ("\n",), 32),
    "free": Style(ask_vqa, lambda example: example.question, "chat", ("\nQuestion:",), 512),
}


@dataclass(frozen=True, slots=True)
class Published:
    """One benchmark. A column is a name, or a function of the row where the layout is peculiar.

    name      as in `mm1 eval --tasks`
    source    its paper or page
    hub       the data set of the layout that `id`, `image`, ... name
    queries   splits that are asked, the first that is there; `shots` those that shots come from, else the queries' own
    kind      how it is asked, see `STYLES`
    answers   right answers; a letter, or a number that counts choices from 0, where there are `choices`
    metadata  columns that totals and judges need
    folder    the folder of its configuration on the hub; {split} is replaced
    original  rows of a split in the layout of the first release, by the same column names; None if it is not there
    together  questions with the same value here are drawn together or not at all (MME's pairs)
    wanted    which rows belong to the task
    answer_set  the only answers there are, such as yes and no
    """

    name: str
    source: str
    hub: str
    queries: tuple[str, ...]
    kind: Kind
    metric: Metric
    shots: tuple[str, ...] = ()
    id: Column = "question_id"
    image: Column = "image"
    question: Column = "question"
    answers: Column = "answers"
    choices: Column | None = None
    reasoning: Column | None = None
    metadata: tuple[str, ...] = ()
    folder: str = ""
    original: Callable[[Path, str], Rows | None] | None = None
    together: Column | None = None
    more_images: Callable[[Row], Sequence[Any]] = lambda row: ()
    wanted: Callable[[Row], bool] = lambda row: True
    answer_set: tuple[str, ...] = ()
    parse: Callable[[str, Example], str] | None = None
    totals: Totals | None = None
    judge: JudgeRule | None = None

    def __call__(self, limit: int, *, seed: int, data: str = "", form: Form | None = None, split: str = "") -> Task:
        """The task with up to `limit` queries, a seeded draw, from a folder or, without one, from the hub.

        Raises:
            TaskError: a file, column or row that can't be scored.
        """
        folder = self._folder(data)
        asked = self._rows(folder, (split,) if split else self.queries)
        positions = self._positions(asked)
        selected = self._draw(asked, positions, limit=limit, seed=seed)
        shown = self._rows(folder, self.shots, else_=asked) if self.shots else asked
        pool = positions if shown is asked else self._positions(shown)
        style = STYLES[self.kind]
        how = form or style.form
        return Task(
            name=self.name,
            queries=self._examples(asked, selected),
            pool=Pool(len(pool), lambda places: self._examples(shown, [pool[place] for place in places])),
            pool_answers=list(self._prior(shown)),
            ask=style.chat if how == "chat" else style.plain,
            metric=self.metric,
            form=how,
            stops=() if how == "chat" else style.stops,
            max_tokens=style.max_tokens,
            clean=str.strip if how == "chat" else style.clean,
            parse=self.parse or (_letter if self.choices is not None else None),
            totals=self.totals,
            judge=self.judge,
        )

    def _folder(self, data: str) -> Path:
        folder = Path(data) if data else Path(snapshot_download(self.hub, repo_type="dataset"))
        if not folder.is_dir():
            raise TaskError(f"no folder {folder}; --data takes the folder of {self.name}, laid out as {self.hub}")
        return folder / self.name if (folder / self.name).is_dir() else folder

    def _rows(self, folder: Path, names: Sequence[str], *, else_: Rows | None = None) -> Rows:
        for split in names:
            found = self.original(folder, split) if self.original is not None else None
            found = found or parquet_rows(folder, split, config=self.folder.format(split=split))
            found = found or json_rows(folder, split)
            if found is not None:
                if not found.count:
                    raise TaskError(f"{found.name} has no rows")
                return found
        if else_ is not None:
            return else_
        there = ", ".join(splits(folder)) or "none"
        raise TaskError(f"{self.name}: no split {' or '.join(names)} in {folder}; splits there: {there}")

    def _positions(self, rows: Rows) -> list[int]:
        """Positions of the rows that belong to the task; no two may have one id."""
        seen: dict[str, int] = {}
        positions = []
        for position, row in numbered(rows):
            if self.wanted(row):
                name = str(self._cell(row, self.id, where=f"{rows.name}, row {position}"))
                if name in seen:
                    raise TaskError(f"{rows.name}: rows {seen[name]} and {position} have one id, {name!r}")
                seen[name] = position
                positions.append(position)
        if not positions:
            raise TaskError(f"{rows.name} has no row that belongs to {self.name}")
        return positions

    def _draw(self, rows: Rows, positions: Sequence[int], *, limit: int, seed: int) -> list[int]:
        """Positions of up to `limit` queries, in the order of the rows."""
        if self.together is None:
            order = rng(seed, "queries", 0).permutation(len(positions))[:limit]
            return [positions[place] for place in sorted(order.tolist())]
        groups: dict[str, list[int]] = {}
        kept = set(positions)
        for position, row in numbered(rows):
            if position in kept:
                name = str(self._cell(row, self.together, where=f"{rows.name}, row {position}"))
                groups.setdefault(name, []).append(position)
        names = list(groups)
        selected: list[int] = []
        for place in rng(seed, "queries", 0).permutation(len(names)).tolist():
            if len(selected) + len(groups[names[place]]) <= limit:
                selected += groups[names[place]]
        if not selected:
            raise TaskError(
                f"{self.name} asks {len(groups[names[0]])} questions together; a limit of {limit} is too low"
            )
        return sorted(selected)

    def _prior(self, rows: Rows) -> Iterator[str]:
        for position, row in numbered(rows):
            if self.wanted(row):
                where = f"{rows.name}, row {position}"
                yield self._answers(row, self._choices(row, where), where)[0]

    def _examples(self, rows: Rows, positions: Sequence[int]) -> list[Example]:
        pairs = zip(positions, rows.take(positions), strict=True)
        return [self._example({"#": position, **row}, where=f"{rows.name}, row {position}") for position, row in pairs]

    def _example(self, row: Row, *, where: str) -> Example:
        question = self._cell(row, self.question, where=where) if self.question else ""
        if not isinstance(question, str) or (self.question and not question.strip()):
            raise TaskError(f"{where} has no question: found {question!r}")
        choices = self._choices(row, where)
        more = tuple(picture(value, where=where) for value in self.more_images(row))
        marks = [number for number in range(1, 10) if f"<image {number}>" in question + "".join(choices)]
        if marks and max(marks) > 1 + len(more):
            raise TaskError(f"{where}: the question shows <image {max(marks)}> of {1 + len(more)} pictures")
        return Example(
            id=str(self._cell(row, self.id, where=where)),
            image=picture(self._cell(row, self.image, where=where), where=where),
            question=question.strip(),
            answers=self._answers(row, choices, where),
            more_images=more,
            choices=choices,
            reasoning=str(self._cell(row, self.reasoning, where=where) or "") if self.reasoning else "",
            metadata={name: str(self._cell(row, name, where=where)) for name in self.metadata},
        )

    def _choices(self, row: Row, where: str) -> tuple[str, ...]:
        if self.choices is None:
            return ()
        found = self._cell(row, self.choices, where=where)
        if isinstance(found, str):  # MMMU writes a list as text
            try:
                found = ast.literal_eval(found)
            except (ValueError, SyntaxError) as error:
                raise TaskError(f"{where}: the choices are no list: {found!r}") from error
        choices = tuple(str(choice).strip() for choice in found or ())
        if len(choices) == 1 or len(set(choices)) != len(choices) or not all(choices):
            raise TaskError(f"{where}: choices must be two or more different texts; found {list(choices)}")
        return choices

    def _answers(self, row: Row, choices: Sequence[str], where: str) -> tuple[str, ...]:
        found = self._cell(row, self.answers, where=where)
        if choices:
            return (self._chosen(found, choices, where),)
        texts = list(found) if isinstance(found, list | tuple) else [found]
        if not all(isinstance(text, str) for text in texts) or not any(text.strip() for text in texts):
            raise TaskError(f"{where} needs at least one answer, each a text; found {found!r}")
        if self.answer_set:
            texts = [text.strip().lower() for text in texts]
            if not set(texts) <= set(self.answer_set):
                raise TaskError(f"{where}: the answer must be {' or '.join(self.answer_set)}; found {found!r}")
        counts = Counter(texts)
        return tuple(sorted(texts, key=lambda text: -counts[text]))  # the commonest first: it is shown in shots

    def _chosen(self, found: Any, choices: Sequence[str], where: str) -> str:
        letters = LETTERS[: len(choices)]
        if isinstance(found, int) or (isinstance(found, str) and found.strip().isdecimal()):
            if not 0 <= int(found) < len(choices):
                raise TaskError(f"{where}: answer {found} of {len(choices)} choices, counted from 0")
            return letters[int(found)]
        if isinstance(found, str) and len(found.strip()) == 1 and found.strip().upper() in letters:
            return found.strip().upper()
        raise TaskError(f"{where}: the answer must be one of {', '.join(letters)}; found {found!r}")

    def _cell(self, row: Row, column: Column, *, where: str) -> Any:
        try:
            return row[column] if isinstance(column, str) else column(row)
        except KeyError as error:
            raise TaskError(f"{where} has no column {error}; found {', '.join(row)}") from error
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            if isinstance(error, TaskError):
                raise
            raise TaskError(f"{where} is not laid out as in {self.hub}: {error}") from error


def numbered(rows: Rows) -> Iterator[tuple[int, Row]]:
    """Each row without its pictures and its position, which is also its id where a data set has none (`#`)."""
    return ((position, {"#": position, **row}) for position, row in enumerate(rows.light()))


def _letter(written: str, query: Example) -> str:
    return letter_of(written, query.choices) if query.choices else written


def by_likelihood(task: Task) -> Task:
    """`task` where choices are not listed: each one is put behind the question, and the likeliest is the answer.

    Source: SEED-Bench, https://arxiv.org/abs/2307.16125, section 3.3.
    """
    if not all(query.choices for query in task.queries):
        raise ValueError(f"task {task.name} has questions without choices, so nothing can be chosen by likelihood")
    return replace(task, ask=ask_vqa if task.form == "plain" else _short_chat)


def people(row: Row) -> list[str]:
    """The answers of people: texts, or dicts that hold one each."""
    return [given["answer"] if isinstance(given, dict) else given for given in row["answers"]]


def lettered(row: Row) -> list[str]:
    """Choices in columns A, B, C, ..., as many as are filled."""
    texts = [str(row[letter]) for letter in LETTERS[:8] if row.get(letter) is not None]
    return [text for text in texts if text and text != "nan"]
