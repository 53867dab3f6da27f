"""The bytes of a web page -> its text, in the encoding in which a browser reads it."""

import codecs
import re
from functools import lru_cache

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_SUPERSETS = {  # what the names stand for on the web; Python's codecs of these names are the older, smaller sets
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
    "iso8859-11": "cp874",
}
_MISSING_LABELS = {"x-mac-cyrillic": "mac-cyrillic", "x-mac-ukrainian": "mac-cyrillic", "x-user-defined": "cp1252"}
_COMMENTS = re.compile(rb"<!--.*?(-->|$)", re.DOTALL)
_META = re.compile(rb"<meta[\s/][^>]*?charset\s*=\s*[\"']?\s*([^\"'\s;/>]{1,40})", re.IGNORECASE)
_XML = re.compile(rb"\s*<\?xml[^>]*?encoding\s*=\s*[\"']([^\"']{1,40})[\"']")
_HEAD = 4096  # bytes in which a page declares its encoding; the standard asks for 1024


def decode_page(page: bytes, *, charset: str = "") -> str:
    """The page's text, without a byte order mark; bytes that its encoding doesn't have become U+FFFD.

    As a browser does, it believes the byte order mark, then `charset` (of the HTTP header), then the page's own
    declaration, and reads the labels as the WHATWG does (https://encoding.spec.whatwg.org/#names-and-labels). A page
    that declares nothing is UTF-8 if it can be, and else in the encoding that its bytes look like.
    """
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if page.startswith(mark):
            return page[len(mark) :].decode(encoding, "replace")
    encoding = codec_of(charset) or _declared(page[:_HEAD]) or ""
    try:
        return page.decode(encoding or "utf-8")
    except UnicodeDecodeError:
        return page.decode(encoding or _detected(page), "replace")


@lru_cache(maxsize=256)
def codec_of(label: str) -> str | None:
    """Python's codec for an encoding's label on the web; None if the label is no browser's."""
    from resiliparse.parse.encoding import map_encoding_to_html5

    label = label.strip().lower()
    name = _MISSING_LABELS.get(label) or map_encoding_to_html5(label, fallback_utf8=False)
    return None if name is None else _SUPERSETS.get(name, name)


def _declared(head: bytes) -> str | None:
    """The codec that the head of a page declares."""
    declaration = _META.search(_COMMENTS.sub(b"", head)) or _XML.match(head)
    codec = None if declaration is None else codec_of(declaration[1].decode("ascii", "replace"))
    # what is written in ASCII is no UTF-16, whatever it says
    return "utf-8" if codec and codec.startswith("utf-16") else codec


def _detected(page: bytes) -> str:
    from resiliparse.parse.encoding import detect_encoding

    name = detect_encoding(page, html5_compatible=False)
    codec = codec_of(name) if name else None
    return codec if codec not in (None, "utf-8") else "cp1252"
