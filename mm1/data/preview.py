"""A document as a list of items that an HTML page can show: texts, special tokens, small pictures."""

import base64
import io
from dataclasses import dataclass

from PIL import Image as Pillow

from mm1.data.chat_format import is_chat, with_roles
from mm1.data.image import UNREADABLE, upright
from mm1.document import Document, Image, Mark


@dataclass(frozen=True, slots=True)
class PageItem:
    """One token, one stretch of text, or one image."""

    kind: str  # token, mark or image
    text: str  # the text of a token; a data: URI for an image, empty if it cannot be decoded
    tip: str  # shown when the mouse points at the item
    trained: bool


def page_items(document: Document) -> list[PageItem]:
    """The items of a document, one per piece, in reading order; a chat comes with the marks of its roles."""
    items = []
    for piece in (with_roles(document) if is_chat(document) else document).pieces:
        if isinstance(piece, Image):
            items.append(PageItem("image", _thumbnail(piece.data), f"{len(piece.data):,} bytes", trained=False))
        elif isinstance(piece, Mark):
            items.append(PageItem("mark", f"<|{piece.name}|>", "special token", trained=piece.train))
        else:
            items.append(PageItem("token", piece.text, "trained" if piece.train else "read only", piece.train))
    return items


def _thumbnail(data: bytes) -> str:
    """The picture as a data: URI, at most 320 pixels a side; empty if it cannot be decoded."""
    try:
        with Pillow.open(io.BytesIO(data)) as opened:
            picture = upright(opened, data)
            picture.thumbnail((320, 320))
            return png_uri(picture.convert("RGBA"))
    except UNREADABLE:
        return ""


def png_uri(picture: Pillow.Image) -> str:
    """The picture as a data: URI in PNG."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
