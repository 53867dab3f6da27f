"""Chats about the captioned pictures of the shipped sample, in four languages: what `sample:small` is fine-tuned on.

    python -m sample_build.chats chats-train.lance

They are made of the sample alone, so they are not shipped themselves.
"""

import random
import sys
from collections.abc import Iterator

from mm1.data.store import Store, open_store, write_store
from mm1.document import Document, Image, Text

QUESTIONS = {
    "en": (
        "what is this?",
        "What is this?",
        "What is in the picture?",
        "What does this picture show?",
        "Describe the picture.",
        "what do you see?",
    ),
    "de": ("was ist das?", "Was ist das?", "Was zeigt das Bild?"),
    "es": ("¿qué es esto?", "¿Qué es esto?", "¿Qué muestra la imagen?"),
    "fr": ("qu'est-ce que c'est ?", "Qu'est-ce que c'est ?", "Que montre l'image ?"),
}
"""What is asked in each language; the answer is the caption, or the label in that language."""


def chats(captions: Store, pages: Store) -> Iterator[Document]:
    """One question about each captioned picture, and one about each picture of a page of labels, in its language."""
    for caption in captions.scan():
        yield _chat(caption, caption.images[0], caption.text, language="en", name=caption.id)
    for page in pages.scan():
        labels = [piece.text for piece in page.pieces[1::2] if isinstance(piece, Text)]
        for number, (image, label) in enumerate(zip(page.images, labels, strict=True)):
            yield _chat(page, image, label, language=page.metadata["language"], name=f"{page.id}/{number}")


def _chat(origin: Document, image: Image, answer: str, *, language: str, name: str) -> Document:
    question = random.Random(name).choice(QUESTIONS[language])
    return Document(
        (image, Text(question, train=False), Text(answer.strip())),
        id=name,
        source=f"{origin.source}-chats",
        metadata=origin.metadata | {"form": "chat"},
    )


def main(path: str) -> None:
    documents = list(chats(open_store("sample:captions-train"), open_store("sample:languages-train")))
    random.Random(0).shuffle(documents)
    print(f"{write_store(documents, path):,} chats: {path}")


if __name__ == "__main__":
    main(sys.argv[1])
