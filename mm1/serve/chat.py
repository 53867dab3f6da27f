"""An answer from a trained run, through the same document path as training."""

from collections.abc import Sequence
from pathlib import Path

import torch

from mm1.checkpoint import Loaded
from mm1.config.base import missing
from mm1.data.chat import prompt
from mm1.data.encode import encode
from mm1.data.image import ImageError, load
from mm1.document import Document, Image, Piece, Text
from mm1.generate.engine import generate
from mm1.generate.prompt import Prompt, picture
from mm1.generate.sampling import Decoding


def answer(loaded: Loaded, question: str, *, images: Sequence[Path], tokens: int) -> str:
    """What the model says to `question` about `images`: a chat's turn, or how it continues the text.

    Raises:
        ValueError: an image that does not exist or cannot be decoded, named; or one for a model that doesn't see.
    """
    if images and not loaded.sees:
        raise ValueError(f"{loaded.folder} holds a language model, which takes no pictures; ask it without --image")
    pieces: list[Piece] = [Image(_read(path)) for path in images]
    pieces.append(Text(question, train=False))
    document = prompt(pieces) if loaded.chats else Document(tuple(pieces))
    return continue_document(loaded, document, tokens=tokens)


def continue_document(loaded: Loaded, document: Document, *, tokens: int) -> str:
    """The model's greedy continuation of an open document, at most `tokens` long."""
    model = loaded.run.model
    encoded = encode(document, loaded.tokenizer, image_tokens=model.connector.tokens, end=False)
    size = model.vision.image_size
    pixels = [torch.from_numpy(load(image.data, size, box=image.box)) for image in encoded.images]
    given = Prompt(encoded.tokens.tolist(), [picture(pixels_CYX) for pixels_CYX in pixels])
    decoding = Decoding(tokens=tokens, stop_tokens=loaded.tokenizer.ends)
    (completion,) = generate(loaded.model, [given], decoding=decoding)
    return loaded.tokenizer.decode(completion.tokens).strip()


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(missing(path, "image"))
    data = path.read_bytes()
    try:
        load(data, 8)
    except ImageError as error:
        raise ValueError(f"{path} is {error}") from None
    return data
