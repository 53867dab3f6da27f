"""Reads folders as people keep them: pictures with a text file beside them, LLaVA's conversations, COCO captions."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from mm1.document import Document, Image, Piece, Text
from mm1.prepare.bounded_read import LARGEST_INDEX, parse_json, read_file, read_json_array, read_picture
from mm1.prepare.shard import InputError, Shard

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Endings of the names of picture files."""

_IS_ANSWER = {"human": False, "user": False, "system": False, "gpt": True, "assistant": True}


def read_pairs(shard: Shard, drops: Counter[str]) -> Iterator[Document]:
    """A picture, then the text of the file beside it (NAME.jpg, NAME.txt)."""
    for path in shard.files:
        caption_file = path.with_suffix(".txt")
        text = read_file(caption_file, drops) if caption_file.is_file() else None
        caption = " ".join((text or b"").decode("utf-8", "replace").split())
        data = read_file(path, drops) if caption else None
        if not caption:
            drops["picture without a text beside it"] += 1
        elif data is not None:
            yield Document((Image(data), Text(caption)), id=path.relative_to(shard.root).as_posix())


def read_llava(shard: Shard, drops: Counter[str]) -> Iterator[Document]:
    """Conversations of LLaVA or ShareGPT; each picture stands where its `<image>` does.

    https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md
    """
    for number, entry in enumerate(read_json_array(shard.files[0], drops)):
        turns = parse_turns(entry.get("conversations") or entry.get("messages"))
        images = entry.get("image") or entry.get("images") or []
        names = [images] if isinstance(images, str) else images
        if not turns or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            drops["conversation without turns, or with none of the known form"] += 1
            continue
        pictures = [read_picture(shard, name, drops) for name in names]
        pieces = chat_pieces(turns, [picture for picture in pictures if picture is not None])
        if None in pictures or pieces is None:
            drops["conversation whose pictures are missing or too many"] += 1
            continue
        document_id = f"{shard.name}/{entry.get('id', number)}"
        yield Document(tuple(pieces), id=document_id, metadata={"form": "chat"})


def chat_pieces(turns: list[tuple[bool, str]], pictures: list[bytes]) -> list[Piece] | None:
    """The pieces of a conversation, answers trained; None if it has not as many pictures as `<image>` marks.

    Without any `<image>` the pictures stand first, as LLaVA's own loader puts them.
    """
    if not any("<image>" in text for _, text in turns):
        images: list[Piece] = [Image(picture) for picture in pictures]
        return images + [Text(text, train=is_answer) for is_answer, text in turns]
    pieces: list[Piece] = []
    remaining = iter(pictures)
    for is_answer, text in turns:
        for index, part in enumerate(text.split("<image>")):
            if index:
                picture = next(remaining, None)
                if picture is None:
                    return None
                pieces.append(Image(picture))
            if part.strip():
                pieces.append(Text(part.strip("\n"), train=is_answer))
    return pieces if next(remaining, None) is None else None


def read_coco(shard: Shard, drops: Counter[str]) -> Iterator[Document]:
    """A picture, then a caption of it, for each caption of a COCO captions file (https://cocodataset.org/#format-data).

    Raises:
        InputError: the file is no COCO captions file, or too large to be read whole.
    """
    path = shard.files[0]
    if path.stat().st_size > LARGEST_INDEX:
        raise InputError(f"{path.name} has {path.stat().st_size:,} bytes; at most {LARGEST_INDEX:,} are read whole")
    content = parse_json(path.read_bytes())
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise InputError(f"{path.name} is no COCO captions file: it needs the lists images and annotations")
    licences = {entry["id"]: str(entry.get("url") or entry.get("name")) for entry in content.get("licenses", [])}
    captions: dict[Any, list[str]] = {}
    for annotation in content.get("annotations", []):
        if isinstance(annotation, dict) and isinstance(annotation.get("caption"), str):
            captions.setdefault(annotation.get("image_id"), []).append(" ".join(annotation["caption"].split()))
    for entry in content["images"]:
        data = read_picture(shard, str(entry.get("file_name", "")), drops) if entry.get("id") in captions else None
        if data is None:
            drops["picture without a caption, or not there"] += 1
            continue
        metadata = {"licence": licences.get(entry.get("license"), ""), "url": str(entry.get("coco_url", ""))}
        metadata = {key: value for key, value in metadata.items() if value}
        for number, caption in enumerate(captions[entry["id"]]):
            document_id = f"{shard.name}/{entry['id']}/{number}"
            yield Document((Image(data), Text(caption)), id=document_id, metadata=metadata)


def parse_turns(value: Any) -> list[tuple[bool, str]]:
    """(is it an answer, its text) of each turn of a conversation; empty if one of them has no known form."""
    turns = []
    for turn in value if isinstance(value, list) else []:
        role = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
        text = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
        if role not in _IS_ANSWER or not isinstance(text, str):
            return []
        turns.append((_IS_ANSWER[role], text))
    return turns
