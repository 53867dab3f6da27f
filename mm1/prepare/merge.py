"""Merges the shards into stores: copies of earlier documents and repeated pictures are removed."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from mm1.data.store import Store, write_store
from mm1.document import Document, Image
from mm1.prepare.bounded_read import MISSING, MISSING_HINT
from mm1.prepare.card import Failure, PrepareResult
from mm1.prepare.dedup import CopyRules, DetailsOf, Hashes, find_copies, first_64_bits, load_hashes, repeated_images
from mm1.prepare.images import sha256
from mm1.prepare.ledger import EXAMPLES, Dropped, Ledger
from mm1.prepare.process_shard import read_ledger, write_ledger
from mm1.prepare.second_look import Detail, detail

_DOCUMENTS_IN_MEMORY = 16
_MOST_FAILURES = 3  # in one line
_DETAILS_IN_MEMORY = 16  # of documents, up to 256 kB for each of their pictures


class NothingLeftError(ValueError):
    """All that was read was left out, or failed; `result` counts it."""

    def __init__(self, result: PrepareResult):
        super().__init__(_nothing_left(result.ledger, result.failed))
        self.result = result


def merge(
    shards: Sequence[Path],
    to: Path,
    *,
    rules: CopyRules,
    max_image_repeats: int,
    failed: Mapping[str, Failure],
    skipped: Mapping[str, int],
) -> PrepareResult:
    """What was kept and left out. The folder `to` then holds the stores `images` and `text`, each if it has documents,
    and the whole preparation's ledger. `skipped` are the files that no shard reads: number by reason.

    Raises:
        NothingLeftError: no document is left.
    """
    ledger = Ledger(skipped=Counter(skipped))
    for shard in shards:
        ledger.add(read_ledger(shard))
    for failure in failed.values():
        for account, count in ((ledger.records, failure.records), (ledger.pictures, failure.pictures)):
            account.read += count
            account.failed += count
    hashes = load_hashes(shards, to / "minhash")
    removals = _removals(hashes, rules, _details(shards), max_image_repeats)
    _enter(removals, shards, hashes, ledger)
    if not removals.kept.any():
        raise NothingLeftError(PrepareResult({}, ledger, dict(failed)))
    stores = {}
    for name, mask in (("images", removals.images_left > 0), ("text", removals.images_left == 0)):
        mask &= removals.kept
        if mask.any():
            stores[name] = write_store(_masked(shards, mask, removals.repeated), to / f"{name}.lance")
    (to / "minhash").unlink()
    if sum(stores.values()) != ledger.records.kept:
        raise RuntimeError(f"a fault of mm1: {sum(stores.values())} documents written, {ledger.records.kept} counted")
    write_ledger(ledger, to)
    return PrepareResult(stores, ledger, dict(failed))


def _nothing_left(ledger: Ledger, failed: Mapping[str, Failure]) -> str:
    """Why no document is left, in one line."""
    reasons = [f"failed: {name}: {failure.error}" for name, failure in list(failed.items())[:_MOST_FAILURES]]
    reasons += [f"and {len(failed) - _MOST_FAILURES} more failed"] if len(failed) > _MOST_FAILURES else []
    if ledger.records.dropped:
        dropped = (f"{reason}: {count}" for reason, count in ledger.records.dropped.most_common())
        reasons.append(f"left out: {', '.join(dropped)}")
    reasons += [f"not read: {reason}: {count}" for reason, count in ledger.skipped.items()]
    for example in ledger.examples[:1]:
        reasons.append(f"first: {', '.join(filter(None, (example.input, example.position, example.detail)))}")
    reasons += [MISSING_HINT] * (MISSING in ledger.records.dropped)
    return f"no document is left; {'; '.join(reasons) or 'nothing was read'}"


@dataclass(frozen=True, slots=True)
class _Removals:
    """What the comparison of all documents removes.

    documents      positions by reason
    kept           whether each document stays
    images_left    number of pictures of each document that are not repeated
    repeated       hashes of the pictures that are removed from the documents that stay
    reason         that of these pictures
    """

    documents: dict[str, np.ndarray]
    kept: np.ndarray
    images_left: np.ndarray
    repeated: frozenset[int]
    reason: str


def _details(shards: Sequence[Path]) -> DetailsOf:
    """The pictures of a document, for the second look; those of the last ones are kept."""
    stores = [Store(shard / "documents.lance") for shard in shards]
    starts = np.concatenate([[0], np.cumsum([len(store) for store in stores])])

    @lru_cache(maxsize=_DETAILS_IN_MEMORY)
    def details_of(position: int) -> tuple[Detail | None, ...]:
        number = int(np.searchsorted(starts, position, side="right")) - 1
        (document,) = stores[number].take([position - int(starts[number])])
        return tuple(detail(image.data) for image in document.images)

    return details_of


def _removals(hashes: Hashes, rules: CopyRules, details_of: DetailsOf, max_image_repeats: int) -> _Removals:
    copies = find_copies(hashes, rules, details_of=details_of)
    documents = {"copy of an earlier document": copies.exact, "near copy of an earlier document": copies.near}
    count = len(hashes.exact)
    kept = np.ones(count, bool)
    kept[copies.exact] = kept[copies.near] = False
    repeated = repeated_images(hashes, max_image_repeats) if max_image_repeats else np.zeros(0, np.uint64)
    owner = np.repeat(np.arange(count), hashes.image_counts)
    images_left = np.bincount(owner[~np.isin(hashes.images, repeated, kind="sort")], minlength=count)
    reason = f"picture in more than {max_image_repeats} documents"
    without = kept & (images_left < hashes.image_counts) & ~hashes.keeps_text
    documents[reason] = np.flatnonzero(without)
    return _Removals(documents, kept & ~without, images_left, frozenset(repeated.tolist()), reason)


def _enter(removals: _Removals, shards: Sequence[Path], hashes: Hashes, ledger: Ledger) -> None:
    """Enters the removals into the ledger."""
    for reason, positions in removals.documents.items():
        examples = _documents(shards, positions[:EXAMPLES])
        for position in positions:
            dropped, pictures = Dropped(reason, expected=True), int(hashes.image_counts[position])
            document = next(examples, Document(()))
            ledger.drop_kept(dropped, document, pictures=pictures, source=document.source)
    lost = (hashes.image_counts - removals.images_left)[removals.kept]
    if lost.any():
        ledger.pictures.kept -= int(lost.sum())
        ledger.pictures.dropped[removals.reason] += int(lost.sum())
        ledger.expected.add(removals.reason)


def _documents(shards: Sequence[Path], positions: np.ndarray) -> Iterator[Document]:
    """The documents at some positions of all shards, in order."""
    mask = np.zeros(int(positions.max()) + 1 if len(positions) else 0, bool)
    mask[positions] = True
    return _masked(shards, mask, frozenset())


def _masked(shards: Sequence[Path], mask: np.ndarray, repeated: frozenset[int]) -> Iterator[Document]:
    """The documents of all shards that the mask keeps, in order, without the repeated pictures."""
    start = 0
    for shard in shards:
        if start >= len(mask):
            break
        store = Store(shard / "documents.lance")
        positions = np.flatnonzero(mask[start : start + len(store)])
        start += len(store)
        for at in range(0, len(positions), _DOCUMENTS_IN_MEMORY):
            for document in store.take(positions[at : at + _DOCUMENTS_IN_MEMORY].tolist()):
                yield _without_images(document, repeated) if repeated else document


def _without_images(document: Document, repeated: frozenset[int]) -> Document:
    pieces = (p for p in document.pieces if not (isinstance(p, Image) and first_64_bits(sha256(p.data)) in repeated))
    return replace(document, pieces=tuple(pieces))
