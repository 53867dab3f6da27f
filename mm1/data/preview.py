"""A document's pieces for a page: texts, special tokens, pictures small enough to be looked at."""

import base64
import io
from dataclasses import dataclass

from PIL import Image as Pillow

from mm1.data.chat import is_chat, marked
from mm1.data.image import UNREADABLE
from mm1.document import Document, Image, Mark


@dataclass(frozen=True, slots=True)
class Place:
    """One token of a row, or one image with all its places."""

    kind: str  # token, mark or image
    text: str  # what the token stands for; a data: URI for an image
    tip: str
    trained: bool


def places_of(document: Document) -> list[Place]:
    """A document's pieces for a page: texts, special tokens, pictures small enough to be looked at."""
    places = []
    for piece in (marked(document) if is_chat(document) else document).pieces:
        if isinstance(piece, Image):
            places.append(Place("image", _encoded(piece.data), f"{len(piece.data):,} bytes", trained=False))
        elif isinstance(piece, Mark):
            places.append(Place("mark", f"<|{piece.name}|>", "special token", trained=piece.train))
        else:
            places.append(Place("token", piece.text, "trained" if piece.train else "read only", piece.train))
    return places


def _encoded(data: bytes) -> str:
    """The picture as a data: URI of at most 320 pixels a side; empty when it cannot be decoded."""
    try:
        with Pillow.open(io.BytesIO(data)) as picture:
            picture.thumbnail((320, 320))
            return png_uri(picture.convert("RGBA"))
    except UNREADABLE:
        return ""


def png_uri(picture: Pillow.Image) -> str:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
