"""Reads folders as people keep them: pictures with a text file beside them, LLaVA's conversations, COCO captions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mm1.document import Document, Image, Piece, Text
from mm1.prepare.bounded_read import LARGEST_INDEX, decode_text, parse_json, read_file, read_picture
from mm1.prepare.json_arrays import read_json_array
from mm1.prepare.ledger import Dropped, Ledger
from mm1.prepare.shard import InputError, Shard

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Endings of the names of picture files."""

_MARK = "<image>"
_ROLES = {"human": "user", "user": "user", "system": "system", "gpt": "assistant", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of a conversation: who speaks (`system`, `user` or `assistant`), and the text, with `<image>` marks."""

    role: str
    text: str

    @property
    def is_answer(self) -> bool:
        return self.role == "assistant"


def read_pairs(shard: Shard, ledger: Ledger) -> Iterator[Document]:
    """A picture, then the text of the file beside it (NAME.jpg, NAME.txt)."""
    for path in shard.files:
        document_id = path.relative_to(shard.root).as_posix()
        with ledger.record(document_id, pictures=1) as record:
            caption_file = path.with_suffix(".txt")
            text = decode_text(read_file(caption_file)) if caption_file.is_file() else ""
            caption = record.content = " ".join(text.split())
            if not caption:
                raise Dropped("picture without a text beside it")
            yield Document((Image(read_file(path)), Text(caption)), id=document_id)


def read_llava(shard: Shard, ledger: Ledger) -> Iterator[Document]:
    """Conversations of LLaVA or ShareGPT; each picture stands where its `<image>` does.

    https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md
    """
    for number, entry in read_json_array(shard, ledger):
        with ledger.record(f"element {number + 1}", entry) as record:
            images = entry.get("image") or entry.get("images") or []
            names = images if isinstance(images, list) else [images]
            record.pictures = len(names)
            turns = parse_turns(entry.get("conversations") or entry.get("messages"))
            if not turns or not all(isinstance(name, str) for name in names):
                raise Dropped("conversation without turns, or with none of the known form")
            pictures = [read_picture(shard, name) for name in names]
            yield chat(turns, pictures, id=f"{shard.name}/{entry.get('id', number)}")


def chat(turns: Sequence[Turn], pictures: Sequence[Image], *, id: str = "") -> Document:
    """A conversation as a document, answers trained; turns of one role are joined by a line.

    Without any `<image>` the pictures stand first, as LLaVA's own loader puts them. The turns of the system that it
    begins with are its first pieces; metadata `system_pieces` says how many.

    Raises:
        Dropped: it has not as many pictures as `<image>` marks.
    """
    turns = [turn for turn in turns if turn.text.strip()]
    marks = sum(turn.text.count(_MARK) for turn in turns)
    if marks and marks != len(pictures):
        raise Dropped("conversation with more or fewer pictures than <image> marks", detail=f"{len(pictures)}, {marks}")
    remaining = iter(pictures)
    pieces: list[Piece] = []
    system_pieces = 0
    for index, turn in enumerate(turns):
        if not marks and turn.role != "system":
            pieces += remaining
        goes_on = index + 1 < len(turns) and turn.is_answer == turns[index + 1].is_answer
        pieces += _turn_pieces(turn, remaining, end="\n" if goes_on else "")
        if system_pieces == len(pieces) - 1 and turn.role == "system":
            system_pieces += 1
    metadata = {"form": "chat"} | ({"system_pieces": str(system_pieces)} if system_pieces else {})
    return Document((*pieces, *remaining), id=id, metadata=metadata)


def _turn_pieces(turn: Turn, pictures: Iterator[Image], *, end: str) -> Iterator[Piece]:
    """The pieces of a turn, the next of the pictures at each mark; `end` is written after its last text."""
    parts = turn.text.split(_MARK)
    for index, part in enumerate(parts):
        if index:
            yield next(pictures)
        text = part.strip("\n") if len(parts) > 1 else part
        if text.strip():
            yield Text(text.removesuffix(end) + end if index + 1 == len(parts) else text, train=turn.is_answer)


def read_coco(shard: Shard, ledger: Ledger) -> Iterator[Document]:
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
    licences = {
        entry.get("id"): str(entry.get("url") or entry.get("name"))
        for entry in content.get("licenses") or []
        if isinstance(entry, dict)
    }
    images = {entry.get("id"): entry for entry in content["images"] if isinstance(entry, dict)}
    captions: dict[Any, list[str]] = {}
    for number, annotation in enumerate(content.get("annotations") or []):
        caption = annotation.get("caption") if isinstance(annotation, dict) else None
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        if isinstance(caption, str) and caption.strip() and image_id in images:
            captions.setdefault(image_id, []).append(" ".join(caption.split()))
            continue
        with ledger.record(f"annotation {number + 1}", annotation):
            raise Dropped("annotation without a caption, or of a picture that the file does not list")
    for image_id, entry in images.items():
        image: Image | None = None
        metadata = {"licence": licences.get(entry.get("license"), ""), "url": str(entry.get("coco_url", ""))}
        metadata = {key: value for key, value in metadata.items() if value}
        for number, caption in enumerate(captions.get(image_id, [])):
            with ledger.record(f"image {image_id}, caption {number + 1}", caption, pictures=1):
                image = image or read_picture(shard, str(entry.get("file_name", "")))
                yield Document((image, Text(caption)), id=f"{shard.name}/{image_id}/{number}", metadata=metadata)
        if image_id not in captions:
            with ledger.record(f"image {image_id}", entry, pictures=1):
                raise Dropped("picture without a caption")


def parse_turns(value: Any) -> list[Turn]:
    """The turns of a conversation; none if one of them has no known form."""
    turns = []
    for turn in value if isinstance(value, list) else []:
        role = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
        text = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
        if role not in _ROLES or not isinstance(text, str):
            return []
        turns.append(Turn(_ROLES[role], text))
    return turns
