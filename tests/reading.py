"""Reads an input as `mm1 prepare` does, without writing stores."""

from collections import Counter
from pathlib import Path

from mm1.document import Document
from mm1.prepare.ledger import WITH_ITS_RECORD, Ledger
from mm1.prepare.process_shard import kept_documents
from mm1.prepare.readers.kinds import detect_kind, list_shards
from mm1.prepare.request import Input, PrepareRequest


def read(path: Path, kind: str = "", **more) -> tuple[list[Document], Ledger]:
    """The documents of the input, of its detected kind unless one is named, and what was counted."""
    ledger = Ledger(path.name)
    request = PrepareRequest(inputs=[Input(path=str(path), kind=kind or detect_kind(path))], min_side=1)
    shards = list_shards(path, request.inputs[0].kind, **more)
    ledger.skipped.update(reason for shard in shards for reason in shard.skipped)
    return [document for shard in shards for document, _ in kept_documents(request, shard, ledger)], ledger


def drops(ledger: Ledger) -> Counter[str]:
    """What was left out by reason: a record and its picture count once, pictures that went with their record not."""
    counts = (ledger.records.dropped | ledger.pictures.dropped) + ledger.skipped
    del counts[WITH_ITS_RECORD]
    return counts
