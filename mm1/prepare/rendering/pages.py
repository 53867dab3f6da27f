"""Pages rendered from the texts of a store, each with its transcription: what SynthDog is in MM1's mixture.

A page is a pure function of (seed, its number, the settings, the fonts, the store). SynthDog
(https://arxiv.org/abs/2111.15664, appendix A.1) draws words of Wikipedia on papers, too, before photographs.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from mm1.data.store import open_store
from mm1.document import Document, Image, Text
from mm1.prepare.ledger import Dropped
from mm1.prepare.readers.chats import TRANSCRIBE
from mm1.prepare.rendering.fonts import characters, first_with
from mm1.prepare.rendering.layouts import LAYOUTS, Ink
from mm1.prepare.rendering.papers import PAPERS, colours, jpeg, photographed
from mm1.prepare.shard import Shard

_TRIES = 4
"""Sizes of letters that are tried, each smaller than the one before, until a word fits."""

_PAGES_PER_SHARD = 1000
_PAGES_IN_MEMORY = 64
_SMALLEST_LETTERS = 8  # pixels


@dataclass(frozen=True, slots=True)
class Rendering:
    """What pages are made of.

    store         the document store whose texts are written
    fonts         paths of the fonts
    words         words of a page, at most
    side          pixels of a page's longer side, at most; at least half of it
    letters       height of letters as a share of the longer side, from and to
    """

    store: str
    fonts: tuple[str, ...]
    seed: int = 0
    words: int = 100
    side: int = 1024
    letters: tuple[float, float] = (1 / 50, 1 / 12)

    def pages(self, start: int, stop: int) -> Iterator[Document | Dropped]:
        """The pages numbered [start, stop), each as a chat; a text without a word that can be drawn is `Dropped`."""
        store = open_store(self.store)
        for first in range(start, stop, _PAGES_IN_MEMORY):
            numbers = range(first, min(first + _PAGES_IN_MEMORY, stop))
            positions = [int(self._chance("text", number).integers(len(store))) for number in numbers]
            for number, document in zip(numbers, store.take(positions), strict=True):
                yield self._page(number, document)

    def shards(self, count: int) -> list[Shard]:
        """The shards of `count` pages."""
        return [
            Shard(
                f"pages {start} to {min(start + _PAGES_PER_SHARD, count) - 1}",
                root=Path(),
                files=(),
                kind="rendered_text",
                documents=partial(self.pages, start, min(start + _PAGES_PER_SHARD, count)),
            )
            for start in range(0, count, _PAGES_PER_SHARD)
        ]

    def _chance(self, what: str, number: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *what.encode(), number))

    def _page(self, number: int, document: Document) -> Document | Dropped:
        chance = self._chance("page", number)
        passage = _passage(document.text, count=int(chance.integers(1, self.words + 1)), chance=chance)
        font = first_with(" ".join(passage), [self.fonts[index] for index in chance.permutation(len(self.fonts))])
        words = [word for word in passage if set(word) <= characters(font)]
        paper_colour, ink_colour = colours(chance)
        paper = str(chance.choice(list(PAPERS)))
        layout = str(chance.choice(list(LAYOUTS)))
        longer = int(chance.integers(self.side // 2, self.side + 1))
        shorter = int(longer * chance.uniform(0.5, 1))
        size = (longer, shorter) if chance.random() < 0.4 else (shorter, longer)
        smallest, largest = (longer * share for share in self.letters)
        height = chance.uniform(smallest, largest)
        for _ in range(_TRIES):
            ink = Ink(font, max(_SMALLEST_LETTERS, round(height)), ink_colour, chance.uniform(1.1, 1.7))
            page = PAPERS[paper](size, paper_colour, chance)
            written = LAYOUTS[layout](page, words, ink, chance)
            if written:
                picture = Image(jpeg(photographed(page, paper_colour, chance), chance))
                facts = {"form": "chat", "layout": layout, "paper": paper, "font": font.rpartition("/")[2]}
                pieces = (picture, Text(TRANSCRIBE, train=False), Text(written))
                name = f"rendered/{self.seed}/{number}"
                return replace(document, pieces=pieces, id=name, metadata={**document.metadata, **facts})
            height /= 2
        reason = "text without a word that a font has and a page has room for"
        return Dropped(reason, expected=True, detail=document.text)


def _passage(text: str, *, count: int, chance: np.random.Generator) -> list[str]:
    """`count` words in a row, or as many as there are. Writing from the right or of joined characters is left out."""
    words = [word for word in unicodedata.normalize("NFC", text).split() if all(map(_stands_alone, word))]
    first = int(chance.integers(max(1, len(words) - count + 1)))
    return words[first : first + count]


def _stands_alone(character: str) -> bool:
    """Whether a character is drawn from left to right as it stands, and is not a control or a mark on another one."""
    category = unicodedata.category(character)
    return category[0] in "LNPS" and unicodedata.bidirectional(character) not in ("R", "AL")
