"""The sample's own tokenizer: a small byte-level BPE, trained on the texts of the sample."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mm1.document import Document

SPECIAL_TOKENS = ("<|pad|>", "<|begin|>", "<|end|>", "<|image|>", "<|user|>", "<|assistant|>")
"""Ids 0 to 5, in this order."""


def train_tokenizer(texts: Iterable[str], path: Path, *, size: int) -> None:
    """Writes a tokenizer.json of `size` entries, special tokens and the 256 bytes included.

    Each digit is a token. Any text is decoded exactly as it was: no normalisation, no prefix space, no unknown token;
    nothing is added at either end.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path), pretty=False)


def balanced(groups: Sequence[tuple[Sequence[Document], float]]) -> Iterator[str]:
    """All texts, each group repeated until its characters are in proportion to its weight.

    `groups` are (documents, weight). Captions have a high weight, so that their words, which a small model must write,
    get short encodings although running text is a hundred times as long.
    """
    lengths = [sum(len(document.text) for document in documents) for documents, _ in groups]
    longest = max(length / weight for length, (_, weight) in zip(lengths, groups, strict=True) if length)
    for length, (documents, weight) in zip(lengths, groups, strict=True):
        for _ in range(max(1, round(longest * weight / length)) if length else 0):
            for document in documents:
                yield document.text
