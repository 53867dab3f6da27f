"""A store tokenized once: its tokens in columns beside its texts, named by the tokenizer that made them.

The columns come as new files; texts and images are not written again
(https://lance.org/guide/data_evolution/). A store may hold the tokens of several tokenizers.
"""

from collections.abc import Callable

import pyarrow as pa

from mm1.data.image import size_of
from mm1.data.store import LENGTH, SIZES, TOKENS, Store, StoreError, lance
from mm1.data.tokenizer import Tokenizer

_SIZE = pa.struct([("width", pa.int32()), ("height", pa.int32())])
_BATCH = 256

Columns = Callable[[pa.RecordBatch], list[list]]


def tokenize_store(store: Store, tokenizer: Tokenizer, *, name: str, said: Callable[[int], None]) -> list[str]:
    """The names of the columns that were added: none when the store has them all.

    `tokens_FINGERPRINT` (for each text its ids, null for an image) and `length_FINGERPRINT` (tokens of the whole
    document, int32); `image_sizes` (for each image its width and height in pixels, null for a text and for an image
    that cannot be read), once for all tokenizers. Columns that documents appended since then lack are made anew. Each
    step is there whole or not at all, so a stopped command is simply given again. `name` is what messages call the
    tokenizer; `said` gets the documents done since it was last called, of twice as many as the store has.

    Raises:
        StoreError: a store that cannot be read or written.
    """
    tokens = [
        pa.field(TOKENS + tokenizer.fingerprint, pa.list_(pa.list_(pa.int32())), metadata={"tokenizer": name}),
        pa.field(LENGTH + tokenizer.fingerprint, pa.int32()),
    ]

    def tokenized(batch: pa.RecordBatch) -> list[list]:
        texts = batch["texts"].to_pylist()
        found = iter(tokenizer.encode_many([text for document in texts for text in document if text is not None]))
        ids = [[None if text is None else next(found) for text in document] for document in texts]
        return [ids, [sum(len(part) for part in document if part is not None) for document in ids]]

    def measured(batch: pa.RecordBatch) -> list[list]:
        return [[[_size(image) for image in document] for document in batch["images"].to_pylist()]]

    added = _add(store, tokens, tokenized, reads="texts", said=said)
    return added + _add(store, [pa.field(SIZES, pa.list_(_SIZE))], measured, reads="images", said=said)


def _add(
    store: Store, fields: list[pa.Field], columns: Columns, *, reads: str, said: Callable[[int], None]
) -> list[str]:
    """The names of `fields`, which the table has afterwards for every document; none when it had them."""
    table, schema = lance().dataset(store.path), pa.schema(fields)
    last = schema.names[-1]  # of tokens their lengths, which are quick to look through
    held = [name for name in schema.names if name in table.schema.names]

    def batch_of(batch: pa.RecordBatch) -> pa.RecordBatch:
        made = [pa.array(values, field.type) for values, field in zip(columns(batch), fields, strict=True)]
        said(len(batch))
        return pa.RecordBatch.from_arrays(made, schema=schema)

    try:
        if held and not table.count_rows(f"{last} IS NULL"):
            said(len(store))
            return []
        if held:
            table.drop_columns(held)
        udf = lance().batch_udf(output_schema=schema)(batch_of)
        table.add_columns(udf, read_columns=[reads], batch_size=_BATCH)
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot add {schema.names} to {store.path}: {error}") from error
    return schema.names


def _size(image: bytes | None) -> dict[str, int] | None:
    """Width and height of an encoded image, from its header."""
    size = size_of(image) if image is not None else None
    return {"width": size[0], "height": size[1]} if size else None
