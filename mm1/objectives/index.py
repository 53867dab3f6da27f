"""Every objective by its name: the values of `RunConfig.objective`."""

from mm1.config.run import RunConfig
from mm1.objectives.autoregressive_pixels import AutoregressivePixels
from mm1.objectives.contrastive import Contrastive, ContrastiveSigmoid
from mm1.objectives.loss import Objective
from mm1.objectives.next_token import NextToken

OBJECTIVES: dict[str, type[Objective]] = {
    "next_token": NextToken,
    "contrastive": Contrastive,
    "contrastive_sigmoid": ContrastiveSigmoid,
    "autoregressive_pixels": AutoregressivePixels,
}


def objective_of(run: RunConfig) -> type[Objective]:
    """The class of the run's objective."""
    return OBJECTIVES[run.objective]


def generates_text(run: RunConfig) -> bool:
    """Whether the run trains a multimodal language model, which can be asked; otherwise it trains an encoder."""
    return "logits" in objective_of(run).parts
