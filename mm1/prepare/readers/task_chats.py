"""Reads chats of a task's training split. Evaluation makes them; the command line hands them over (`ChatsOfTask`)."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

from mm1.document import Document
from mm1.prepare.ledger import Ledger
from mm1.prepare.shard import InputError, Shard

PREFIX = "task:"
"""What an input that is a task begins with."""

_CHATS_PER_SHARD = 1000


class TaskChats(Protocol):
    """The chats of one task. They can be pickled, and are read in the process that works on a shard."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int, drops: Counter[str]) -> Iterator[Document]:
        """The chats numbered [start, stop); what is left out is counted in `drops`."""
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
    """The documents of a shard that has no files; each is a record, and a question that is left out is none.

    Raises:
        InputError: the shard has nothing that makes documents.
    """
    if shard.documents is None:
        raise InputError(f"{shard.name} is read from no file; --kind {shard.kind} goes with its own inputs only")
    skipped: Counter[str] = Counter()
    for document in shard.documents(skipped):
        with ledger.record(document.id, document.text):
            yield document
    ledger.skipped.update(skipped)
