"""A store tokenized once: the tokens of its texts in further columns, named after their tokenizer.

The columns are new files; texts and images are not written again (https://lance.org/guide/data_evolution/). A store may
hold the tokens of several tokenizers.
"""

from collections.abc import Callable

import pyarrow as pa

from mm1.data.image import size_of
from mm1.data.store import LENGTH, SIZES, TOKENS, Store, StoreError, lance
from mm1.data.tokenizer import Tokenizer

_SIZE = pa.struct([("width", pa.int32()), ("height", pa.int32())])
_BATCH = 256

Columns = Callable[[pa.RecordBatch], list[list]]


def tokenize_store(store: Store, tokenizer: Tokenizer, *, name: str, progress: Callable[[int], None]) -> list[str]:
    """The names of the columns that were added: none if the store had them all.

    `tokens_FINGERPRINT` has for each text its ids, null for an image, and `length_FINGERPRINT` the number of tokens of
    the document (int32). `upright_sizes` has for each image its width and height in pixels, null for a text and for an
    unreadable image; it serves all tokenizers. Columns that lack documents appended since are written again. Each step
    is done whole or not at all, so that a stopped command can be repeated. `name` is the tokenizer's name in messages.
    `progress` gets the number of documents done since its last call; in all, each document counts twice.

    Raises:
        StoreError: the store cannot be read or written.
    """
    tokens = [
        pa.field(TOKENS + tokenizer.fingerprint, pa.list_(pa.list_(pa.int32())), metadata={"tokenizer": name}),
        pa.field(LENGTH + tokenizer.fingerprint, pa.int32()),
    ]

    def token_columns(batch: pa.RecordBatch) -> list[list]:
        texts = batch["texts"].to_pylist()
        encoded = iter(tokenizer.encode_many([text for document in texts for text in document if text is not None]))
        ids = [[None if text is None else next(encoded) for text in document] for document in texts]
        return [ids, [sum(len(of_text) for of_text in document if of_text is not None) for document in ids]]

    def size_columns(batch: pa.RecordBatch) -> list[list]:
        return [[[_size(image) for image in document] for document in batch["images"].to_pylist()]]

    added = _add(store, tokens, token_columns, reads="texts", progress=progress)
    return added + _add(store, [pa.field(SIZES, pa.list_(_SIZE))], size_columns, reads="images", progress=progress)


def _add(
    store: Store, fields: list[pa.Field], columns: Columns, *, reads: str, progress: Callable[[int], None]
) -> list[str]:
    """The names of the columns added to the table, computed by `columns` from the column `reads`.

    None if the table has them for every document.
    """
    table, schema = lance().dataset(store.path), pa.schema(fields)
    last = schema.names[-1]  # of the token columns the lengths, which are fast to scan
    existing = [name for name in schema.names if name in table.schema.names]

    def add_to(batch: pa.RecordBatch) -> pa.RecordBatch:
        arrays = [pa.array(values, field.type) for values, field in zip(columns(batch), fields, strict=True)]
        progress(len(batch))
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    try:
        if existing and not table.count_rows(f"{last} IS NULL"):
            progress(len(store))
            return []
        if existing:
            table.drop_columns(existing)
        udf = lance().batch_udf(output_schema=schema)(add_to)
        table.add_columns(udf, read_columns=[reads], batch_size=_BATCH)
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot add {schema.names} to {store.path}: {error}") from error
    return schema.names


def _size(image: bytes | None) -> dict[str, int] | None:
    size = size_of(image) if image is not None else None
    return {"width": size[0], "height": size[1]} if size else None
