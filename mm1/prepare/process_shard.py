"""One part of a preparation: its documents are read, screened and kept, with what has to be remembered of them."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mm1.data.store import write_store
from mm1.document import Document
from mm1.prepare.dedup import Guard, PrintsFile, prints_of
from mm1.prepare.filters.image_filters import Bounds, Seen, screened
from mm1.prepare.filters.text_filters import FILTERS, language_of
from mm1.prepare.readers.kinds import KINDS
from mm1.prepare.request import Order
from mm1.prepare.shard import Part


def do_part(order: Order, part: Part, place: Path, *, guard: Guard | None = None) -> str:
    """Why the part failed; nothing when its documents and their prints lie in the folder `place`.

    The folder appears whole or not at all, whoever else does the same part at the same time.
    """
    made = place.with_name(f"{place.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    drops: Counter[str] = Counter()
    faults: list[Exception] = []
    with PrintsFile(made) as prints:
        wanted = _wanted(order, part, drops, guard=guard)
        write_store(_remembered(wanted, prints, faults), made / "documents.lance")
    if faults:
        shutil.rmtree(made)
        return f"{type(faults[0]).__name__}: {faults[0]}"
    (made / "drops.json").write_text(json.dumps(drops), encoding="utf-8")
    try:
        made.rename(place)
    except OSError:
        if not place.is_dir():
            raise
        shutil.rmtree(made)  # another process was quicker
    return ""


def _wanted(order: Order, part: Part, drops: Counter[str], *, guard: Guard | None) -> Iterator[Seen]:
    """The part's documents that may stay."""
    bounds = Bounds(order.min_side, order.max_aspect, order.max_images, order.max_side)
    said = {"licence": order.licence, "language": order.language}
    for document in KINDS[part.kind](part, drops):
        drops["read"] += 1
        drops["pictures read"] += len(document.images)
        why = _fault(order, document)
        if why is not None:
            drops[why] += 1
            continue
        seen = screened(document, bounds, drops)
        why = guard.fault(seen) if guard is not None else None
        if why is not None:
            drops[why] += 1
            continue
        metadata = {**{key: value for key, value in said.items() if value}, **document.metadata}
        yield Seen(replace(seen.document, source=order.source or part.source, metadata=metadata), seen.looks)


def _fault(order: Order, document: Document) -> str | None:
    """Why a document is left out for what it says, or for having nothing to say."""
    if not document.text.strip():
        return "document without text"
    if order.language and (found := language_of(document.text)) != order.language:
        return f"document in another language ({found})"
    return next((why for name in order.filters if (why := FILTERS[name](document.text))), None)


def _remembered(wanted: Iterator[Seen], prints: PrintsFile, faults: list[Exception]) -> Iterator[Document]:
    """The documents, their prints written. Whatever strangers' bytes raise ends the part, in `faults`."""
    try:
        for seen in wanted:
            prints.add(prints_of([seen]))
            yield seen.document
    except Exception as error:
        faults.append(error)
