"""Contrastive pre-training of the encoder on packed sequences (CLIP; Radford et al., arXiv 2103.00020).

A pair is a document with exactly one image. The N images of a batch index the candidates, and `Pairs.real_N` says
which of these are pairs; so shapes are static. All pairs of a step are contrasted with each other, whichever ranks and
micro-batches they are in.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import nn

from mm1.config.base import ConfigError
from mm1.config.model import ModelConfig
from mm1.config.run import RunConfig
from mm1.dist import DataRanks
from mm1.document import Batch
from mm1.model.decoder import Decoder, masks_of
from mm1.model.layers import initialise, linear
from mm1.model.vision import Vision
from mm1.objectives.contrast import LOSSES, Contrast, Features, Similarity
from mm1.objectives.draws import mix
from mm1.objectives.loss import Loss, ModelPart, Objective, refuse_pixels

STARTS = {"softmax": (1 / 0.07, 0.0), "sigmoid": (10.0, -10.0)}
"""Scale and bias of similarities at the start, by loss: CLIP, section 2.5; SigLIP, section 3.2."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Features of the candidate pairs, of length 1, and how similarities become logits."""

    image_ND: torch.Tensor
    text_ND: torch.Tensor
    real_N: torch.Tensor  # bool: the document of image n has no other image
    caption_N: torch.Tensor  # int64 hash of the text tokens: equal for equal captions
    log_scale: torch.Tensor  # 0-d, as the bias
    bias: torch.Tensor


class ContrastiveModel(nn.Module):
    """The image encoder of `config.vision` beside a text tower of `config.decoder`'s shape.

    Both are projected to the width of the text tower, as in CLIP.
    """

    def __init__(self, config: ModelConfig, loss: str = "softmax"):
        """`loss` is a key of `LOSSES`; the sigmoid loss learns a bias too."""
        super().__init__()
        self.config, self._starts = config, STARTS[loss]
        self.vision = Vision(config.vision)
        # tied, as the tower predicts no tokens: an output matrix of its own would never get a gradient
        self.decoder = Decoder(config.decoder.model_copy(update={"tie_embeddings": True}))
        self.image_projection = linear(config.vision.width, config.decoder.width, bias=False)
        self.text_projection = linear(config.decoder.width, config.decoder.width, bias=False)
        self.log_scale = nn.Parameter(torch.zeros(1))  # 1-d: FSDP shards no scalars
        self.bias = nn.Parameter(torch.zeros(1)) if loss == "sigmoid" else None

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Fill every parameter from `seed`; scale and bias of similarities start where the papers have them."""
        initialise(self, seed)
        scale, bias = self._starts
        self.log_scale.fill_(math.log(scale))
        if self.bias is not None:
            self.bias.fill_(bias)

    def forward(self, batch: Batch) -> Pairs:
        """The candidate pairs of a batch. The text tower sees no pixels, only the image token."""
        images_NCYX = batch.images_NCYX
        if not len(images_NCYX):
            size = self.config.vision.image_size
            images_NCYX = images_NCYX.new_zeros(1, 3, size, size)
        summary_NE = self.vision.summary(images_NCYX)
        x_BTD = self.decoder.embed(batch.tokens_BT)
        hidden_BTD = self.decoder(x_BTD, batch.position_BT, masks=masks_of(self.decoder.config, batch.document_BT))
        spans = _spans(batch, self.config, images=len(images_NCYX))
        text_ND = F.embedding(spans.last_N, hidden_BTD.flatten(0, 1))
        return Pairs(
            image_ND=F.normalize(self.image_projection(summary_NE).float(), dim=-1),
            text_ND=F.normalize(self.text_projection(text_ND).float(), dim=-1),
            real_N=spans.real_N,
            caption_N=spans.caption_N,
            log_scale=self.log_scale.float().sum(),
            bias=self.log_scale.new_zeros((), dtype=torch.float32) if self.bias is None else self.bias.float().sum(),
        )


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
    total = F.pad((mix(mixed) * text).cumsum(0), (1, 0))
    return total[last_N + 1] - total[start_N]


class Contrastive(Objective):
    """CLIP's symmetric loss over the image-text pairs of a step (arXiv 2103.00020, section 2.3)."""

    unit: ClassVar[str] = "pair"
    units: ClassVar[str] = "pairs"
    learns: ClassVar[str] = "tells which text belongs to which picture"
    parts: ClassVar[frozenset[ModelPart]] = frozenset({"vision", "decoder"})
    kind: ClassVar[str] = "softmax"

    model: ContrastiveModel

    def __init__(self, model: ContrastiveModel, sources: list[str]):
        self.model, self.sources = model, sources

    @classmethod
    def check(cls, run: RunConfig) -> None:
        if run.model.decoder.sparse.experts:
            raise ConfigError(f"objective {run.objective} has no router losses; set model.decoder.sparse.experts=0")
        if run.model.tiling.kind != "none":
            raise ConfigError(
                f"objective {run.objective} pairs a caption with one tile, which shows the whole picture; set "
                "model.tiling.kind=none"
            )
        refuse_pixels(run)
        if run.z_loss_weight:
            raise ConfigError(f"objective {run.objective} has no z loss; set z_loss_weight=0")
        if run.loss_weighting != "token":
            raise ConfigError(
                f"objective {run.objective} counts pairs, which have no tokens to weigh; set loss_weighting=token"
            )

    @classmethod
    def build(cls, run: RunConfig, sources: list[str]) -> Self:
        return cls(ContrastiveModel(run.model, cls.kind), sources)

    def weight(self, batch: Batch) -> int:
        return int(_spans(batch, self.model.config, images=max(1, len(batch.images_NCYX))).real_N.sum())

    def loss(self, batch: Batch) -> Loss:
        """The loss of a batch whose pairs are the only negatives."""
        (loss,) = self.losses([batch], ranks=DataRanks(), device=batch.tokens_BT.device)
        return loss

    def losses(self, batches: Sequence[Batch], *, ranks: DataRanks, device: torch.device) -> Iterator[Loss]:
        """The losses of the micro-batches among all pairs of the step, the last one first.

        A first pass gives the features of all pairs; their loss gives its gradients with respect to them. A second
        pass computes the features of a micro-batch again and propagates these gradients back, so that memory holds the
        activations of one micro-batch (GradCache; Gao et al., arXiv 2101.06983). The last micro-batch of the first pass
        keeps its activations, so a step of a single one has no second pass.
        """
        learns = torch.is_grad_enabled()
        *earlier, last = batches
        with torch.no_grad():
            every = [_detached(self.model(batch.to(device))) for batch in earlier]
        kept = self.model(last.to(device))
        every.append(_detached(kept))
        indices = [pairs.real_N.nonzero()[:, 0] for pairs in every]
        contrast = self._contrast(every, indices, ranks)
        ends = [0, *accumulate(len(index) for index in indices)]
        for number in reversed(range(len(batches))):
            pairs = kept if number == len(earlier) else every[number]
            if learns and number < len(earlier):
                pairs = self.model(batches[number].to(device))
            part = contrast.part(slice(ends[number], ends[number + 1]))
            yield self._loss_of(pairs, part, index=indices[number])

    def _contrast(self, every: list[Pairs], indices: list[torch.Tensor], ranks: DataRanks) -> Contrast:
        """The loss of this rank's pairs among those of all ranks, and its gradients."""
        own = Features(
            *(
                torch.cat([getattr(pairs, name)[index] for pairs, index in zip(every, indices, strict=True)])
                for name in ("image_ND", "text_ND", "caption_N")
            )
        )
        with torch.no_grad():
            return LOSSES[self.kind](own, Similarity(every[0].log_scale, every[0].bias), ranks)

    def _loss_of(self, pairs: Pairs, part: Contrast, *, index: torch.Tensor) -> Loss:
        """The loss of a micro-batch: its value is known, and so are its gradients with respect to `pairs`."""
        image_ND = torch.zeros_like(pairs.image_ND).index_copy(0, index, part.image_ND)
        text_ND = torch.zeros_like(pairs.text_ND).index_copy(0, index, part.text_ND)
        linear_part = (pairs.image_ND * image_ND).sum() + (pairs.text_ND * text_ND).sum()
        linear_part = linear_part + pairs.log_scale * part.log_scale_N.sum() + pairs.bias * part.bias_N.sum()
        value = part.loss_N.sum()
        by_source = torch.zeros(max(1, len(self.sources)), device=value.device)
        by_source[0] = value  # all pairs are each other's negatives, so sources have no losses of their own
        weights = torch.zeros_like(by_source)
        weights[0] = len(index)
        return Loss(
            value + (linear_part - linear_part.detach()),
            len(index),
            by_source,
            weights,
            {"retrieval": float(part.retrieved_N.sum())},
        )


class ContrastiveSigmoid(Contrastive):
    """SigLIP's loss, in which every image and text of a step are a pair or not (arXiv 2303.15343)."""

    kind: ClassVar[str] = "sigmoid"


def _detached(pairs: Pairs) -> Pairs:
    return Pairs(*(getattr(pairs, field.name).detach() for field in fields(pairs)))
