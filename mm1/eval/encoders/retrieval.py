"""Image-text retrieval on held-out captions: whether a picture finds its caption among all, and the other way round."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from mm1.data.store import open_store
from mm1.document import Document
from mm1.eval.encoders.encoder import Encoder, PairFeatures

RANKS = (1, 5, 10)
"""The k of recall at k, as papers have them since Karpathy and Fei-Fei (arXiv 1412.2306)."""

CANDIDATES = 5000
"""The most pairs that are candidates of each other, as many as COCO's test split has pictures."""


@dataclass(frozen=True, slots=True)
class Hits:
    """For each query of one direction the best rank, from 0, of an answer that belongs to it."""

    rank_Q: np.ndarray

    def at(self, k: int) -> np.ndarray:
        """Which queries have a right answer among the best `k`, as 0 and 1."""
        return (self.rank_Q < k).astype(np.float64)


def retrieve(encoder: Encoder, data: str, *, limit: int, seed: int) -> dict[str, np.ndarray]:
    """The hits of each query by measure, `image-to-text R@1` and so on.

    Candidates are the pairs of the store `data`, at most `CANDIDATES` of them, drawn by the seed; `limit` are asked in
    each direction. A picture of several captions is one picture, and so is a caption of several pictures: each of them
    is right.

    Raises:
        ValueError: the encoder has no text tower, or the store no pairs.
    """
    if not encoder.has_text_tower:
        raise ValueError(f"{encoder.name} has no text tower, which retrieval asks; its tasks are knn and probe")
    documents = list(pairs_of(data, seed=seed))
    if len(documents) < 2:
        raise ValueError(f"{data} has {len(documents)} documents of one picture and a text; retrieval needs several")
    hits = both_ways(documents, encoder.pairs(documents))
    draws = np.random.default_rng((seed, 2))
    measures = {}
    for direction, of_direction in hits.items():
        queries = np.sort(draws.permutation(len(of_direction.rank_Q))[:limit])
        for k in RANKS:
            measures[f"{direction} R@{k}"] = of_direction.at(k)[queries]
    return measures


def pairs_of(data: str, *, seed: int) -> list[Document]:
    """Documents of one picture and a text, at most `CANDIDATES`, drawn by the seed."""
    store = open_store(data)
    positions = np.random.default_rng((seed, 0)).permutation(len(store))
    documents: list[Document] = []
    for first in range(0, len(positions), 256):
        read = store.take(positions[first : first + 256].tolist())
        documents += [document for document in read if len(document.images) == 1 and document.text.strip()]
        if len(documents) >= CANDIDATES:
            break
    return documents[:CANDIDATES]


def both_ways(documents: list[Document], features: PairFeatures) -> dict[str, Hits]:
    """The ranks of pictures that look for captions, and of captions that look for pictures."""
    image_N = _numbers([hashlib.sha256(document.images[0].data).hexdigest() for document in documents])
    text_N = _numbers([document.text.strip() for document in documents])
    images, texts = _first(image_N), _first(text_N)
    belongs = torch.zeros(len(images), len(texts), dtype=torch.bool)
    belongs[image_N, text_N] = True
    scores = features.image_ND[images] @ features.text_ND[texts].T
    return {"image-to-text": Hits(best_ranks(scores, belongs)), "text-to-image": Hits(best_ranks(scores.T, belongs.T))}


def best_ranks(scores: torch.Tensor, belongs: torch.Tensor) -> np.ndarray:
    """For each row the rank of the best answer that belongs to it; equal scores of others come before it."""
    best_Q1 = scores.masked_fill(~belongs, -torch.inf).amax(1, keepdim=True)
    return ((scores >= best_Q1) & ~belongs).sum(1).numpy()


def _numbers(keys: list[str]) -> torch.Tensor:
    """Equal keys as equal numbers, from 0, in the order in which they first occur."""
    known: dict[str, int] = {}
    return torch.tensor([known.setdefault(key, len(known)) for key in keys])


def _first(numbers: torch.Tensor) -> list[int]:
    """Where each number first occurs."""
    known: dict[int, int] = {}
    for position, number in enumerate(numbers.tolist()):
        known.setdefault(number, position)
    return [*known.values()]
