"""A published benchmark as a value: where its data are, how it is asked, how it is scored. Calling it gives the Task.

Prompts are MM1's for models that continue a text (`plain`, MM1, appendix), and LLaVA-1.5's for fine-tuned models
(`chat`, https://arxiv.org/abs/2310.03744, appendix A), with which most published scores were made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from huggingface_hub import snapshot_download

from mm1.eval.data.examples import Column, Columns, ExampleReader
from mm1.eval.data.rows import Row, Rows, TaskError, json_rows, parquet_rows, splits
from mm1.eval.fewshot import (
    CAPTION_STOPS,
    VQA_STOPS,
    Example,
    Pool,
    PromptStyle,
    Scoring,
    Task,
    ask_caption,
    ask_vqa,
    clean_vqa,
    rng,
)
from mm1.eval.metrics.answer_parsing import letter_of
from mm1.eval.metrics.short_answers import LETTERS

Kind = Literal["caption", "vqa", "choice", "free"]
Form = Literal["plain", "chat"]


def options(example: Example) -> str:
    """The choices with their letters, one per line."""
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, example.choices, strict=False))


def _choice_plain(example: Example) -> str:
    return f" Question: {example.question}\n{options(example)}\nAnswer:" if example.choices else ask_vqa(example)


def _choice_chat(example: Example) -> str:
    if not example.choices:
        return _short_chat(example)
    return f"{example.question}\n{options(example)}\nAnswer with the option's letter from the given choices directly."


def _short_chat(example: Example) -> str:
    return f"{example.question}\nAnswer the question using a single word or phrase."


@dataclass(frozen=True, slots=True)
class Styles:
    """How questions of one kind are asked in both forms, and the form that is the default."""

    plain: PromptStyle
    chat: PromptStyle
    default: Form


STYLES: dict[Kind, Styles] = {
    "caption": Styles(
        plain=PromptStyle(ask_caption, "plain", CAPTION_STOPS, 32),
        chat=PromptStyle(lambda _: "Provide a one-sentence caption for the provided image.", "chat", (), 32),
        default="plain",
    ),
    "vqa": Styles(
        plain=PromptStyle(ask_vqa, "plain", VQA_STOPS, 16, clean_vqa),
        chat=PromptStyle(_short_chat, "chat", (), 16),
        default="plain",
    ),
    "choice": Styles(
        plain=PromptStyle(_choice_plain, "plain", ("\n",), 32),
        chat=PromptStyle(_choice_chat, "chat", (), 32),
        default="chat",
    ),
    "free": Styles(
        plain=PromptStyle(ask_vqa, "plain", ("\nQuestion:",), 512),
        chat=PromptStyle(lambda example: example.question, "chat", (), 512),
        default="chat",
    ),
}


@dataclass(frozen=True, slots=True)
class Source:
    """The data set of a benchmark.

    paper     its paper or page
    hub       its name on the hub; the columns of a benchmark are those of this layout
    queries   splits of the queries: the first that exists is used
    shots     splits that shots come from; empty: the queries' own split
    training  splits whose questions become training chats; empty: `shots`, where they are a training split
    folder    the folder of its configuration on the hub; {split} is replaced
    original  reads a split of the first release into rows with the same columns; None if its files are not there
    belongs   which rows belong to the task
    together  questions with equal values in this column are drawn together or not at all (MME's pairs)
    """

    paper: str
    hub: str
    queries: tuple[str, ...]
    shots: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    folder: str = ""
    original: Callable[[Path, str], Rows | None] | None = None
    belongs: Callable[[Row], bool] = lambda row: True
    together: Column | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """One benchmark. `name` is its name in `mm1 eval --tasks`, `kind` the style of its questions (see `STYLES`)."""

    name: str
    kind: Kind
    source: Source
    columns: Columns
    scoring: Scoring

    def __call__(self, limit: int, *, seed: int, data: str = "", form: Form | None = None, split: str = "") -> Task:
        """The task with up to `limit` queries, a seeded draw. `data` is a folder; without it the hub's data are used.

        Raises:
            TaskError: a file, column or row that can't be scored.
        """
        folder = self._folder(data)
        queries = self._reader(folder, (split,) if split else self.source.queries)
        positions = self._positions(queries)
        selected = self._draw(queries, positions, limit=limit, seed=seed)
        shots = self._reader(folder, self.source.shots, otherwise=queries) if self.source.shots else queries
        pool = positions if shots is queries else self._positions(shots)
        answers = [shots.first_answer(row) for _, row in shots.light_rows() if self.source.belongs(row)]
        styles = STYLES[self.kind]
        scoring = self.scoring
        if scoring.parse is None and self.columns.choices is not None:
            scoring = replace(scoring, parse=_parse_letter)
        return Task(
            name=self.name,
            queries=queries.examples(selected),
            pool=Pool(len(pool), lambda indices: shots.examples([pool[index] for index in indices]), answers),
            style=styles.chat if (form or styles.default) == "chat" else styles.plain,
            scoring=scoring,
        )

    def split_readers(self, data: str) -> tuple[ExampleReader, ExampleReader]:
        """Readers of the training split and of the evaluation split in the folder `data`.

        Raises:
            TaskError: there is no training split, or one of both isn't in the folder.
        """
        splits = self.source.training or tuple(name for name in self.source.shots if name.startswith("train"))
        if not splits:
            raise TaskError(f"task {self.name} has no training split: its questions are for evaluation alone")
        folder = self._folder(data)
        return self._reader(folder, splits), self._reader(folder, self.source.queries)

    def _folder(self, data: str) -> Path:
        folder = Path(data) if data else Path(snapshot_download(self.source.hub, repo_type="dataset"))
        if not folder.is_dir():
            raise TaskError(
                f"no folder {folder}; --data takes the folder of {self.name}, laid out as {self.source.hub}"
            )
        return folder / self.name if (folder / self.name).is_dir() else folder

    def _reader(self, folder: Path, names: Sequence[str], *, otherwise: ExampleReader | None = None) -> ExampleReader:
        """A reader of the first of these splits that exists."""
        source = self.source
        for split in names:
            rows = source.original(folder, split) if source.original is not None else None
            rows = rows or parquet_rows(folder, split, config=source.folder.format(split=split))
            rows = rows or json_rows(folder, split)
            if rows is not None:
                if not rows.count:
                    raise TaskError(f"{rows.name} has no rows")
                return ExampleReader(rows, self.columns, source.hub)
        if otherwise is not None:
            return otherwise
        existing = ", ".join(splits(folder)) or "none"
        raise TaskError(f"{self.name}: no split {' or '.join(names)} in {folder}; splits there: {existing}")

    def _positions(self, reader: ExampleReader) -> list[int]:
        """Positions of the rows that belong to the task; no two may have the same id."""
        positions: dict[str, int] = {}
        for position, row in reader.light_rows():
            if self.source.belongs(row):
                name = reader.id(row)
                if name in positions:
                    raise TaskError(f"{reader.rows.name}: rows {positions[name]} and {position} have one id, {name!r}")
                positions[name] = position
        if not positions:
            raise TaskError(f"{reader.rows.name} has no row that belongs to {self.name}")
        return list(positions.values())

    def _draw(self, reader: ExampleReader, positions: Sequence[int], *, limit: int, seed: int) -> list[int]:
        """Positions of up to `limit` queries, in the order of the rows."""
        if self.source.together is None:
            order = rng(seed, "queries", 0).permutation(len(positions))[:limit]
            return [positions[index] for index in sorted(order.tolist())]
        groups: dict[str, list[int]] = {}
        candidates = set(positions)
        for position, row in reader.light_rows():
            if position in candidates:
                groups.setdefault(reader.text(row, self.source.together), []).append(position)
        names = list(groups)
        selected: list[int] = []
        for index in rng(seed, "queries", 0).permutation(len(names)).tolist():
            if len(selected) + len(groups[names[index]]) <= limit:
                selected += groups[names[index]]
        if not selected:
            raise TaskError(
                f"{self.name} asks {len(groups[names[0]])} questions together; a limit of {limit} is too low"
            )
        return sorted(selected)


def _parse_letter(written: str, query: Example) -> str:
    return letter_of(written, query.choices) if query.choices else written


def by_likelihood(task: Task) -> Task:
    """`task` without listed choices: each choice is scored after the question, and the likeliest is the answer.

    Source: SEED-Bench, https://arxiv.org/abs/2307.16125, section 3.3.
    """
    if not all(query.choices for query in task.queries):
        raise ValueError(f"task {task.name} has questions without choices, so nothing can be chosen by likelihood")
    return replace(task, style=replace(task.style, ask=ask_vqa if task.style.form == "plain" else _short_chat))
