"""Pages of pictures with their labels in one language: which language it is, only the lines before tell.

Caption documents, where a picture stands by itself, are all in English. So a model that answers in German after German
shots has read them.
"""

import random
from collections.abc import Iterator, Sequence

from mm1.document import Document, Image, Piece, Text
from sample_build.galleries import credits_of
from sample_build.pictures import Picture

LANGUAGES = ("de", "es", "fr")
_FEWEST, _MOST = 6, 12  # pictures of a page


def language_pages(pictures: Sequence[Picture], pages: int, *, seed: int) -> Iterator[Document]:
    """Pages in each language in turn; page n is a pure function of (pictures, seed, n).

    Families take turns within a language, each with one picture of it, so that an emoji with many skin tones counts as
    much as one without.
    """
    for turn, language in enumerate(LANGUAGES):
        of_families = _rounds(pictures, language, seed=seed)
        for number in range(turn, pages, len(LANGUAGES)):
            count = random.Random(f"{seed}/languages/{number}").randint(_FEWEST, _MOST)
            yield _page(f"train/{language}/{number}", language, [next(of_families) for _ in range(count)])


def held_out_pages(pictures: Sequence[Picture], *, seed: int) -> Iterator[Document]:
    """Every family once in each language."""
    for language in LANGUAGES:
        families = len({picture.family for picture in pictures if language in picture.labels})
        of_families = _rounds(pictures, language, seed=seed)
        for number, start in enumerate(range(0, families, _MOST)):
            shown = [next(of_families) for _ in range(min(_MOST, families - start))]
            yield _page(f"test/{language}/{number}", language, shown)


def _rounds(pictures: Sequence[Picture], language: str, *, seed: int) -> Iterator[Picture]:
    """A picture of each family that has a label in this language, in a new order in each round, without end."""
    families: dict[str, list[Picture]] = {}
    for picture in pictures:
        if language in picture.labels:
            families.setdefault(picture.family, []).append(picture)
    draw = random.Random(f"{seed}/languages/{language}")
    names = sorted(families)
    while names:
        draw.shuffle(names)
        yield from (draw.choice(families[name]) for name in names)


def _page(name: str, language: str, pictures: Sequence[Picture]) -> Document:
    pieces: list[Piece] = []
    for picture in pictures:
        pieces += [Image(picture.data), Text(f" {picture.labels[language]}\n")]
    return Document(
        tuple(pieces),
        id=f"languages-{name}",
        source="languages",
        metadata=credits_of(pictures) | {"language": language},
    )
