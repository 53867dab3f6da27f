"""A model small enough for tests, and documents to pack for it."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from mm1.config.model import ConnectorConfig, DecoderConfig, ModelConfig, VisionConfig
from mm1.config.run import DataConfig, RunConfig, SourceConfig
from mm1.document import IGNORED, Batch
from mm1.model.mllm import MLLM

IMAGE = 3  # the image token
IMAGE_TOKENS = 4  # of a tile


def config(**connector) -> ModelConfig:
    return ModelConfig(
        image_token_id=IMAGE,
        vision=VisionConfig(image_size=24, patch_size=6, width=24, layers=2, heads=2, mlp_width=40),
        connector=ConnectorConfig(tokens=IMAGE_TOKENS, width=16, depth=1, heads=2, **connector),
        decoder=DecoderConfig(
            vocabulary=64, width=32, layers=2, heads=4, kv_heads=2, head_width=8, mlp_width=48, qk_norm=True
        ),
    )


def model(seed: int = 0, **connector) -> MLLM:
    built = MLLM(config(**connector))
    built.initialise(seed)
    return built


def run(stores: dict[str, Path]) -> RunConfig:
    """Eight steps of captions and text on a model of a hundred thousand parameters."""
    return RunConfig(
        recipe="small",
        model=ModelConfig(
            vision=VisionConfig(image_size=16, patch_size=8, width=16, layers=1, heads=1, mlp_width=32),
            connector=ConnectorConfig(kind="average", tokens=4),
            decoder=DecoderConfig(
                vocabulary=4096, width=16, layers=2, heads=1, kv_heads=1, head_width=16, mlp_width=32
            ),
        ),
        data=DataConfig(
            sources={
                "captions": SourceConfig(store=str(stores["captions"]), share=3),
                "text": SourceConfig(store=str(stores["text"]), share=1),
            },
            sequence_length=64,
            max_images=8,
            workers=0,
        ),
        steps=8,
        batch_size=4,
        micro_batch_size=2,
        checkpoint_every=2,
    )


@dataclass
class Doc:
    """Tokens with image tokens among them, and the images."""

    tokens: list[int]
    images: list[torch.Tensor] = field(default_factory=list)


def image(seed: int, size: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)


def doc(*pieces, seed: int = 0) -> Doc:
    """A document of random text (an int: its length) and images ("image")."""
    generator = torch.Generator().manual_seed(seed)
    document = Doc([])
    for piece in pieces:
        if piece == "image":
            document.tokens += [IMAGE] * IMAGE_TOKENS
            document.images.append(image(1000 * seed + len(document.images)))
        else:
            document.tokens += torch.randint(4, 64, (piece,), generator=generator).tolist()
    return document


def pack(rows: list[list[Doc]], *, length: int | None = None, padding_images: int = 0) -> Batch:
    """Sequences of documents as a batch, padded to `length`."""
    length = length or max(sum(len(d.tokens) for d in row) for row in rows)
    tokens, documents, positions = (torch.zeros(len(rows), length, dtype=torch.int64) for _ in range(3))
    images = [picture for row in rows for d in row for picture in d.images]
    for b, row in enumerate(rows):
        at = 0
        for number, d in enumerate(row, start=1):
            stop = at + len(d.tokens)
            tokens[b, at:stop] = torch.tensor(d.tokens)
            documents[b, at:stop] = number
            positions[b, at:stop] = torch.arange(len(d.tokens))
            at = stop
    black = [torch.zeros(3, 24, 24, dtype=torch.uint8)] * padding_images
    return Batch(
        tokens_BT=tokens,
        targets_BT=torch.full_like(tokens, IGNORED),
        document_BT=documents,
        position_BT=positions,
        images_NCYX=torch.stack([*images, *black]) if images or black else torch.zeros(0, 3, 24, 24).byte(),
        images=len(images),
        source_B=torch.zeros(len(rows), dtype=torch.int64),
        sequence_B=torch.arange(len(rows)),
    )


ROWS = [
    [doc("image", 5, seed=1), doc(3, seed=2), doc(2, "image", 4, "image", 1, seed=3)],
    [doc(9, seed=4), doc("image", 1, seed=5), doc(1, seed=6), doc(30, seed=7)],
    [doc("image", seed=8), doc("image", 5, seed=9)],
]
"""Text alone, images first, last and between, documents of one token and of one image."""
