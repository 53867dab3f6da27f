"""The ledger of a preparation: every record and every picture is counted where it enters and where it leaves.

    read = kept + dropped, by reason + failed

A reader opens `ledger.record(...)` for each record that it meets. Inside of it, it yields one document or raises
`Dropped`; any other error costs that record alone. A picture that a record names and that cannot be had stands in the
document as a `MissingImage`: `filters/image_filters.py` decides what becomes of its record.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mm1.document import Document, Image
from mm1.prepare.shard import InputError

EXAMPLES = 20
"""Records, and pictures, of each reason that are kept for a person to look at."""

UNREADABLE = "record that cannot be read"
"""The reason of a record whose error nobody foresaw; its example says which."""

WITH_ITS_RECORD = "picture of a record that was left out"
"""The reason of a picture that was left out for no fault of its own."""

_LONGEST_LINE = 200  # characters of an example


class Dropped(Exception):
    """What is left out, a record or a picture: the message is the reason under which it is counted, in a few words.

    `expected` says that the user's settings or our rules leave it out, and that nothing is wrong with the input.
    `detail` says in the example what was found.
    """

    def __init__(self, reason: str, *, expected: bool = False, detail: str = ""):
        super().__init__(reason)
        self.reason, self.expected, self.detail = reason, expected, detail


@dataclass(frozen=True, slots=True)
class InlineImage(Image):
    """A picture inside a line of text: without it, the line goes on."""


@dataclass(frozen=True, slots=True)
class MissingImage(Image):
    """A picture that a record names and that cannot be had: the reason under which it is counted, and its name."""

    data: bytes = b""
    reason: str = ""
    name: str = ""
    inline: bool = False
    expected: bool = False


@dataclass(frozen=True, slots=True)
class Page(Document):
    """A document whose text can stand without its pictures; that of a caption or of a chat cannot."""


@dataclass(frozen=True, slots=True)
class Example:
    """Something that was left out, for a person to look at. `what` is `record` or `picture`."""

    reason: str
    what: str
    input: str
    position: str
    text: str
    detail: str = ""


@dataclass(slots=True)
class Account:
    """What became of the records, or of the pictures, that were read."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    failed: int = 0

    @property
    def missing(self) -> int:
        """How many were read and neither kept, nor dropped, nor failed: 0, or somebody counted wrongly."""
        return self.read - self.kept - self.dropped.total() - self.failed

    def add(self, other: "Account") -> None:
        """Adds what another account counted."""
        self.read += other.read
        self.kept += other.kept
        self.dropped.update(other.dropped)
        self.failed += other.failed

    def to_json(self) -> dict[str, Any]:
        """The account as the card shows it; reasons from the most frequent to the rarest."""
        dropped = dict(sorted(self.dropped.items(), key=lambda item: (-item[1], item[0])))
        return {"read": self.read, "kept": self.kept, "dropped": dropped, "failed": self.failed}


@dataclass(slots=True)
class Record:
    """The record that is being read. A reader sets `pictures`, how many it names, as soon as it knows."""

    position: str
    content: Any = ""
    pictures: int = 0


@dataclass(slots=True)
class Ledger:
    """The accounts of a part of the input `input`, or of a whole preparation.

    expected   the reasons that are the user's settings or our rules
    skipped    files, members and responses that are no records: number by reason
    examples   the first of each reason
    """

    input: str = ""
    records: Account = field(default_factory=Account)
    pictures: Account = field(default_factory=Account)
    expected: set[str] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)
    examples: list[Example] = field(default_factory=list)
    _record: Record = field(default_factory=lambda: Record(""))
    _examples_of: Counter[tuple[str, str]] = field(default_factory=Counter)

    @contextmanager
    def record(self, position: str, content: Any = "", *, pictures: int = 0) -> Iterator[Record]:
        """Counts a record; an error inside leaves it out, alone.

        `position` says where in the input it stands; its example shows a line of `content`.

        Raises:
            InputError: from inside: the part breaks off here, and fails as a whole.
        """
        self._record = record = Record(position, content, pictures)
        self.records.read += 1
        try:
            yield record
        except Exception as error:
            self.pictures.read += record.pictures
            if isinstance(error, InputError):
                raise
            self._drop(error, pictures=record.pictures)

    @contextmanager
    def document(self, document: Document) -> Iterator[None]:
        """Counts the pictures of the current record's document; an error inside leaves the document out, alone."""
        pictures = len(document.images)
        self.pictures.read += pictures
        dropped_before = self.pictures.dropped.total()
        self._record.content = document.text
        try:
            yield
        except Exception as error:
            self._drop(error, pictures=pictures - (self.pictures.dropped.total() - dropped_before))
        else:
            self.records.kept += 1
            self.pictures.kept += pictures - (self.pictures.dropped.total() - dropped_before)

    def drop_picture(self, dropped: Dropped) -> None:
        """Counts a picture of the current document as left out."""
        self._count(self.pictures, "picture", dropped)

    def drop_kept(self, dropped: Dropped, document: Document, *, pictures: int, source: str) -> None:
        """Counts a document that was kept so far as left out, with its pictures."""
        self.input, self._record = source, Record(document.id, document.text)
        self.records.kept -= 1
        self.pictures.kept -= pictures
        self._drop(dropped, pictures=pictures)

    def fail(self) -> None:
        """Counts all that was read as failed."""
        for account in (self.records, self.pictures):
            account.kept, account.failed = 0, account.read
            account.dropped.clear()
        self.examples.clear()

    def unexpected(self) -> dict[str, int]:
        """The reasons that are neither the user's settings nor our rules, with their number."""
        counts = self.records.dropped + self.pictures.dropped + self.skipped
        return {reason: count for reason, count in sorted(counts.items()) if reason not in self.expected}

    def add(self, other: "Ledger") -> None:
        """Adds what the ledger of another part counted."""
        self.records.add(other.records)
        self.pictures.add(other.pictures)
        self.expected |= other.expected
        self.skipped.update(other.skipped)
        for example in other.examples:
            self._keep(example)

    def to_json(self) -> dict[str, Any]:
        """The ledger without its examples."""
        return {
            "records": self.records.to_json(),
            "pictures": self.pictures.to_json(),
            "skipped": dict(sorted(self.skipped.items())),
            "expected": sorted(self.expected),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Ledger":
        """The ledger that `to_json` gave."""
        records, pictures = (
            Account(**{**value[name], "dropped": Counter(value[name]["dropped"])}) for name in ("records", "pictures")
        )
        expected, skipped = set(value["expected"]), Counter(value["skipped"])
        return Ledger(records=records, pictures=pictures, expected=expected, skipped=skipped)

    def _drop(self, error: Exception, *, pictures: int) -> None:
        if not isinstance(error, Dropped):
            error = Dropped(UNREADABLE, detail=f"{type(error).__name__}: {error}")
        self._count(self.records, "record", error)
        if pictures:
            self.pictures.dropped[WITH_ITS_RECORD] += pictures
            self.expected.add(WITH_ITS_RECORD)  # it is the record that something was wrong with

    def _count(self, account: Account, what: str, dropped: Dropped) -> None:
        account.dropped[dropped.reason] += 1
        if dropped.expected:
            self.expected.add(dropped.reason)
        if self._examples_of[what, dropped.reason] < EXAMPLES:
            position, text = self._record.position, _line(self._record.content)
            self._keep(Example(dropped.reason, what, self.input, position, text, dropped.detail[:_LONGEST_LINE]))

    def _keep(self, example: Example) -> None:
        if self._examples_of[example.what, example.reason] < EXAMPLES:
            self._examples_of[example.what, example.reason] += 1
            self.examples.append(example)


def _line(content: Any) -> str:
    """A line of text out of anything that a record may be: its strings, joined."""
    strings: list[str] = []
    length = 0
    for text in _strings(content):
        strings += text[: 2 * _LONGEST_LINE].split()
        length += len(text)
        if length > 2 * _LONGEST_LINE:
            break
    return " ".join(strings)[:_LONGEST_LINE].encode("utf-8", "replace").decode()


def _strings(content: Any, *, depth: int = 0) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, bytes):
        head = content[: 2 * _LONGEST_LINE]
        yield f"({len(content):,} bytes)" if b"\0" in head else head.decode("utf-8", "replace")
    elif isinstance(content, Mapping | list | tuple) and depth < 5:
        for value in content.values() if isinstance(content, Mapping) else content:
            yield from _strings(value, depth=depth + 1)
    elif content is not None:
        yield str(content)
