"""An `img` of a page -> the addresses at which its picture may be, the best first: what a browser shows, or would load.

Pages load pictures late (`data-src` and its many kin, `noscript`), offer several sizes (`srcset`, `picture`), or hold
the picture itself (`data:`).
"""

import base64
import binascii
import re
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes, urljoin

from mm1.prepare.html.lines import ImageAddress
from mm1.prepare.html.walk import Element

_LAZY = re.compile(r"data-([a-z-]{1,40}-)?(src|original|lazy|lazyload|image|img|echo|hi-?res)")
_PICTURE = re.compile(r"\S{1,2000}\.(jpe?g|png|webp|gif|avif|bmp)(\?\S{0,2000})?", re.IGNORECASE)
_SMALL = re.compile(r"thumb|small|placeholder|preview|low|tiny|blur")
_NO_ADDRESS = frozenset(("src", "srcset", "alt", "title", "class", "id", "name", "style", "usemap", "longdesc", "href"))
_SOURCE_SET = re.compile(r"(data-[a-z-]{0,40})?srcset")
_PLAIN = re.compile(r"[\w%~-][\w.%~-]*(/[\w%~-][\w.%~-]*)*", re.ASCII)
_PLAIN_BASE = re.compile(r"(https?|file)://[^/?#;\s]*(/[^/?#;.\s][^/?#;\s]*)*/[^/?#;\s]*", re.ASCII)
_LONGEST_SET = 20_000  # characters
_MOST_CANDIDATES = 24  # of one image


def image_address(image: Element, base: str) -> ImageAddress | None:
    """The addresses of an `img` element, made absolute, the best first; None if it has none.

    Pictures that load late come before what stands in their place, and of several sizes the largest comes first.
    """
    urls = []
    for candidate in dict.fromkeys(_candidates(image)):
        try:
            is_whole = candidate.startswith("data:")
            urls.append(candidate if is_whole else absolute_address(base, candidate.replace("\\", "/")))
        except ValueError:  # an address such as http://[x
            continue
    return ImageAddress(urls[0], others=tuple(urls[1:_MOST_CANDIDATES])) if urls else None


def absolute_address(base: str, address: str) -> str:
    """`urljoin` of both, which takes ten times as long, where an address below the page's folder is written plainly."""
    if _PLAIN.fullmatch(address) and _PLAIN_BASE.fullmatch(base):
        return base[: base.rindex("/") + 1] + address
    return urljoin(base, address)


def _candidates(image: Element) -> Iterator[str]:
    attributes = [(name.lower(), value.strip()) for name, value in image.items()]
    late = [(name, value) for name, value in attributes if _is_late_address(name, value)]
    small = [value for name, value in late if _SMALL.search(name)]
    yield from (value for name, value in late if _LAZY.fullmatch(name) and value not in small)
    yield from (value for name, value in late if value not in small)
    for name, value in attributes:
        if _SOURCE_SET.fullmatch(name):
            yield from srcset_addresses(value)
    picture = image.getparent()
    while picture is not None and picture.tag == "source":  # libxml2 puts what follows a source inside of it
        picture = picture.getparent()
    if picture is not None and picture.tag == "picture":
        for source in picture.iter("source"):
            for name, value in source.items():
                if _SOURCE_SET.fullmatch(name.lower()):
                    yield from srcset_addresses(value)
    yield from (value for value in [(image.get("src") or "").strip(), *small] if value)


def _is_late_address(name: str, value: str) -> bool:
    """Whether an attribute holds the address of a picture that a script loads."""
    if name in _NO_ADDRESS or name.startswith("on"):
        return False
    if _PICTURE.fullmatch(value):
        return True
    is_address = ("." in value or "/" in value) and not any(sign in value for sign in '{}<>"\n')
    return _LAZY.fullmatch(name) is not None and is_address


def srcset_addresses(srcset: str) -> list[str]:
    """The addresses of a `srcset`, the largest first (https://html.spec.whatwg.org/#srcset-attributes)."""
    sized, rest = [], srcset[:_LONGEST_SET]
    while rest := rest.lstrip(" \t\r\n\f,"):
        address, *more = rest.split(None, 1)
        rest, descriptor = more[0] if more else "", ""
        if address.endswith(","):
            address = address.rstrip(",")
        else:
            descriptor, _, rest = rest.partition(",")
        size = re.match(r"\s*(\d{1,9}(?:\.\d{1,9})?)[wx]", descriptor)
        sized.append((float(size[1]) if size else 1.0, address))
    return [address for _, address in sorted(sized, key=lambda one: -one[0])]


def complete_pictures(body: Element) -> None:
    """Gives each `picture` without an `img` one: a script would add it."""
    for picture in body.iter("picture"):
        if picture.find(".//img") is None and picture.find(".//source") is not None:
            picture.append(picture.makeelement("img"))


def show_embedded_pictures(body: Element) -> None:
    """Puts an `img` before each `object` and `embed` that shows a picture; the text inside an `object` is left out."""
    for element in list(body.iter("object", "embed")):
        address = (element.get("data") or element.get("src") or "").strip()
        kind = (element.get("type") or "").strip().lower()
        if address and (kind.startswith("image/") or (not kind and _PICTURE.fullmatch(address))):
            element.addprevious(element.makeelement("img", {"src": address, "alt": element.get("alt", "")}))
            if element.tag == "embed":
                element.tag = "span"  # libxml2 puts what follows inside of it


def hoist_unscripted_images(body: Element) -> None:
    """Puts the images of `noscript` elements before them, unless the page holds the same image outside of one.

    Pages whose script loads the pictures write them into a `noscript`, too, mostly beside an `img` that has no address.
    """
    hidden = [(noscript, image) for noscript in body.iter("noscript") for image in noscript.iter("img")]
    if not hidden:
        return
    inside = {image for _, image in hidden}
    shown = {candidate for image in body.iter("img") if image not in inside for candidate in _candidates(image)}
    for noscript, image in hidden:
        if shown.isdisjoint(_candidates(image)):
            image.tail = None
            noscript.addprevious(image)


def data_uri_bytes(address: str) -> bytes | None:
    """The bytes that a `data:` address holds (RFC 2397); None if it is malformed or no picture."""
    head, comma, content = address.partition(",")
    if not comma or not head.lower().startswith("data:image/"):
        return None
    data = unquote_to_bytes(content)
    if not head.lower().rstrip().endswith(";base64"):
        return data
    try:
        return base64.b64decode(re.sub(rb"\s", b"", data) + b"==") or None
    except (binascii.Error, ValueError):
        return None
