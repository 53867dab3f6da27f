"""Contrastive pre-training of the encoder on packed rows (CLIP; Radford et al., arXiv 2103.00020).

A pair is a document with exactly one image. Images, N of them, index the pairs: image n belongs to
the n-th candidate, and `Pairs.real_N` says which candidates count. So shapes are static.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mm1.config.model import ModelConfig
from mm1.document import Batch
from mm1.model.attention import document_mask
from mm1.model.decoder import Decoder
from mm1.model.layers import initialise, linear
from mm1.model.vision import Vision
from mm1.objectives.loss import Loss

LARGEST_SCALE = 100.0
"""Where CLIP clamps the inverse temperature, for stability (section 2.5)."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Unit features of the candidate pairs; gather these over ranks for more negatives."""

    image_ND: torch.Tensor
    text_ND: torch.Tensor
    real_N: torch.Tensor  # bool: the document of image n has no other image
    caption_N: torch.Tensor  # int64 digest of the text tokens: equal for equal captions


@dataclass(frozen=True, slots=True)
class ContrastiveLoss:
    """Sums over the pairs of a batch, as 0-d tensors; add them over micro-batches, then divide."""

    loss: torch.Tensor  # mean of image-to-text and text-to-image cross-entropy, nats, summed over pairs
    pairs: torch.Tensor
    retrieved: torch.Tensor  # images whose best caption is their own (retrieval@1)


class ContrastiveModel(nn.Module):
    """The image encoder of `config.vision` beside a text tower of `config.decoder`'s shape.

    The common space has the width of the text tower, as in CLIP.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.vision = Vision(config.vision)
        # tied: the tower makes no logits, and an output matrix would never get a gradient
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
        """Features of the batch's candidate pairs. The text tower never sees pixels, only the image token."""
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

        Pairs with the same caption are no negatives of each other: both captions are right for both
        images, and with packed web captions that is common.
        """
        real_N, caption_N = pairs.real_N, pairs.caption_N
        log_scale = self.log_scale.float()
        # the value is clamped, the gradient passes: a clamped temperature can still come back
        scale = (log_scale - (log_scale - math.log(LARGEST_SCALE)).relu().detach()).exp()
        own_NN = torch.eye(len(real_N), dtype=torch.bool, device=real_N.device)
        other_NN = real_N & (caption_N[:, None] != caption_N)
        logits_NN = (scale * pairs.image_ND @ pairs.text_ND.T).masked_fill(~(own_NN | other_NN), -torch.inf)
        # the same mask transposed: a text's negatives are the images that are real and captioned otherwise
        towards_NN = (scale * pairs.text_ND @ pairs.image_ND.T).masked_fill(~(own_NN | other_NN), -torch.inf)
        answer_N = torch.arange(len(real_N), device=real_N.device)
        losses_N = F.cross_entropy(logits_NN, answer_N, reduction="none")
        losses_N = (losses_N + F.cross_entropy(towards_NN, answer_N, reduction="none")) / 2
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
    last_N: torch.Tensor  # flat place where the document of image n ends
    real_N: torch.Tensor
    caption_N: torch.Tensor


def _spans(batch: Batch, config: ModelConfig, *, images: int) -> _Spans:
    """Where the documents of the images lie, found without leaving the device."""
    rows, places = batch.tokens_BT.shape
    row_B1 = torch.arange(rows, device=batch.tokens_BT.device)[:, None]
    document = (batch.document_BT + row_B1 * (places + 1)).flatten()  # unique over the batch
    image = batch.tokens_BT.flatten() == config.image_token
    seen = image.cumsum(0)
    wanted_N = torch.arange(images, device=seen.device) * config.connector.tokens + 1
    first_N = torch.searchsorted(seen, wanted_N).clamp(max=len(seen) - 1)  # first place of image n
    exists_N = wanted_N <= seen[-1]
    document_N = document[first_N]
    together_NN = (document_N[:, None] == document_N) & exists_N
    ends = F.pad(document[1:] != document[:-1], (0, 1), value=True).cumsum(0)
    before_N = F.pad(ends, (1, 0))[first_N]
    last_N = torch.searchsorted(ends, before_N + 1)
    start_N = first_N - batch.position_BT.flatten()[first_N]
    caption_N = _digest(batch.tokens_BT.flatten(), ~image, start_N=start_N, last_N=last_N)
    return _Spans(last_N, exists_N & (together_NN.sum(1) == 1), caption_N)


def _digest(tokens: torch.Tensor, text: torch.Tensor, *, start_N: torch.Tensor, last_N: torch.Tensor) -> torch.Tensor:
    """A 64-bit digest of the text tokens of each span, in order; int64 arithmetic wraps.

    Sums of mixed (token, rank) words, so that a cumulative sum gives all spans at once.
    """
    words = F.pad(text.cumsum(0), (1, 0))
    # the rank of a token in its own document: the words since the document began
    start = torch.zeros_like(tokens).scatter(0, start_N, start_N).cummax(0).values
    rank = words[:-1] - words[start]
    mixed = (tokens + 1) * -7046029254386353131 + (rank + 1) * -4417276706812531889
    mixed = (mixed ^ (mixed >> 29)) * -4658895280553007687
    mixed = (mixed ^ (mixed >> 32)) * -7723592293110705685
    total = F.pad(((mixed ^ (mixed >> 30)) * text).cumsum(0), (1, 0))
    return total[last_N + 1] - total[start_N]


class Contrastive:
    """CLIP's symmetric loss over the picture-text pairs of a batch (arXiv 2103.00020, section 2.3)."""

    def __init__(self, model: ContrastiveModel, sources: list[str]):
        self._model, self.sources = model, sources

    def weight(self, batch: Batch) -> int:
        return batch.images

    def loss(self, batch: Batch) -> Loss:
        found = self._model(batch)
        by_source = torch.zeros(max(1, len(self.sources)), device=found.loss.device)
        by_source[0] = found.loss.detach()  # one batch, one set of negatives: the sources can't be told apart
        weights = torch.zeros_like(by_source)
        weights[0] = found.pairs
        return Loss(found.loss, int(found.pairs), by_source, weights, {"retrieval": float(found.retrieved)})
