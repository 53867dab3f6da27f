"""Contrastive pre-training of the encoder on packed sequences (CLIP; Radford et al., arXiv 2103.00020).

A pair is a document with exactly one image. The N images of a batch index the candidates, and `Pairs.real_N` says
which of these are pairs; so shapes are static.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import nn

from mm1.config.base import ConfigError
from mm1.config.model import ModelConfig
from mm1.config.run import RunConfig
from mm1.document import Batch
from mm1.model.attention import document_mask
from mm1.model.decoder import Decoder
from mm1.model.layers import initialise, linear
from mm1.model.vision import Vision
from mm1.objectives.loss import Loss, ModelPart, Objective

LARGEST_SCALE = 100.0
"""At which CLIP clamps the inverse temperature, for stability (section 2.5)."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Features of the candidate pairs, of length 1."""

    image_ND: torch.Tensor
    text_ND: torch.Tensor
    real_N: torch.Tensor  # bool: the document of image n has no other image
    caption_N: torch.Tensor  # int64 hash of the text tokens: equal for equal captions


@dataclass(frozen=True, slots=True)
class ContrastiveLoss:
    """Sums over the pairs of a batch, as 0-d tensors."""

    loss: torch.Tensor  # mean of image-to-text and text-to-image cross-entropy in nats, summed over pairs
    pairs: torch.Tensor
    retrieved: torch.Tensor  # images whose best caption is their own (retrieval@1)


class ContrastiveModel(nn.Module):
    """The image encoder of `config.vision` beside a text tower of `config.decoder`'s shape.

    Both are projected to the width of the text tower, as in CLIP.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.vision = Vision(config.vision)
        # tied, as the tower predicts no tokens: an output matrix of its own would never get a gradient
        self.decoder = Decoder(config.decoder.model_copy(update={"tie_embeddings": True}))
        self.image_projection = linear(config.vision.width, config.decoder.width, bias=False)
        self.text_projection = linear(config.decoder.width, config.decoder.width, bias=False)
        self.log_scale = nn.Parameter(torch.zeros(1))  # 1-d: FSDP shards no scalars

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Fill every parameter from `seed`; the temperature starts at 0.07 (CLIP, section 2.5)."""
        initialise(self, seed)
        self.log_scale.fill_(0.07).log_().neg_()

    def pairs(self, batch: Batch) -> Pairs:
        """The candidate pairs of a batch. The text tower sees no pixels, only the image token."""
        images_NCYX = batch.images_NCYX
        if not len(images_NCYX):
            size = self.config.vision.image_size
            images_NCYX = images_NCYX.new_zeros(1, 3, size, size)
        summary_NE = self.vision.summary(images_NCYX)
        x_BTD = self.decoder.embed(batch.tokens_BT)
        hidden_BTD = self.decoder(x_BTD, batch.position_BT, mask=document_mask(batch.document_BT))
        spans = _spans(batch, self.config, images=len(images_NCYX))
        text_ND = F.embedding(spans.last_N, hidden_BTD.flatten(0, 1))
        return Pairs(
            image_ND=F.normalize(self.image_projection(summary_NE).float(), dim=-1),
            text_ND=F.normalize(self.text_projection(text_ND).float(), dim=-1),
            real_N=spans.real_N,
            caption_N=spans.caption_N,
        )

    def loss(self, pairs: Pairs) -> ContrastiveLoss:
        """Symmetric cross-entropy over the real pairs.

        Pairs with the same caption, which are common among web captions, are not negatives of each other: both
        captions are right for both images.
        """
        real_N, caption_N = pairs.real_N, pairs.caption_N
        log_scale = self.log_scale.float()
        # only the value is clamped: the gradient passes, so that a clamped temperature can come back
        scale = (log_scale - (log_scale - math.log(LARGEST_SCALE)).relu().detach()).exp()
        own_NN = torch.eye(len(real_N), dtype=torch.bool, device=real_N.device)
        other_NN = real_N & (caption_N[:, None] != caption_N)
        logits_NN = (scale * pairs.image_ND @ pairs.text_ND.T).masked_fill(~(own_NN | other_NN), -torch.inf)
        # the mask is the same: a text's negatives are the real images with another caption
        transposed_NN = (scale * pairs.text_ND @ pairs.image_ND.T).masked_fill(~(own_NN | other_NN), -torch.inf)
        answer_N = torch.arange(len(real_N), device=real_N.device)
        losses_N = F.cross_entropy(logits_NN, answer_N, reduction="none")
        losses_N = (losses_N + F.cross_entropy(transposed_NN, answer_N, reduction="none")) / 2
        return ContrastiveLoss(
            loss=torch.where(real_N, losses_N, 0).sum(),
            pairs=real_N.sum(),
            retrieved=((logits_NN.argmax(1) == answer_N) & real_N).sum(),
        )

    def forward(self, batch: Batch) -> ContrastiveLoss:
        """The loss of one batch, its pairs the only negatives."""
        return self.loss(self.pairs(batch))


@dataclass(frozen=True, slots=True)
class _Spans:
    last_N: torch.Tensor  # flat position at which the document of image n ends
    real_N: torch.Tensor
    caption_N: torch.Tensor


def _spans(batch: Batch, config: ModelConfig, *, images: int) -> _Spans:
    """The spans of the documents that the images belong to, computed without waiting for the device."""
    sequences, length = batch.tokens_BT.shape
    sequence_B1 = torch.arange(sequences, device=batch.tokens_BT.device)[:, None]
    document = (batch.document_BT + sequence_B1 * (length + 1)).flatten()  # unique over the batch
    image = batch.tokens_BT.flatten() == config.image_token
    image_tokens = image.cumsum(0)
    number_N = torch.arange(images, device=image.device) * config.connector.tokens + 1  # of image n's first token
    first_N = torch.searchsorted(image_tokens, number_N).clamp(max=len(image) - 1)
    exists_N = number_N <= image_tokens[-1]
    document_N = document[first_N]
    together_NN = (document_N[:, None] == document_N) & exists_N
    ends = F.pad(document[1:] != document[:-1], (0, 1), value=True).cumsum(0)
    before_N = F.pad(ends, (1, 0))[first_N]
    last_N = torch.searchsorted(ends, before_N + 1)
    start_N = first_N - batch.position_BT.flatten()[first_N]
    caption_N = _hash(batch.tokens_BT.flatten(), ~image, start_N=start_N, last_N=last_N)
    return _Spans(last_N, exists_N & (together_NN.sum(1) == 1), caption_N)


def _hash(tokens: torch.Tensor, text: torch.Tensor, *, start_N: torch.Tensor, last_N: torch.Tensor) -> torch.Tensor:
    """A 64-bit hash of the text tokens of each span, in order; int64 arithmetic wraps.

    It is a sum over mixed (token, rank) words, so that one cumulative sum gives the hashes of all spans.
    """
    words = F.pad(text.cumsum(0), (1, 0))
    # the rank of a token in its own document: the text tokens since the document's start
    start = torch.zeros_like(tokens).scatter(0, start_N, start_N).cummax(0).values
    rank = words[:-1] - words[start]
    mixed = (tokens + 1) * -7046029254386353131 + (rank + 1) * -4417276706812531889
    mixed = (mixed ^ (mixed >> 29)) * -4658895280553007687
    mixed = (mixed ^ (mixed >> 32)) * -7723592293110705685
    total = F.pad(((mixed ^ (mixed >> 30)) * text).cumsum(0), (1, 0))
    return total[last_N + 1] - total[start_N]


class Contrastive(Objective):
    """CLIP's symmetric loss over the image-text pairs of a batch (arXiv 2103.00020, section 2.3)."""

    unit: ClassVar[str] = "pair"
    parts: ClassVar[frozenset[ModelPart]] = frozenset({"vision", "decoder"})

    model: ContrastiveModel

    def __init__(self, model: ContrastiveModel, sources: list[str]):
        self.model, self.sources = model, sources

    @classmethod
    def check(cls, run: RunConfig) -> None:
        if run.model.decoder.sparse.experts:
            raise ConfigError("objective contrastive has no router losses; set model.decoder.sparse.experts=0")
        if run.model.tiling.kind != "none":
            raise ConfigError(
                "objective contrastive pairs a caption with one tile, which shows the whole picture; set "
                "model.tiling.kind=none"
            )
        if run.z_loss_weight:
            raise ConfigError("objective contrastive has no z loss; set z_loss_weight=0")
        if run.loss_weighting != "token":
            raise ConfigError(
                "objective contrastive counts pairs, which have no tokens to weigh; set loss_weighting=token"
            )

    @classmethod
    def build(cls, run: RunConfig, sources: list[str]) -> Self:
        return cls(ContrastiveModel(run.model), sources)

    def weight(self, batch: Batch) -> int:
        return batch.images

    def loss(self, batch: Batch) -> Loss:
        sums = self.model(batch)
        by_source = torch.zeros(max(1, len(self.sources)), device=sums.loss.device)
        by_source[0] = (
            sums.loss.detach()
        )  # all pairs are each other's negatives, so sources have no losses of their own
        weights = torch.zeros_like(by_source)
        weights[0] = sums.pairs
        return Loss(sums.loss, int(sums.pairs), by_source, weights, {"retrieval": float(sums.retrieved)})
