"""Gallery pages: pictures of one kind in a row, each with its label, all lines of a page in one style.

The style of a page (wording, language, tags or not) can only be known from the lines above: pages like these teach a
model to go on as the page began, which is what few-shot prompting asks of it.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mm1.document import Document, Image, Piece, Text
from mm1.prepare.pictures import Picture
from mm1.prepare.split import same_words

_FEWEST, _MOST = 6, 12  # pictures of a page


@dataclass(frozen=True, slots=True)
class Style:
    """How the lines of a page read. `{label}` is in `language`; `{tags}`, `{LABEL}` and `{number}` as they say."""

    line: str
    language: str = "en"


PLAIN = Style(" A photo of {label}\n")
"""The line of the paper's few-shot captioning prompt: half of all pages, label as in the caption stores."""

STYLES = (
    Style("{label}\n"),
    Style(" {label}.\n"),
    Style(" Picture: {label}.\n"),
    Style(" Caption: {label}\n"),
    Style(" What is this? {label}.\n"),
    Style(" This shows {label}.\n"),
    Style(" {LABEL}\n"),
    Style(" {number}. {label}\n"),
    Style(' "{label}"\n'),
    Style(" -> {label};\n"),
    Style(" {label} (tags: {tags})\n"),
    Style(" tags: {tags}\n"),
    Style(" Un dessin : {label}\n", "fr"),
    Style(" {label}\n", "fr"),
    Style(" Ein Bild: {label}\n", "de"),
    Style(" {label}\n", "de"),
    Style(" Un dibujo: {label}\n", "es"),
    Style(" {label}\n", "es"),
    Style(" Un disegno: {label}\n", "it"),
    Style(" {label}\n", "it"),
    Style(" Um desenho: {label}\n", "pt"),
    Style(" {label}\n", "pt"),
    Style(" Een tekening: {label}\n", "nl"),
    Style(" Rysunek: {label}\n", "pl"),
    Style(" En bild: {label}\n", "sv"),
    Style(" Et billede: {label}\n", "da"),
)


def galleries(pictures: Sequence[Picture], pages: int, *, seed: int, avoid: frozenset[str]) -> Iterator[Document]:
    """`pages` gallery pages, page n a pure function of (pictures, seed, n).

    Two pages of three are assorted: pictures of any kind from one source, so that a label can be known from its
    picture alone. On the others pools (one folder or subgroup, or several of one theme) take turns, so that small ones
    count as much as large ones; there earlier labels say much of the next, and a model that learned from such pages
    only reads them instead of the picture. A tag is left out when it is in `avoid`: what is said of held-out pictures
    (see `same_words`).
    """
    pools = _pools(pictures)
    names = sorted(pools)
    every: dict[str, list[Picture]] = {}
    for picture in pictures:
        every.setdefault(picture.source.name, []).append(picture)
    sources = sorted(every)
    random.Random(f"{seed}/order").shuffle(names)
    for number in range(pages if names else 0):
        draw = random.Random(f"{seed}/{number}")
        assorted = number % 3 > 0
        name = draw.choice(sources) if assorted else names[number // 3 % len(names)]
        whole = every[name] if assorted else pools[name]
        pool = draw.sample(whole, min(len(whole), 64) if assorted else len(whole))
        style = PLAIN if number % 2 == 0 else _fitting_style(pool, draw)
        wanted = draw.randint(_FEWEST, _MOST)
        chosen = _distinct(pool, style, wanted=wanted, avoid=avoid)
        if len(chosen) < _FEWEST:  # too few of them have tags of their own
            style = PLAIN
            chosen = _distinct(pool, style, wanted=wanted, avoid=avoid)
        pieces: list[Piece] = []
        for place, (picture, line) in enumerate(chosen, start=1):
            pieces += [Image(picture.data), Text(line.replace("{number}", str(place)))]
        yield Document(
            tuple(pieces),
            id=f"gallery/{number}/{name}",
            source=f"{chosen[0][0].source.name}-galleries",
            metadata=said_of([picture for picture, _ in chosen])
            | {"group": name, "style": style.line.strip("\n"), "language": style.language},
        )


def said_of(pictures: Sequence[Picture]) -> dict[str, str]:
    """Licence, attribution and so on of a row that holds these pictures of one source; authors are named."""
    source = pictures[0].source
    creators = ", ".join(sorted({picture.creator for picture in pictures} - {""}))
    attribution = f"{source.attribution}: {creators}" if creators else source.attribution
    return source.metadata(attribution=attribution)


def theme(picture: Picture) -> str:
    """The kind of picture in one word: the top folder of clip art, the first word of an emoji's subgroup."""
    return f"{picture.source.name}/" + picture.group.split("/")[0].split("-")[0]


def _pools(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    pools: dict[str, list[Picture]] = {}
    for picture in pictures:
        for name in {f"{picture.source.name}/{picture.group}", theme(picture)}:
            pools.setdefault(name, []).append(picture)
    return {name: pool for name, pool in pools.items() if len({picture.caption for picture in pool}) >= _FEWEST}


def _fitting_style(pool: list[Picture], draw: random.Random) -> Style:
    """A style that every picture of the pool has the words for."""
    fitting = [
        style
        for style in STYLES
        if (style.language == "en" or all(style.language in picture.labels for picture in pool))
        and ("{tags}" not in style.line or all(len(picture.tags) > 1 for picture in pool))
    ]
    return draw.choice(fitting)


def _distinct(pool: list[Picture], style: Style, *, wanted: int, avoid: frozenset[str]) -> list[tuple[Picture, str]]:
    """The first `wanted` pictures whose lines differ, each with its line."""
    chosen: dict[str, tuple[Picture, str]] = {}
    for picture in pool:
        label = picture.caption if style.language == "en" else picture.labels[style.language]
        tags = [tag for tag in picture.tags if same_words(tag) not in avoid][:4]
        if "{tags}" in style.line and not tags:
            continue
        line = style.line.replace("{label}", label).replace("{LABEL}", label.upper())
        line = line.replace("{tags}", ", ".join(tags))
        chosen.setdefault(line, (picture, line))
        if len(chosen) == wanted:
            break
    return list(chosen.values())
