"""The end of a preparation on the terminal: a short table of what was read, kept and left out, and why."""

from collections.abc import Iterator
from pathlib import Path

from mm1.prepare.bounded_read import MISSING, MISSING_HINT
from mm1.prepare.card import PrepareResult
from mm1.prepare.ledger import Ledger

_MOST_REASONS = 12  # of each list
_LONGEST_NAME = 60  # letters of the first example


def exit_status(result: PrepareResult, *, strict: bool) -> int:
    """3 if a part failed or, when `strict`, if something was left out that nobody asked to leave out; else 0."""
    return 3 if result.failed or (strict and result.ledger.unexpected()) else 0


def summary_lines(result: PrepareResult, folder: Path) -> Iterator[str]:
    """The lines of the table, and the files to look at."""
    for name, documents in result.stores.items():
        yield f"{folder / name}.lance: {documents:,} documents"
    yield from ledger_lines(result.ledger)
    if result.ledger.examples:
        yield f"examples of each reason: {folder / 'dropped.jsonl'}"
    yield f"card: {folder / 'card.html'}"


def ledger_lines(ledger: Ledger) -> Iterator[str]:
    """The counts of records and pictures, and the reasons of those that were left out."""
    yield f"{'':10}{'read':>12}{'kept':>12}{'left out':>12}{'failed':>12}"
    for name, account in (("records", ledger.records), ("pictures", ledger.pictures)):
        counts = (account.read, account.kept, account.dropped.total(), account.failed)
        yield f"{name:10}" + "".join(f"{count:>12,}" for count in counts)
    yield from _reasons(ledger, "left out by the rules:", expected=True)
    yield from _reasons(ledger, "left out because something is wrong with the input:", expected=False)


def failure_lines(result: PrepareResult) -> Iterator[str]:
    """A line for each part that failed."""
    for name, failure in result.failed.items():
        read = f" (after {failure.records:,} records)" if failure.records else ""
        yield f"failed: {name}: {failure.error}{read}"
    if not result.stores:
        yield "no document is left, and nothing was written"
    if result.failed:
        yield "repair or remove these files and give the same command again: the rest is not read a second time"


def _reasons(ledger: Ledger, title: str, *, expected: bool) -> Iterator[str]:
    accounts = (("records", ledger.records.dropped), ("pictures", ledger.pictures.dropped), ("files", ledger.skipped))
    entries = [
        (count, what, reason)
        for what, counts in accounts
        for reason, count in counts.items()
        if (reason in ledger.expected) == expected
    ]
    if entries:
        yield title
    entries.sort(key=lambda entry: -entry[0])
    for count, what, reason in entries[:_MOST_REASONS]:
        yield f"{count:>10,} {what:9} {reason}" + ("" if expected else _first(ledger, what, reason))
    if len(entries) > _MOST_REASONS:
        yield f"{'':10} and {len(entries) - _MOST_REASONS} more reasons, on the card"
    if not expected and MISSING in ledger.pictures.dropped:
        yield f"{'':10} {MISSING_HINT}"


def _first(ledger: Ledger, what: str, reason: str) -> str:
    """Where the first example of a reason stands, and what it says of itself: the name of a file, a size, an error."""
    examples = (one for one in ledger.examples if f"{one.what}s" == what and one.reason == reason)
    example = next(examples, None)
    if example is None:
        return ""
    parts = [part for part in (example.position, example.detail) if part and len(part) <= _LONGEST_NAME]
    return f"; first: {', '.join(parts)}" if parts else ""
