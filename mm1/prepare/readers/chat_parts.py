"""Conversations whose turns are lists of parts, as OpenAI, TRL and Qwen write them -> turns of text with `<image>`."""

from typing import Any

from mm1.prepare.ledger import Dropped

_IMAGE_KEYS = ("image", "image_url", "url", "path", "bytes")


def flatten_parts(turns: Any, images: list[Any]) -> tuple[Any, list[Any]]:
    """The turns with text for content, an `<image>` where each picture stands, and the pictures in that order.

    A part names its picture itself, or by its `index` in `images`, or is the next of them. Turns without parts come
    back as they are, and so do pictures that no part names.

    Raises:
        Dropped: a part is neither text nor a picture.
    """
    if not isinstance(turns, list) or not any(isinstance(_content(turn), list) for turn in turns):
        return turns, images
    flat, order = [], []
    unnamed = list(range(len(images)))
    for turn in turns:
        content = _content(turn)
        if not isinstance(content, list):
            flat.append(turn)
            continue
        text = ""
        for part in content:
            if isinstance(part, str):
                text += part
            elif not isinstance(part, dict):
                raise Dropped("turn with a part of no known type", detail=type(part).__name__)
            elif _is_image(part):
                order.append(_picture(part, images, unnamed))
                text += "<image>"
            elif isinstance(part.get("text"), str):
                text += part["text"]
            else:
                raise Dropped("turn with a part of no known type", detail=str(part.get("type"))[:60])
        flat.append({"role": turn.get("role", turn.get("from")), "content": text})
    return flat, order + [images[index] for index in unnamed]


def _content(turn: Any) -> Any:
    return turn.get("content", turn.get("value")) if isinstance(turn, dict) else None


def _is_image(part: dict[str, Any]) -> bool:
    kind = part.get("type")
    if isinstance(kind, str):
        return kind in ("image", "image_url", "input_image")
    return any(part.get(key) for key in _IMAGE_KEYS)


def _picture(part: dict[str, Any], images: list[Any], unnamed: list[int]) -> Any:
    """The picture of a part; `unnamed` are the indices in `images` that no part has named yet."""
    for key in _IMAGE_KEYS:
        named = part.get(key)
        named = named.get("url") if key == "image_url" and isinstance(named, dict) else named
        if named and not (isinstance(named, dict) and not any(named.values())):
            return named
    index = part.get("index")
    index = index if isinstance(index, int) else (unnamed[0] if unnamed else None)
    if index is None or not 0 <= index < len(images):
        raise Dropped("turn with a picture that its record doesn't hold")
    if index in unnamed:
        unnamed.remove(index)
    return images[index]
