"""Which files a part was made of, so that a later try knows whether it still holds: each by name, size and time."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

Stamp = tuple[int, int] | None
"""Size in bytes and time of the last change in nanoseconds; None of a file that is not there."""

_WATCHES: list[dict[str, Stamp]] = []
"""The watches that are open. Not a `ContextVar`: Lance reads documents in a thread of its own."""


@contextmanager
def watch_files() -> Iterator[dict[str, Stamp]]:
    """The stamps of all files that are noted inside, as they were when they were first noted.

    A process works on one shard at a time, so all that is noted is of that shard.
    """
    seen: dict[str, Stamp] = {}
    _WATCHES.append(seen)
    try:
        yield seen
    finally:
        _WATCHES.remove(seen)


def note_file(path: Path) -> None:
    """Notes a file that was read or looked for."""
    for seen in _WATCHES:
        if (name := str(path)) not in seen:
            seen[name] = stamp(path)


def stamp(path: str | Path) -> Stamp:
    """The stamp of a file as it is now."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):  # also a name with a zero byte
        return None
    return status.st_size, status.st_mtime_ns


def changed_files(stamps: Mapping[str, Stamp | list[int]]) -> list[str]:
    """The files that are no longer as their stamps say, in order."""
    return [name for name, before in stamps.items() if (tuple(before) if before else None) != stamp(name)]
