"""Inputs that are no files: chats of a task's training split, and rendered pages.

Evaluation makes the chats; the command line hands them over (`ChatsOfTask`).
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

from mm1.document import Document
from mm1.prepare.ledger import Dropped, Ledger
from mm1.prepare.shard import InputError, Shard

PREFIX = "task:"
"""What an input that is a task begins with."""

_CHATS_PER_SHARD = 1000


class Odd(Protocol):
    """A question that its task can't ask, counted under `name`; as a text it says what was found."""

    @property
    def name(self) -> str: ...


class TaskChats(Protocol):
    """The chats of one task. They can be pickled, and are read in the process that works on a shard."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Iterator[Document | Odd]:
        """The chats numbered [start, stop), each after the questions that are left out of it."""
        ...

    def evaluation_set(self) -> Iterator[Document]:
        """What must not be trained on."""
        ...


ChatsOfTask = Callable[[str, str], TaskChats]
"""(name of a task, folder of its data) -> its chats."""


def task_shards(path: str, chats: TaskChats) -> list[Shard]:
    """The shards of an input `task:NAME`."""
    name = path.removeprefix(PREFIX)
    starts = range(0, len(chats), _CHATS_PER_SHARD)
    return [
        Shard(
            f"{name} {number}",
            root=Path(),
            files=(),
            kind="task",
            documents=partial(chats.read, start, min(start + _CHATS_PER_SHARD, len(chats))),
        )
        for number, start in enumerate(starts)
    ]


def read_documents(shard: Shard, ledger: Ledger) -> Iterator[Document]:
    """The documents of a shard that has no files; an odd question is a record of its own.

    Raises:
        InputError: the shard has nothing that makes documents.
    """
    if shard.documents is None:
        raise InputError(f"{shard.name} is read from no file; --kind {shard.kind} goes with its own inputs only")
    for number, document in enumerate(shard.documents()):
        with ledger.record(f"record {number}") as record:
            if isinstance(document, Dropped):
                record.content = document.detail
                raise document
            if not isinstance(document, Document):
                record.content = str(document)
                raise Dropped(f"question that its task cannot ask: {document.name}", detail=str(document))
            yield document
