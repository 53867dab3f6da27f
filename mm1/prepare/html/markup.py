"""A web page of any site -> its main content: text, and the addresses of its images, in reading order.

The content is what the page itself marks as such (`main`, `role=main`, `article`), else its body. Then navigation goes:
by tag and role, by class and id, by the share of a block's text that is links (Kohlschuetter et al. 2010,
https://dl.acm.org/doi/10.1145/1718487.1718542), ways to the pages before and after, and the lines at the end of a
page about the page itself. No rule but that of tags takes a block that holds a large part of the text: a wrapper may
be called anything. docs/pages.md compares this with three libraries.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from urllib.parse import urljoin

from mm1.document import Text
from mm1.prepare.html.lines import Address, Lines, layout_of

_NEVER = frozenset(
    (
        *("script", "style", "nav", "footer", "button", "noscript", "svg", "math", "iframe", "object", "select"),
        *("input", "textarea", "template", "head", "dialog"),
    )
)
_BLOCKS = frozenset(
    (
        *("div", "section", "article", "header", "aside", "form", "ul", "ol", "dl", "li", "p", "address", "label"),
        *("table", "tbody", "tr", "td", "th", "hr"),
    )
)
_ROLES = frozenset(
    ("navigation", "banner", "contentinfo", "search", "complementary", "menu", "menubar", "dialog", "doc-toc")
)
_MARKS = re.compile(  # inside of content, at any element
    r"headerlink|viewcode-(link|back)|linenos?|copy-?(button|btn)|permalink|anchor-link|mw-editsection|sr-only"
    r"|visually-hidden|screen-reader-text|ttc|dyn(header|content)"
)
_TOKEN = re.compile(  # between the hyphens of a class
    r"[a-z]*nav|navbar|navigation|nav(header|footer|path)|menu(bar)?|breadcrumbs?|sidebar|footer|toc(tree|frame|title|\d)?"
    r"|pagination|pager|cookies?|newsletter|advert(isement)?s?"
)
_NAMES = re.compile(  # a whole class or id; the last ones are what Doxygen and Sphinx-Gallery put around their pages
    r"(site|page|main|global|top|bottom|left|right)?[-_]?"
    r"(header|side-bar|banner|ads?|share|social|related|comments|skip-link|prev-next(-area|-bottom)?|contents?-list"
    r"|search-?box|languages)"
    r"|titlearea|sphx-glr-(download\S*|footer\S*|signature|timing)"
)
_NOTES = re.compile(r".*(footnote|admonition|callout|note|citation|topic).*")  # what HTML5 calls an aside of content
_LINKED = frozenset(("ul", "ol", "dl", "div", "table", "p", "section"))
_FEWEST_LINKS, _LINK_SHARE = 4, 0.75
_A_SENTENCE = 40  # characters without a link in them: menus have no such text
_WAYS = frozenset(
    (
        *("prev", "previous", "next", "up", "back", "top", "home", "first", "last", "index", "contents"),
        *("tutorial", "chapter", "page", "section", "article", "post", "lesson", "part"),
    )
)
_LONGEST_WAY = 300  # characters of a block of ways to other pages
_ABOUT = re.compile(
    r"(©|\(c\) |copyright (©|\(c\)|by\b|\d{4})|all rights reserved|powered by|generated (on|by|at)|page last"
    r"|created (using|with)|built with|last (updated|modified|edited|changed)|valid x?html).{0,300}"
    r"|.{0,300} trademarks? of .{0,300}",
    re.IGNORECASE,
)
_LARGE = 0.4  # of the text outside of links
_DEEPEST = 200  # levels: nobody writes more, machines that break parsers do
_LARGEST, _MOST = 16 * 2**20, 500_000  # bytes and elements: twice those of the largest page of the manuals
_MAIN_IDS = ("content", "main", "main-content", "maincontent")


class PageError(ValueError):
    """A page that is not read; the message is the reason, in a few words, under which it is counted."""


@dataclass(slots=True)
class _Node:
    """An element with what it holds: characters outside and inside of links, links, images, headings, the title (h1).

    `run` is the longest text outside of links that no element interrupts.
    """

    tag: str
    element: Any  # of lxml, which says no types
    text: str
    parts: list[tuple["_Node | None", str]] = field(default_factory=list)  # each with the text after it
    prose: int = 0
    linked: int = 0
    links: int = 0
    images: int = 0
    run: int = 0
    headed: bool = False
    titled: bool = False


def read_markup(content: bytes, base: str) -> list[Text | Address]:
    """The page's main content in reading order; empty where there is none, or nothing that can be parsed.

    `base` is the page's own address, to which those of its images are relative.

    Raises:
        PageError: more bytes or elements than any page has that a person reads.
    """
    if len(content) > _LARGEST:
        raise PageError(f"page of more than {_LARGEST >> 20} MB")
    tree = _parsed(content)
    body = None if tree is None else tree.find("body")
    if tree is None or body is None:
        return []
    if sum(1 for _ in islice(body.iter(), _MOST + 1)) > _MOST:
        raise PageError(f"page of more than {_MOST:,} elements")
    mains: list[list[_Node]] = [[], [], [], []]
    whole = _weighed(body, 0, linked=False, mains=mains)
    if len(mains[2]) > 1:  # a list of articles is no content of one
        mains[2].clear()
    mains[3] = [node for node in mains[3] if node.titled or not whole.titled]  # an id is no promise to hold the title
    found = next((node for nodes in mains for node in nodes[:1] if 3 * node.prose >= whole.prose), whole)
    if found.prose + found.linked < 40 and not found.images:
        return []
    page = Lines()
    _write(found, page, base, around=_Around(found.prose, " ".join((tree.findtext(".//title") or "").split())))
    return list(_without_end(page.pieces()))


def _parsed(content: bytes):
    from lxml import etree

    said = re.search(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?([A-Za-z0-9_-]{2,30})", content[:4096])
    for encoding in (said[1].decode("ascii") if said else "utf-8", "utf-8"):
        try:
            parser = etree.HTMLParser(remove_comments=True, remove_pis=True, encoding=encoding, huge_tree=False)
            return etree.fromstring(content, parser)
        except LookupError:  # an encoding that libxml2 does not know
            continue
        except (etree.LxmlError, ValueError):
            return None
    return None


def _weighed(element, depth: int, *, linked: bool, mains: list[list[_Node]]) -> _Node:
    """The element as a node; those that may be the main content are put into `mains`, by their kind."""
    node = _Node(element.tag, element, element.text or "")
    tag = node.tag
    size = run = len(node.text.strip())
    if tag == "a" and element.get("href") and not node.text.startswith("http"):  # an address is told, not a way
        linked, node.links = True, 1
    node.images = int(tag == "img")
    node.titled, node.headed = tag == "h1", tag in ("h1", "h2", "h3")
    for child in element:
        tail = child.tail or ""
        if not isinstance(child.tag, str) or child.tag in _NEVER or depth >= _DEEPEST:
            node.parts.append((None, tail))
        else:
            inner = _weighed(child, depth + 1, linked=linked, mains=mains)
            node.parts.append((inner, tail))
            node.prose += inner.prose
            node.linked += inner.linked
            node.links += inner.links
            node.images += inner.images
            node.run = max(node.run, inner.run)
            node.headed = node.headed or inner.headed
            node.titled = node.titled or inner.titled
        size += len(tail.strip())
        run = max(run, len(tail.strip()))
    if linked:
        node.linked += size
    else:
        node.prose += size
        node.run = max(node.run, run)
    if tag == "main" or tag in _BLOCKS:
        _note_main(node, mains)
    return node


def _note_main(node: _Node, mains: list[list[_Node]]) -> None:
    get = node.element.get
    if get("role") == "main":
        mains[0].append(node)
    elif node.tag == "main":
        mains[1].append(node)
    elif node.tag == "article":
        mains[2].append(node)
    elif get("id") in _MAIN_IDS:
        mains[3].append(node)


@dataclass(frozen=True, slots=True)
class _Around:
    """What stands around a block: characters of the whole content outside of links, the page's title."""

    prose: int
    title: str


def _write(node: _Node, page: Lines, base: str, *, around: _Around) -> None:
    page.text(node.text)
    for child, tail in node.parts:
        if child is not None and not _is_navigation(child, around):
            if child.tag == "img":
                address = _address(child.element, base)
                if address is not None:
                    page.image(address)
            else:
                layout = layout_of(child.tag, (child.element.get("class") or "").split())
                page.open(layout)
                _write(child, page, base, around=around)
                page.close(layout)
        page.text(tail)


def _is_navigation(node: _Node, around: _Around) -> bool:
    get = node.element.get
    classes = (get("class") or "").lower().split()
    if get("hidden") is not None or get("aria-hidden") == "true" or any(map(_MARKS.fullmatch, classes)):
        return True
    if node.tag not in _BLOCKS:
        return False
    large = node.prose > _LARGE * around.prose
    if not large and (get("role") in _ROLES or _is_named(node, classes, get("id") or "", around=around)):
        return True
    return (node.tag in _LINKED and _is_links(node)) or (0 < node.links <= 4 and _is_way(node))


def _is_named(node: _Node, classes: list[str], name: str, *, around: _Around) -> bool:
    """Whether a block's names or tag say that it is none of the content."""
    if node.tag == "form":
        return True
    if node.tag == "aside":
        return not any(map(_NOTES.fullmatch, [*classes, node.element.get("role") or ""]))
    names = list(classes)
    if node.tag != "section" and "section" not in classes:  # whose id is made of its heading
        names.append(name.lower())
    hits = [one for one in names if _NAMES.fullmatch(one) or any(map(_TOKEN.fullmatch, re.split("[-_]", one)))]
    if not hits:
        return False
    if all("header" in hit for hit in hits):  # the head of an article has its title in it
        text = _text(node)
        return not (node.headed or (2 * len(text) > len(around.title) and text in around.title))
    return True


def _is_links(node: _Node) -> bool:
    """Whether a block is little but links: a menu, a table of contents."""
    if node.links < _FEWEST_LINKS or node.images or node.titled or node.run >= _A_SENTENCE:
        return False
    return node.linked > _LINK_SHARE * (node.linked + node.prose)


def _is_way(node: _Node) -> bool:
    """Whether a short block says nothing but where to go on: next to its links stand words such as `next` alone."""
    if node.prose + node.linked > _LONGEST_WAY or node.images or node.prose > 60:
        return False
    said = set(re.findall(r"\w+", _text(node, linked=False).lower()))
    said = said or set(re.findall(r"\w+", _text(node).lower()))
    return said <= _WAYS and not said.isdisjoint(("prev", "previous", "next", "up", "back"))


def _text(node: _Node, *, linked: bool = True) -> str:
    return " ".join("".join(_strings(node, linked=linked)).split())


def _strings(node: _Node, *, linked: bool) -> Iterator[str]:
    if linked or node.tag != "a":
        yield node.text
        for child, tail in node.parts:
            if child is not None:
                yield from _strings(child, linked=linked)
            yield tail


def _address(element, base: str) -> Address | None:
    """The image's address, lazily loaded or not; images written into the page itself are icons."""
    for name in ("data-src", "data-original", "src"):
        said = (element.get(name) or "").strip()
        if said and not said.startswith("data:"):
            try:
                return Address(urljoin(base, said), " ".join((element.get("alt") or "").split()))
            except ValueError:  # an address such as http://[x
                return None
    return None


def _without_end(pieces: list) -> list[Text | Address]:
    """The pieces without the last lines that speak of the page: who made it, when, with what."""
    while pieces and isinstance(pieces[-1], Text):
        lines = pieces.pop().text.rstrip().split("\n")
        while lines and (not lines[-1].strip() or _ABOUT.fullmatch(lines[-1].strip())):
            lines.pop()
        if lines:
            return [*pieces, Text("\n".join(lines) + "\n")]
    return pieces
