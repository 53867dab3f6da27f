"""A task's training split as chats for fine-tuning, each question asked as the task's evaluation asks it.

Questions about one picture are turns of one chat, as LLaVA-1.5 merges them (https://arxiv.org/abs/2310.03744,
appendix A).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mm1.document import Document, Piece, Text
from mm1.eval.data.examples import ExampleReader
from mm1.eval.data.published import STYLES, Published
from mm1.eval.data.rows import OddRow, TaskError
from mm1.eval.fewshot import Example, image_hash, with_images
from mm1.eval.index import find_task

MOST_TURNS = 20
"""Questions about one picture in a chat: twenty short ones and the 720 positions of a picture fit 2048."""

_EXAMPLES_IN_MEMORY = 64


@dataclass(frozen=True, slots=True)
class TrainingChats:
    """The chats of the training split of a task, whose data are in a folder. Pickled, it is no more than both names.

    Raises:
        ValueError: there is no such task. TaskError: it is not published, or its data have no training split.
    """

    task: str
    data: str

    def __len__(self) -> int:
        return len(_opened(self.task, self.data).chats)

    def read(self, start: int, stop: int, drops: Counter[str]) -> Iterator[Document]:
        """The chats numbered [start, stop). A question that the task can't ask is counted in `drops`."""
        split = _opened(self.task, self.data)
        for positions in split.chats[start:stop]:
            examples = list(_readable(split.training, positions, drops))
            if examples:
                yield _chat(self.task, split.published, examples)

    def evaluation_set(self) -> Iterator[Document]:
        """The pictures of the evaluation split, each once. Questions recur with other pictures, so they are left out.

        Raises:
            TaskError: the data have no evaluation split, or a picture in it can't be read.
        """
        split = _opened(self.task, self.data)
        positions = [p for p, row in split.evaluation.light_rows() if split.published.source.belongs(row)]
        seen: set[str] = set()
        for at in range(0, len(positions), _EXAMPLES_IN_MEMORY):
            for example in split.evaluation.examples(positions[at : at + _EXAMPLES_IN_MEMORY]):
                if isinstance(example, OddRow):
                    raise example
                images = [image for image in (example.image, *example.more_images) if image_hash(image) not in seen]
                seen.update(map(image_hash, images))
                if images:
                    yield Document(tuple(images), id=example.id, source=self.task)


@dataclass(frozen=True, slots=True)
class _Split:
    """An opened task: `chats` holds for each chat the positions of its questions in the training split."""

    published: Published
    training: ExampleReader
    evaluation: ExampleReader
    chats: Sequence[Sequence[int]]


@lru_cache(maxsize=1)
def _opened(name: str, data: str) -> _Split:
    task = find_task(name)
    if not isinstance(task, Published):
        raise TaskError(f"task {name} is of the shipped sample: train on its stores themselves, sample:*-train")
    if not Path(data).is_dir():
        raise TaskError(f"no folder {data!r}; data=FOLDER is the folder of {name}, laid out as {task.source.hub}")
    training, evaluation = task.split_readers(data)
    return _Split(task, training, evaluation, _grouped(task, training))


def _grouped(task: Published, training: ExampleReader) -> list[list[int]]:
    """The positions of the questions of each chat, in the order of the first question."""
    open_chats: dict[str, list[int]] = {}
    chats: list[list[int]] = []
    for position, row in training.light_rows():
        if not task.source.belongs(row):
            continue
        name = training.picture_name(row)
        chat = open_chats.get(name) if name is not None else None
        if chat is None or len(chat) == MOST_TURNS:
            chat = []
            chats.append(chat)
            if name is not None:
                open_chats[name] = chat
        chat.append(position)
    if not chats:
        raise TaskError(f"{training.rows.name} has no row that belongs to {task.name}")
    return chats


def _readable(reader: ExampleReader, positions: Sequence[int], drops: Counter[str]) -> Iterator[Example]:
    """The examples at `positions`, without those that can't be read."""
    for example in reader.examples(positions):
        if isinstance(example, OddRow):
            drops["question that its task cannot ask"] += 1
        else:
            yield example


def _chat(name: str, task: Published, examples: Sequence[Example]) -> Document:
    """One chat about a picture; its later questions come without the picture."""
    ask = STYLES[task.kind].chat.ask
    pieces: list[Piece] = []
    for number, example in enumerate(examples):
        question = ask(example)
        pieces += [Text(question, train=False)] if number else with_images(example, question)
        pieces.append(Text(example.answers[0].strip()))
    return Document(tuple(pieces), id=f"{name}/{examples[0].id}", metadata={"form": "chat"})
