"""A published benchmark as a value: where its data are, how it is asked, how it is scored. A call gives the Task."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mm1.eval.data.examples import Column, Columns, ExampleReader
from mm1.eval.data.hub import fetch
from mm1.eval.data.readings import READINGS
from mm1.eval.data.release_files import MissingKey, Reader, filled, subfolders
from mm1.eval.data.rows import OddRow, Row, Rows, TaskError, json_rows, parquet_rows, splits
from mm1.eval.data.styles import Form, Kind, ask_short, styles_of
from mm1.eval.data.submission import SUBMISSIONS
from mm1.eval.fewshot import (
    REPEATED,
    Example,
    Origin,
    Pool,
    PromptStyle,
    Scoring,
    Task,
    ask_vqa,
    rng,
)
from mm1.eval.metrics.letters import letter_of
from mm1.eval.shots import Rules


@dataclass(frozen=True, slots=True)
class Source:
    """The data set of a benchmark.

    paper     its paper or page
    hub       its name on the hub; the columns of a benchmark are those of this layout
    queries   splits of the queries: the first that exists is used
    shots     splits that shots come from; empty: the queries' own split
    training  splits whose questions become training chats; empty: `shots`, where they are a training split
    folder    the folder of its configuration on the hub; {split} is replaced
    original  reads a split of the first release into rows with the same columns
    belongs   which rows belong to the task
    together  questions with equal values in this column are drawn together or not at all (MME's pairs)
    files     patterns of a split's files on the hub, if they are not `data/SPLIT-*` or `FOLDER/SPLIT-*`
    """

    paper: str
    hub: str
    queries: tuple[str, ...]
    shots: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    folder: str = ""
    original: Reader | None = None
    belongs: Callable[[Row], bool] = lambda row: True
    together: Column | None = None
    files: tuple[str, ...] = ()

    def rows(self, folder: Path, split: str) -> Rows | None:
        """The rows of a split in a folder, or, as first released, in one of its subfolders; None without its files."""
        rows = self._original_rows(folder, split)
        rows = rows or parquet_rows(folder, split, config=self.folder.format(split=split))
        rows = rows or json_rows(folder, split)
        if rows is not None or self.original is None:
            return rows
        inner = (self._original_rows(subfolder, split) for subfolder in subfolders(folder))
        return next((rows for rows in inner if rows is not None), None)

    def _original_rows(self, folder: Path, split: str) -> Rows | None:
        if self.original is None:
            return None
        try:
            return self.original(folder, split)
        except MissingKey as error:
            raise TaskError(f"{error}; expected: {self.layout(split)}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, TaskError):
                raise
            raise TaskError(f"{folder} has another layout ({error}); expected: {self.layout(split)}") from error

    def layout(self, split: str) -> str:
        """The files of a split that are read, for a person who has others."""
        hub = f"{' or '.join(self.patterns([split]))} of {self.hub}"
        if self.original is None:
            return hub
        files = ", ".join(dict.fromkeys(filled(file, split) for file in self.original.files))
        return f"{files} as released with {self.paper}, or {hub}"

    def patterns(self, splits: Sequence[str]) -> list[str]:
        """The files of these splits on the hub."""
        patterns = self.files or ((f"{self.folder}/{{split}}-*",) if self.folder else ("data/{split}-*", "{split}-*"))
        return [pattern.format(split=split) for split in splits for pattern in patterns]


@dataclass(frozen=True, slots=True)
class Published:
    """One benchmark. `name` is its name in `mm1 eval --tasks`, `kind` the style of its questions.

    `ask` and `max_tokens` are the benchmark's own prompt to a fine-tuned model, and the longest answer to it.
    """

    name: str
    kind: Kind
    source: Source
    columns: Columns
    scoring: Scoring
    ask: Callable[[Example], str] | None = None
    max_tokens: int = 0

    def __call__(
        self,
        limit: int,
        *,
        seed: int,
        data: str = "",
        split: str = "",
        form: Form | None = None,
        rules: Rules = "default",
        zero_shot: bool = False,
    ) -> Task:
        """The task with up to `limit` queries, a seeded draw. `data` is a folder; without it the hub's data are used.

        `zero_shot`: only the queries' split is fetched from the hub, which the baselines then come from.

        Rows that can't be scored are left out, and counted in the task's `origin`.

        Raises:
            TaskError: a file that can't be read, or no row of it can be scored.
        """
        names = (split,) if split else self.source.queries
        folder = self._folder(data, names if zero_shot else (*names, *self.source.shots))
        queries = self._reader(folder, names)
        # the splits that are read by default have public answers: there, none at all is a fault of the files
        listed = self._listed(queries, may_be_hidden=bool(split))
        queries = replace(queries, hidden=listed.hidden)
        selected = self._draw(listed, limit=limit, seed=seed)
        shots = self._reader(folder, self.source.shots, otherwise=queries) if self.source.shots else queries
        pool = listed if shots.rows is queries.rows else self._listed(shots)
        examples, left_out = self._queries(queries, listed, selected=selected)
        scoring = self.scoring
        if scoring.parse is None and self.columns.choices is not None:
            scoring = replace(scoring, parse=_parse_letter)
        parse = READINGS.get(rules, {}).get(self.name, scoring.parse)
        scoring = replace(scoring, metric=scoring.by_rules.get(rules, scoring.metric), parse=parse)
        return Task(
            name=self.name,
            queries=examples,
            pool=Pool(
                len(pool.ids), _reader_of(shots, list(pool.ids)), [answers[0] for answers in pool.answers.values()]
            ),
            style=self.style(form, rules=rules),
            submission=SUBMISSIONS[self.name] if listed.hidden else None,
            scoring=scoring,
            split_references=list(listed.answers.values()) if scoring.within is not None else (),
            origin=Origin(
                f"{self.source.hub}, {len(listed.ids)} rows, {listed.digest()}",
                queries.split,
                left_out,
                len(listed.ids),
            ),
        )

    def split_readers(self, data: str) -> tuple[ExampleReader, ExampleReader]:
        """Readers of the training split and of the evaluation split in the folder `data`.

        Raises:
            TaskError: there is no training split, or one of both isn't in the folder.
        """
        splits = self.source.training or tuple(name for name in self.source.shots if name.startswith("train"))
        if not splits:
            raise TaskError(f"task {self.name} has no training split: its questions are for evaluation alone")
        folder = self._folder(data, (*splits, *self.source.queries))
        return self._reader(folder, splits), self._reader(folder, self.source.queries)

    def style(self, form: Form | None = None, *, rules: Rules = "default") -> PromptStyle:
        """How questions are asked in this form, or in the default one, under the rules of a source.

        Raises:
            ValueError: the source has no rules for the task, or not in this form.
        """
        forms = styles_of(self.name, self.kind, rules=rules).forms
        form = form or next(iter(forms))
        if form not in forms:
            raise ValueError(
                f"--protocol {rules} asks {self.name} in {' or '.join(forms)} form; leave --form {form} out"
            )
        style = forms[form]
        own = form == "chat" and self.ask is not None
        return replace(style, ask=self.ask or style.ask, max_tokens=self.max_tokens) if own else style

    def _queries(
        self, reader: ExampleReader, listed: "Listed", *, selected: Sequence[int]
    ) -> tuple[list[Example], Mapping[str, int]]:
        """The examples at the selected positions, and how many rows are left out, by the name of what they lack.

        Raises:
            OddRow: that of the first row, if no row can be scored.
        """
        left_out = Counter(odd.name for odd in listed.odd)
        examples: list[Example] = []
        odd_rows: list[OddRow] = []
        for position, one in zip(selected, reader.examples(selected), strict=True):
            if isinstance(one, OddRow):
                odd_rows.append(one)
                continue
            group = listed.groups.get(position, "")
            odd = (*one.odd, REPEATED) if position in listed.repeated else one.odd
            examples.append(replace(one, id=listed.ids[position], group=group, odd=odd))
        if not examples:
            raise odd_rows[0]
        left_out.update(odd.name for odd in odd_rows)
        return examples, left_out

    def positions(self, reader: ExampleReader) -> list[int]:
        """The positions of a split's rows that belong to the task and have an id."""
        return list(self._listed(reader, may_be_hidden=True).ids)

    def _folder(self, data: str, splits: Sequence[str]) -> Path:
        folder = Path(data) if data else fetch(self.source.hub, self.source.patterns(splits), task=self.name)
        if not folder.is_dir():
            raise TaskError(
                f"no folder {folder}; --data takes the folder of {self.name}, laid out as {self.source.hub}"
            )
        return folder / self.name if (folder / self.name).is_dir() else folder

    def _reader(self, folder: Path, names: Sequence[str], *, otherwise: ExampleReader | None = None) -> ExampleReader:
        """A reader of the first of these splits that exists."""
        source = self.source
        for split in names:
            rows = source.rows(folder, split)
            if rows is None or (not rows.count and otherwise is not None):
                continue
            if not rows.count:
                raise TaskError(f"{rows.name} has no rows")
            return ExampleReader(rows, self.columns, source.hub, split)
        if otherwise is not None:
            return otherwise
        existing = ", ".join(splits(folder)) or "none"
        raise TaskError(
            f"{self.name}: no split {' or '.join(names)} in {folder}; splits there: {existing}; "
            f"expected: {source.layout(names[0])}"
        )

    def _listed(self, reader: ExampleReader, *, may_be_hidden: bool = False) -> "Listed":
        """The rows that belong to the task.

        Raises:
            TaskError: there is none, or that of the first row, if no row can be read.
        """
        listed = Listed()
        taken: set[str] = set()
        for position, row in reader.light_rows():
            try:
                if not self.source.belongs(row):
                    continue
                name = reader.id(row)
                if self.source.together is not None:
                    listed.groups[position] = reader.text(row, self.source.together)
            except OddRow as odd:
                listed.odd.append(odd)
                continue
            if name in taken:
                listed.repeated.add(position)
                name = f"{name} (row {position})"
            taken.add(name)
            listed.ids[position] = name
            try:
                listed.answers[position] = reader.answers(row)
            except OddRow as odd:
                listed.unanswered.append(odd)
        is_hidden = may_be_hidden and self.name in SUBMISSIONS and listed.ids
        if not listed.answers and (listed.odd or listed.unanswered) and not is_hidden:
            raise (listed.odd or listed.unanswered)[0]
        if not listed.ids:
            raise TaskError(f"{reader.rows.name} has no row that belongs to {self.name}")
        return listed

    def _draw(self, listed: "Listed", *, limit: int, seed: int) -> list[int]:
        """Positions of up to `limit` queries, in the order of the rows; a group that counts as one is one query."""
        if self.source.together is None:
            positions = list(listed.ids)
            order = rng(seed, "queries", 0).permutation(len(positions))[:limit]
            return [positions[index] for index in sorted(order.tolist())]
        groups: dict[str, list[int]] = {}
        for position in listed.ids:
            groups.setdefault(listed.groups[position], []).append(position)
        names, whole = list(groups), self.scoring.whole
        selected: list[int] = []
        left = limit
        for index in rng(seed, "queries", 0).permutation(len(names)).tolist():
            cost = 1 if whole else len(groups[names[index]])
            if cost <= left:
                selected += groups[names[index]]
                left -= cost
        if not selected:
            raise TaskError(
                f"{self.name} asks {len(groups[names[0]])} questions together; a limit of {limit} is too low"
            )
        return sorted(selected)


@dataclass(slots=True)
class Listed:
    """The rows of one split that belong to a task, by position, without their images.

    ids         the id of each; that of a row whose id an earlier one has names its row
    answers     the right answers of each that has any
    groups      the group of each, if questions are drawn together
    repeated    positions of rows whose id an earlier row has
    odd         the errors of rows that can't be read
    unanswered  the errors of rows without a right answer
    """

    ids: dict[int, str] = field(default_factory=dict)
    answers: dict[int, tuple[str, ...]] = field(default_factory=dict)
    groups: dict[int, str] = field(default_factory=dict)
    repeated: set[int] = field(default_factory=set)
    odd: list[OddRow] = field(default_factory=list)
    unanswered: list[OddRow] = field(default_factory=list)

    @property
    def hidden(self) -> bool:
        """Whether no row has an answer, or all have MMMU's "?", as in a test split."""
        return all(answers == ("?",) for answers in self.answers.values())

    def digest(self) -> str:
        """A short hash of ids and answers, by which two runs know that they asked the same data."""
        rows = [f"{name}\t{self.answers.get(position, ('',))[0]}\n" for position, name in self.ids.items()]
        return hashlib.sha256("".join(rows).encode()).hexdigest()[:12]


def _reader_of(reader: ExampleReader, positions: list[int]) -> Callable[[list[int]], list[Example | None]]:
    """What reads examples of a pool by their index."""

    def read(indices: list[int]) -> list[Example | None]:
        examples = reader.examples([positions[index] for index in indices])
        return [None if isinstance(one, OddRow) or not one.answers else one for one in examples]

    return read


def _parse_letter(written: str, query: Example) -> str:
    return letter_of(written, query.choices) if query.choices else written


def by_likelihood(task: Task) -> Task:
    """`task` without listed choices: each choice is scored after the question, and the likeliest is the answer.

    Source: SEED-Bench, https://arxiv.org/abs/2307.16125, section 3.3.
    """
    if not all(query.choices for query in task.queries):
        raise ValueError(f"task {task.name} has questions without choices, so nothing can be chosen by likelihood")
    return replace(task, style=replace(task.style, ask=ask_vqa if task.style.form == "plain" else ask_short))
