"""One part of a preparation: its documents are read, screened and kept, with what has to be remembered of them."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from mm1.data.store import write_store
from mm1.document import Document
from mm1.prepare.copies import Guard, PrintsFile, prints_of
from mm1.prepare.order import Order
from mm1.prepare.part import Part
from mm1.prepare.prose import FILTERS, language_of
from mm1.prepare.readers import KINDS
from mm1.prepare.screen import Bounds, looks, screened


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


def _wanted(
    order: Order, part: Part, drops: Counter[str], *, guard: Guard | None
) -> Iterator[tuple[Document, np.ndarray]]:
    """The part's documents that may stay, each with its pictures' fingerprints."""
    bounds = Bounds(order.smallest, order.aspect, order.a_page, order.side)
    said = {"licence": order.licence, "language": order.language}
    for document in KINDS[part.kind](part, drops):
        drops["read"] += 1
        drops["pictures read"] += len(document.images)
        document = screened(document, bounds, drops)
        why = _fault(order, document)
        seen = looks(document) if why is None else np.zeros(0, np.uint64)
        if why is None and guard is not None:
            why = guard.fault(document, seen)
        if why is not None:
            drops[why] += 1
            continue
        metadata = {**{key: value for key, value in said.items() if value}, **document.metadata}
        yield replace(document, source=order.source or part.source, metadata=metadata), seen


def _fault(order: Order, document: Document) -> str | None:
    """Why a document is left out for what it says, or for having nothing to say."""
    if not document.text.strip():
        return "document without text"
    if order.language and (found := language_of(document.text)) != order.language:
        return f"document in another language ({found})"
    return next((why for name in order.filters if (why := FILTERS[name](document.text))), None)


def _remembered(
    documents: Iterator[tuple[Document, np.ndarray]], prints: PrintsFile, faults: list[Exception]
) -> Iterator[Document]:
    """The documents, their prints written. Whatever strangers' bytes raise ends the part, in `faults`."""
    try:
        for document, seen in documents:
            prints.add(prints_of([(document, seen)]))
            yield document
    except Exception as error:
        faults.append(error)
