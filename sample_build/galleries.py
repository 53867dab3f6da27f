"""Gallery pages: pictures in a row, each with its label, all lines of a page in one style.

The style of a page (wording, language, tags or not) can only be known from the lines above: pages like these teach a
model to go on as the page began, which is what few-shot prompting asks of it.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mm1.document import Document, Image, Piece, Text
from mm1.prepare.dedup import normalize_text
from sample_build.pictures import Picture
from sample_build.sources import Source

_FEWEST, _MOST = 6, 12  # pictures of a page
_ASSORTED = "assorted"  # what stands for the source of a page that shows several


@dataclass(frozen=True, slots=True)
class Style:
    """How the lines of a page read. `{label}` is in `language`; `{tags}`, `{LABEL}` and `{number}` as they say."""

    line: str
    language: str = "en"


PLAIN = Style(" A photo of {label}\n")
"""The line of the paper's few-shot captioning prompt: most pages have it, label as in the caption stores."""

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

    Six of eight are in the paper's line and show pictures of any kind and source, as the shots of a prompt do. Before
    they did, a model saw each source by itself only, and every shot cost it score. One is assorted within one source,
    in any style. On the last one pools (one folder or subgroup, or several of one theme) take turns, so that small
    ones count as much as large ones; there earlier labels say much of the next, and a model that learned from such
    pages only reads them instead of the picture. A tag is left out when it is in `avoid`: what is said of held-out
    pictures (see `normalize_text`).
    """
    pools = _pools(pictures)
    names = sorted(pools)
    every: dict[str, list[Picture]] = {}
    for picture in pictures:
        every.setdefault(picture.source.name, []).append(picture)
    random.Random(f"{seed}/order").shuffle(names)
    for number in range(pages if names else 0):
        draw = random.Random(f"{seed}/{number}")
        if number % 8 == 0:
            name = names[number // 8 % len(names)]
            pool = draw.sample(pools[name], len(pools[name]))
        else:
            name = draw.choice(sorted(every)) if number % 8 == 1 else _ASSORTED
            whole = pictures if name == _ASSORTED else every[name]
            pool = draw.sample(whole, min(len(whole), 64))
        style = PLAIN if number % 8 > 1 else _fitting_style(pool, draw)
        wanted = draw.randint(_FEWEST, _MOST)
        selected = _distinct(pool, style, wanted=wanted, avoid=avoid)
        if len(selected) < _FEWEST:  # too few of them have tags of their own
            style = PLAIN
            selected = _distinct(pool, style, wanted=wanted, avoid=avoid)
        pieces: list[Piece] = []
        for place, (picture, line) in enumerate(selected, start=1):
            pieces += [Image(picture.data), Text(line.replace("{number}", str(place)))]
        yield Document(
            tuple(pieces),
            id=f"gallery/{number}/{name}",
            source=f"{name.partition('/')[0]}-galleries",
            metadata=said_of([picture for picture, _ in selected])
            | {"group": name, "style": style.line.strip("\n"), "language": style.language},
        )


def said_of(pictures: Sequence[Picture]) -> dict[str, str]:
    """Licence, attribution and so on of a row that holds these pictures: of each source once; authors are named."""
    creators: dict[Source, set[str]] = {}
    for picture in pictures:
        creators.setdefault(picture.source, set()).add(picture.creator)
    said = []
    for source in sorted(creators, key=lambda source: source.name):
        named = ", ".join(sorted(creators[source] - {""}))
        said.append(source.metadata(attribution=f"{source.attribution}: {named}" if named else source.attribution))
    joint = {"licence": " AND ", "attribution": "; ", "package": "; "}
    return said[0] | {key: between.join(dict.fromkeys(row[key] for row in said)) for key, between in joint.items()}


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
    selected: dict[str, tuple[Picture, str]] = {}
    for picture in pool:
        label = picture.caption if style.language == "en" else picture.labels[style.language]
        tags = [tag for tag in picture.tags if normalize_text(tag) not in avoid][:4]
        if "{tags}" in style.line and not tags:
            continue
        line = style.line.replace("{label}", label).replace("{LABEL}", label.upper())
        line = line.replace("{tags}", ", ".join(tags))
        selected.setdefault(line, (picture, line))
        if len(selected) == wanted:
            break
    return list(selected.values())
