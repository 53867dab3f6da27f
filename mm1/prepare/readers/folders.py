"""Folders as people keep them -> documents: pictures with a text beside them, data sets saved to disk, LLaVA's JSON."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from mm1.document import Document, Image, Piece, Text
from mm1.prepare.shard import LARGEST_INDEX, InputError, Part, elements_of, find_picture, parse_json, read_bounded

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Endings of files that are taken for pictures."""

_ROLES = {"human": False, "user": False, "system": False, "gpt": True, "assistant": True}


def read_pairs(part: Part, drops: Counter[str]) -> Iterator[Document]:
    """A picture, then the text of the file beside it (NAME.jpg, NAME.txt)."""
    for path in part.files:
        said = path.with_suffix(".txt")
        text = read_bounded(said, drops) if said.is_file() else None
        caption = " ".join((text or b"").decode("utf-8", "replace").split())
        data = read_bounded(path, drops) if caption else None
        if not caption:
            drops["picture without a text beside it"] += 1
        elif data is not None:
            yield Document((Image(data), Text(caption)), id=path.relative_to(part.root).as_posix())


def read_llava(part: Part, drops: Counter[str]) -> Iterator[Document]:
    """Conversations of LLaVA or ShareGPT; each picture stands where its `<image>` does.

    https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md
    """
    for number, entry in enumerate(elements_of(part.files[0], drops)):
        turns = turns_of(entry.get("conversations") or entry.get("messages"))
        named = entry.get("image") or entry.get("images") or []
        names = [named] if isinstance(named, str) else named
        if not turns or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            drops["conversation without turns, or with none of the known form"] += 1
            continue
        data = [find_picture(part, name, drops) for name in names]
        pieces = chat_pieces(turns, [picture for picture in data if picture is not None])
        if None in data or pieces is None:
            drops["conversation whose pictures are missing or too many"] += 1
            continue
        name = f"{part.name}/{entry.get('id', number)}"
        yield Document(tuple(pieces), id=name, metadata={"form": "chat"})


def chat_pieces(turns: list[tuple[bool, str]], pictures: list[bytes]) -> list[Piece] | None:
    """The pieces of a conversation, answers trained; None when it has other pictures than places for them.

    Without any `<image>` the pictures stand first, as LLaVA's own loader puts them.
    """
    if not any("<image>" in text for _, text in turns):
        first: list[Piece] = [Image(picture) for picture in pictures]
        return first + [Text(text, train=answer) for answer, text in turns]
    pieces: list[Piece] = []
    left = iter(pictures)
    for answer, text in turns:
        for place, run in enumerate(text.split("<image>")):
            if place:
                picture = next(left, None)
                if picture is None:
                    return None
                pieces.append(Image(picture))
            if run.strip():
                pieces.append(Text(run.strip("\n"), train=answer))
    return pieces if next(left, None) is None else None


def read_coco(part: Part, drops: Counter[str]) -> Iterator[Document]:
    """A picture, then a caption of it, for each caption of a COCO captions file (https://cocodataset.org/#format-data).

    Raises:
        InputError: the file is no COCO captions file, or too large to be read whole.
    """
    path = part.files[0]
    if path.stat().st_size > LARGEST_INDEX:
        raise InputError(f"{path.name} has {path.stat().st_size:,} bytes; at most {LARGEST_INDEX:,} are read whole")
    said = parse_json(path.read_bytes())
    if not isinstance(said, dict) or not isinstance(said.get("images"), list):
        raise InputError(f"{path.name} is no COCO captions file: it needs the lists images and annotations")
    licences = {entry["id"]: str(entry.get("url") or entry.get("name")) for entry in said.get("licenses", [])}
    captions: dict[Any, list[str]] = {}
    for note in said.get("annotations", []):
        if isinstance(note, dict) and isinstance(note.get("caption"), str):
            captions.setdefault(note.get("image_id"), []).append(" ".join(note["caption"].split()))
    for entry in said["images"]:
        data = find_picture(part, str(entry.get("file_name", "")), drops) if entry.get("id") in captions else None
        if data is None:
            drops["picture without a caption, or not there"] += 1
            continue
        metadata = {"licence": licences.get(entry.get("license"), ""), "url": str(entry.get("coco_url", ""))}
        for number, caption in enumerate(captions[entry["id"]]):
            name = f"{part.name}/{entry['id']}/{number}"
            yield Document((Image(data), Text(caption)), id=name, metadata={k: v for k, v in metadata.items() if v})


def turns_of(found: Any) -> list[tuple[bool, str]]:
    """(is an answer, text) of each turn; empty when one of them has no known form."""
    turns = []
    for turn in found if isinstance(found, list) else []:
        role = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
        text = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
        if role not in _ROLES or not isinstance(text, str):
            return []
        turns.append((_ROLES[role], text))
    return turns
