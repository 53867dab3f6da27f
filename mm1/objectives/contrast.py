"""The two losses by which images find their texts among those of a whole step, with their gradients.

Every rank computes the loss of its own pairs, and the gradient of the loss of the whole step with respect to its own
features. No more than `at_once` similarities are in memory.

Letters beside the project's legend: here N are the pairs of this rank, R some of them, A the pairs of all ranks, M
those of one other rank, padded to the most that a rank has.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

from mm1.dist import DataRanks

LARGEST_SCALE = 100.0
"""At which CLIP clamps the inverse temperature, for stability (arXiv 2103.00020, section 2.5)."""

AT_ONCE = {"cpu": 2**18, "cuda": 2**24}
"""Similarities in memory at once, by device: on a CPU a matrix of them stays in its cache."""


@dataclass(frozen=True, slots=True)
class Features:
    """What is known of a rank's pairs: features of length 1 in fp32, and a hash that equal captions share."""

    image_ND: torch.Tensor
    text_ND: torch.Tensor
    caption_N: torch.Tensor


@dataclass(frozen=True, slots=True)
class Similarity:
    """What the cosine of two features is multiplied by, and what is added to that; 0-d tensors in fp32."""

    log_scale: torch.Tensor
    bias: torch.Tensor

    @property
    def scale(self) -> torch.Tensor:
        return self.log_scale.clamp(max=math.log(LARGEST_SCALE)).exp()


@dataclass(frozen=True, slots=True)
class Contrast:
    """The loss of each pair of this rank in nats, whether its image finds its caption, and gradients.

    `image_ND` and `text_ND` are those of the loss summed over all pairs of the step; `log_scale_N` and `bias_N` are
    each pair's part of them. The clamp of the scale lets gradients pass, so that a clamped temperature can come back.
    """

    loss_N: torch.Tensor
    retrieved_N: torch.Tensor
    image_ND: torch.Tensor
    text_ND: torch.Tensor
    log_scale_N: torch.Tensor
    bias_N: torch.Tensor

    def part(self, rows: slice) -> "Contrast":
        """Some of the pairs."""
        return Contrast(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def zeros(own: Features) -> "Contrast":
        """No loss and no gradient yet."""
        zeros_N = own.image_ND.new_zeros(len(own.image_ND))
        return Contrast(
            zeros_N,
            torch.zeros_like(zeros_N, dtype=torch.bool),
            torch.zeros_like(own.image_ND),
            torch.zeros_like(own.text_ND),
            zeros_N.clone(),
            zeros_N.clone(),
        )


@dataclass(frozen=True, slots=True)
class _Compared:
    """Which texts are an image's own, and which it is compared with: its own and those with another caption."""

    own: torch.Tensor
    compared: torch.Tensor

    @staticmethod
    def of(captions: torch.Tensor, others: torch.Tensor, *, first: int) -> "_Compared":
        """Rows of `captions` against `others`; that of row 0 is number `first` among them, -1 if none is."""
        own = torch.arange(len(others), device=others.device) - first
        own = (own == torch.arange(len(captions), device=others.device)[:, None]) & (first >= 0)
        return _Compared(own, own | (captions[:, None] != others))

    def only(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits that are compared, minus infinity elsewhere."""
        return logits.masked_fill(~self.compared, -math.inf)

    def own_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """The logit of each row's own pair; 0 where there is none."""
        return logits.masked_fill(~self.own, 0).sum(1)

    def best_other(self, logits: torch.Tensor) -> torch.Tensor:
        """The largest logit of each row that is not its own."""
        return self.only(logits).masked_fill(self.own, -math.inf).amax(1)


def softmax_contrast(own: Features, similarity: Similarity, ranks: DataRanks) -> Contrast:
    """CLIP's loss: the mean of image-to-text and text-to-image cross-entropy over all pairs of the step.

    Pairs with the same caption, which are common among web captions, are not negatives of each other: both captions
    are right for both images.

    Two passes over the similarities. The first gives the logarithm of each row's sum of exponentials; these are
    gathered, and the gradients of a rank need nothing else of the losses of others.
    """
    image_AD, text_AD, caption_A = (torch.cat(ranks.gather(x)) for x in (own.image_ND, own.text_ND, own.caption_N))
    before = sum(ranks.sizes(len(own.image_ND))[: ranks.rank])
    scale, result = similarity.scale, Contrast.zeros(own)
    sums_N2 = own.image_ND.new_zeros(len(own.image_ND), 2)
    slices = _rows(len(own.image_ND), len(caption_A), device=caption_A.device)
    for rows in slices:
        compared = _Compared.of(own.caption_N[rows], caption_A, first=before + rows.start)
        logits_RA = scale * own.image_ND[rows] @ text_AD.T
        transposed_RA = scale * own.text_ND[rows] @ image_AD.T
        sums_N2[rows] = torch.stack([compared.only(x).logsumexp(1) for x in (logits_RA, transposed_RA)], 1)
        own_R = compared.own_logits(logits_RA)
        result.loss_N[rows] = sums_N2[rows].mean(1) - own_R
        result.retrieved_N[rows] = own_R > compared.best_other(logits_RA)
    sums_A2 = torch.cat(ranks.gather(sums_N2))
    for rows in slices:
        compared = _Compared.of(own.caption_N[rows], caption_A, first=before + rows.start)
        for side, (features_ND, others_AD, gradient_ND) in enumerate(
            ((own.image_ND, text_AD, result.image_ND), (own.text_ND, image_AD, result.text_ND))
        ):
            logits_RA = scale * features_ND[rows] @ others_AD.T
            by_row, by_column = logits_RA - sums_N2[rows, side, None], logits_RA - sums_A2[:, 1 - side]
            slope_RA = (compared.only(by_row).exp() + compared.only(by_column).exp()) / 2 - compared.own.float()
            gradient_ND[rows] = scale * slope_RA @ others_AD
            if side == 0:  # each similarity of the step stands in one row of one rank
                result.log_scale_N[rows] = (slope_RA * logits_RA).sum(1)
    return result


def sigmoid_contrast(own: Features, similarity: Similarity, ranks: DataRanks) -> Contrast:
    """SigLIP's loss (Zhai et al., arXiv 2303.15343, section 3.2): each image and text are a pair or not, on their own.

    Pairs with the same caption are not compared. The texts of a rank travel round the ranks with their gradients, so
    that no rank holds more texts than its own and another rank's (section 3.3 there).
    """
    scale, result = similarity.scale, Contrast.zeros(own)
    count, most = len(own.image_ND), max(1, *ranks.sizes(len(own.image_ND)))
    text_MD, caption_M = F.pad(own.text_ND, (0, 0, 0, most - count)), F.pad(own.caption_N, (0, most - count))
    real_M = (torch.arange(most, device=caption_M.device) < count).to(caption_M)
    travelling = [text_MD, caption_M, real_M, torch.zeros_like(text_MD)]
    own_N, best_N = own.image_ND.new_zeros(count), own.image_ND.new_full((count,), -math.inf)
    for turn in range(ranks.count):
        text_MD, caption_M, real_M, gradient_MD = travelling
        for rows in _rows(count, most, device=caption_M.device):
            compared = _Compared.of(own.caption_N[rows], caption_M, first=-1 if turn else rows.start)
            compared = _Compared(compared.own, compared.compared & (real_M > 0))
            scaled_RM = scale * own.image_ND[rows] @ text_MD.T
            logits_RM = scaled_RM + similarity.bias
            sign_RM = torch.where(compared.own, 1.0, -1.0)
            result.loss_N[rows] += F.softplus(-sign_RM * logits_RM).masked_fill(~compared.compared, 0).sum(1)
            slope_RM = (-sign_RM * torch.sigmoid(-sign_RM * logits_RM)).masked_fill(~compared.compared, 0)
            result.image_ND[rows] += scale * slope_RM @ text_MD
            gradient_MD += scale * slope_RM.T @ own.image_ND[rows]
            result.log_scale_N[rows] += (slope_RM * scaled_RM).sum(1)
            result.bias_N[rows] += slope_RM.sum(1)
            own_N[rows] += compared.own_logits(logits_RM)
            best_N[rows] = torch.maximum(best_N[rows], compared.best_other(logits_RM))
        travelling = ranks.shift(travelling)  # after the last turn the gradients come home
    result.text_ND.copy_(travelling[3][:count])
    result.retrieved_N.copy_(own_N > best_N)
    return result


LOSSES: dict[str, Callable[[Features, Similarity, DataRanks], Contrast]] = {
    "softmax": softmax_contrast,
    "sigmoid": sigmoid_contrast,
}


def _rows(own: int, others: int, *, device: torch.device) -> list[slice]:
    """The own rows in slices, so that few enough similarities with `others` are in memory."""
    size = max(1, AT_ONCE[device.type] // max(1, others))
    return [slice(first, min(first + size, own)) for first in range(0, own, size)]
