"""Conversations as LLaVA, ShareGPT, OpenAI, TRL and Alpaca write them -> documents whose answers are trained."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mm1.document import Document, Image, Piece, Text
from mm1.prepare.bounded_read import parse_json
from mm1.prepare.ledger import Dropped, Record
from mm1.prepare.readers.chat_parts import flatten_parts
from mm1.prepare.readers.pictures import Pictures

TRANSCRIBE = "Please transcribe all the text in the picture."
"""The question before the transcription of a page. What MM1 asks about SynthDog is not published."""

_MARK = "<image>"
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    **dict.fromkeys(("chatgpt", "bard", "bing"), "assistant"),  # of ShareGPT
    "system": "system",
    "developer": "system",  # OpenAI's new name
}
_PICTURE_NAMES = ("image", "images", "file_name", "file_names")
_INPUTS, _ANSWERS = ("input", "context"), ("output", "response")  # of Alpaca, and of Dolly
_TOOLS = ("tool", "function", "function_call", "observation", "tool_call", "tool_response", "ipython")
_UNSEEN = ("video", "videos", "audio", "audios")


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of a conversation: who speaks (`system`, `user` or `assistant`), and the text, with `<image>` marks."""

    role: str
    text: str

    @property
    def is_answer(self) -> bool:
        return self.role == "assistant"


def has_instructions(names: Collection[str]) -> bool:
    """Whether records with these fields are instructions with their answers, as Alpaca and Dolly write them."""
    return "instruction" in names and any(name in names for name in _ANSWERS)


def is_instruction(row: Mapping[str, Any]) -> bool:
    """Whether a record with these fields asks or answers something; of others the text is all they say."""
    return any(_is_filled(row.get(name)) for name in ("instruction", *_ANSWERS))


def names_texts(columns: Mapping[Any, str]) -> bool:
    """Whether the user names the column of texts and none of chats: then nothing is read as a chat."""
    return "text" in columns and "messages" not in columns


def _is_filled(value: Any) -> bool:
    return value is not None and bool(str(value).strip())


def turns_of(row: Mapping[str, Any]) -> Any:
    """The turns of a record as it holds them: a list, or the text of one, or instruction, input and output.

    https://github.com/tatsu-lab/stanford_alpaca#data-release; `history`, pairs of earlier questions and answers, is
    LLaMA-Factory's, `items` the name of the turns where ShareGPT was first published.
    """
    turns = next((row[name] for name in ("conversations", "messages", "items") if row.get(name)), None)
    if turns or not has_instructions(row):
        return turns
    history = row.get("history")
    first, more, answer = (_first_filled(row, names) for names in (("instruction",), _INPUTS, _ANSWERS))
    question = "\n".join(str(part) for part in (first, more) if part is not None)
    if not isinstance(first, str | None):
        question = first  # no text, so that the record is left out by name
    pairs = [*(history if isinstance(history, list) else []), [question, "" if answer is None else answer]]
    return [
        {"from": role, "value": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair if isinstance(pair, list) else [pair], strict=False)
    ]


def _first_filled(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if _is_filled(row.get(name))), None)


def conversation(row: Mapping[str, Any], turns: Any, pictures: Pictures, record: Record) -> Document:
    """The chat of a record whose turns are in one of the forms of LLaVA, ShareGPT, OpenAI and TRL.

    Raises:
        Dropped: its turns are of no known form, its pictures too many or too few, or it calls tools or shows a video.
    """
    images: Any = next((row[name] for name in _PICTURE_NAMES if row.get(name)), [])
    cells = images if isinstance(images, list) else [images]
    record.pictures = len(cells)
    turns, cells = flatten_parts(parse_json(turns) if isinstance(turns, str) else turns, cells)
    record.pictures = len(cells)
    if isinstance(turns, list) and any(map(_is_of_tool, turns)):
        raise Dropped("conversation with calls of tools, which are not read", detail=_roles(turns))
    parsed = parse_turns(turns)
    if not parsed:
        raise Dropped("conversation without turns, or with none of the known form", detail=_roles(turns))
    unseen = next((name for name in _UNSEEN if row.get(name)), None)
    if unseen is not None:
        raise Dropped("conversation about a video or a sound", detail=str(row[unseen]))
    system = row.get("system") or row.get("system_prompt")
    if isinstance(system, str) and parsed[0].role != "system":
        parsed = [Turn("system", system), *parsed]
    return chat(parsed, [pictures.get(cell) for cell in cells])


def chat(turns: Sequence[Turn], pictures: Sequence[Image], *, id: str = "") -> Document:
    """A conversation as a document, answers trained; turns of one role are joined by a line.

    Without any `<image>` the pictures stand first, as LLaVA's own loader puts them. The turns of the system that it
    begins with are its first pieces; metadata `system_pieces` says how many.

    Raises:
        Dropped: it has no answer, so nothing to train, or not as many pictures as `<image>` marks.
    """
    turns = [turn for turn in turns if turn.text.strip()]
    if not any(turn.is_answer and turn.text.replace(_MARK, "").strip() for turn in turns):
        raise Dropped("conversation without an answer")
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


def parse_turns(value: Any) -> list[Turn]:
    """The turns of a conversation; none if one of them has no known form."""
    turns = []
    for turn in value if isinstance(value, list) else []:
        role = _role(turn)
        text = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
        if role not in _ROLES or not isinstance(text, str):
            return []
        turns.append(Turn(_ROLES[role], text))
    return turns


def _is_of_tool(turn: Any) -> bool:
    return isinstance(turn, dict) and (_role(turn) in _TOOLS or bool(turn.get("tool_calls")))


def _role(turn: Any) -> str:
    return str(turn.get("from", turn.get("role"))).lower() if isinstance(turn, dict) else ""


def _roles(turns: Any) -> str:
    """Who speaks in a conversation, for a person to see why it is not read."""
    return ", ".join(dict.fromkeys(map(_role, turns))) if isinstance(turns, list) else ""
