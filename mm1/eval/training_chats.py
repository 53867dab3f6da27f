"""A task's training split as chats for fine-tuning, each question asked as the task's evaluation asks it.

Questions about one picture are turns of one chat, as LLaVA-1.5 merges them (https://arxiv.org/abs/2310.03744,
appendix A).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mm1.document import Document, Piece, Text
from mm1.eval.data.examples import ExampleReader
from mm1.eval.data.published import Published
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

    def read(self, start: int, stop: int) -> Iterator[Document | OddRow]:
        """The chats numbered [start, stop), each after the questions in it that the task can't ask."""
        split = _opened(self.task, self.data)
        for positions in split.chats[start:stop]:
            examples = []
            for one in split.training.examples(positions):
                if isinstance(one, OddRow):
                    yield one
                else:
                    examples.append(one)
            if examples:
                yield _chat(self.task, split.published, examples)

    def evaluation_set(self) -> Iterator[Document]:
        """The pictures of the evaluation split, each once. Questions recur with other pictures, so they are left out.

        Raises:
            TaskError: the data have no evaluation split.
        """
        split = _opened(self.task, self.data)
        positions = split.published.positions(split.evaluation)
        seen: set[str] = set()
        for at in range(0, len(positions), _EXAMPLES_IN_MEMORY):
            for example in split.evaluation.examples(positions[at : at + _EXAMPLES_IN_MEMORY]):
                if isinstance(example, OddRow):
                    continue  # evaluation leaves it out, too
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
    names = {position: training.picture_name(row) for position, row in training.light_rows()}
    for position in task.positions(training):
        name = names[position]
        chat = open_chats.get(name) if name is not None else None
        if chat is None or len(chat) == MOST_TURNS:
            chat = []
            chats.append(chat)
            if name is not None:
                open_chats[name] = chat
        chat.append(position)
    return chats


def _chat(name: str, task: Published, examples: Sequence[Example]) -> Document:
    """One chat about a picture; its later questions come without the picture."""
    ask = task.style("chat").ask
    pieces: list[Piece] = []
    for number, example in enumerate(examples):
        question = ask(example)
        pieces += [Text(question, train=False)] if number else with_images(example, question)
        pieces.append(Text(example.answers[0].strip()))
    return Document(tuple(pieces), id=f"{name}/{examples[0].id}", metadata={"form": "chat"})
