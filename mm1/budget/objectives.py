"""The model and the forward pass of each objective, as the budget computes them: on tensors without data."""

import torch
import torch.nn.functional as F

from mm1.config.model import ModelConfig
from mm1.config.run import RunConfig
from mm1.document import Batch
from mm1.model.decoder import Masks
from mm1.model.mllm import MLLM
from mm1.model.moe import Routing
from mm1.objectives.autoregressive_pixels import AutoregressivePixels, PixelModel
from mm1.objectives.contrastive import Contrastive, ContrastiveModel
from mm1.objectives.index import generates_text, objective_of
from mm1.objectives.next_token import LOGITS, cross_entropy

PlannedModel = MLLM | ContrastiveModel | PixelModel


def model_of(run: RunConfig, shape: ModelConfig) -> PlannedModel:
    """The model of a run's objective, in this shape.

    Raises:
        ConfigError: an objective that predicts pixels doesn't fit the run's other fields.
    """
    kind = objective_of(run)
    if issubclass(kind, Contrastive):
        return ContrastiveModel(shape, kind.kind)
    if generates_text(run):
        return MLLM(shape)
    kind.check(run)
    assert run.pixels is not None
    return PixelModel(shape.vision, run.pixels)


def loss_of(
    model: PlannedModel, batch: Batch, run: RunConfig, *, masks: Masks, positions: torch.Tensor, low_precision: bool
) -> torch.Tensor:
    """What a micro-batch minimises, computed as its objective does; nothing depends on what the batch holds.

    `positions` are as many as the batch has trained tokens.
    """
    if isinstance(model, ContrastiveModel):
        return _features(model, batch, masks=masks)
    if isinstance(model, PixelModel):
        return AutoregressivePixels(model, [*run.data.sources], run).loss(batch).total
    at_once = LOGITS["cuda" if low_precision else "cpu"]
    return _next_token(model, batch, masks=masks, positions=positions, at_once=at_once)


def _next_token(mllm: MLLM, batch: Batch, *, masks: Masks, positions: torch.Tensor, at_once: int) -> torch.Tensor:
    """The loss that `NextToken` minimises."""
    x_BTD = mllm.embed(batch.tokens_BT, mllm.encode_images(batch.images_NCYX))
    hidden_BTD, layers = mllm.decoder.routed(x_BTD, batch.position_BT, masks=masks, real_BT=batch.document_BT > 0)
    targets = batch.targets_BT.flatten()
    total = cross_entropy(mllm, hidden_BTD.flatten(0, 1), targets=targets, positions=positions, at_once=at_once).total
    routing = Routing.of(layers, mllm.config.decoder.sparse, sequences=len(batch.tokens_BT))
    return total if routing is None else total + routing.penalty


def _features(model: ContrastiveModel, batch: Batch, *, masks: Masks) -> torch.Tensor:
    """The sum of the features that `ContrastiveModel` gives; their loss is the planner's."""
    image_NE = model.vision.summary(batch.images_NCYX)
    image_ND = F.normalize(model.image_projection(image_NE).float(), dim=-1)
    hidden_BTD = model.decoder(model.decoder.embed(batch.tokens_BT), batch.position_BT, masks=masks)
    text_ND = hidden_BTD.flatten(0, 1)[: len(image_ND)]
    return image_ND.sum() + F.normalize(model.text_projection(text_ND).float(), dim=-1).sum()
