"""The multimodal language model: a decoder reads image tokens and text tokens in one sequence."""

import torch
import torch.nn.functional as F
from torch import nn

from mm1.config.model import ModelConfig
from mm1.document import Batch
from mm1.model.connector import KINDS
from mm1.model.decoder import Decoder, masks_of
from mm1.model.layers import initialise
from mm1.model.moe import LayerRouting
from mm1.model.vision import Vision


class MLLM(nn.Module):
    """An image encoder, a connector and a decoder (MM1, section 3). Training freezes parts from outside."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.vision = Vision(config.vision)
        self.connector = KINDS[config.connector.kind](
            config.connector, vision=config.vision, width=config.decoder.width
        )
        if config.tiling.resolved.layout == "rows":
            self.connector.learn_row_ends(config.decoder.width)
        self.decoder = Decoder(config.decoder)
        for parameter in self.vision.idle():
            parameter.requires_grad_(False)

    def initialise(self, seed: int) -> None:
        """Fill every parameter from `seed`; the same numbers for every sharding, others on a GPU than on a CPU."""
        initialise(self, seed)

    def encode_images(self, images_NCYX: torch.Tensor) -> torch.Tensor:
        """Image tokens [N, S, D] of uint8 images; [N, S + 1, D] where a learned feature ends rows of tiles."""
        return self.connector(self.vision(images_NCYX), self.vision.grid_of(images_NCYX))

    def embed(
        self, tokens_BT: torch.Tensor, features_NSD: torch.Tensor, feature_BT: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The decoder's input [B, T, D]: token embeddings, and image features at the image tokens.

        `feature_BT` numbers the feature of each image token; without it the n-th image token takes the n-th feature.
        """
        image_BT = tokens_BT == self.config.image_token
        x_BTD, table = self.decoder.embed(tokens_BT), features_NSD.flatten(0, 1)
        if not len(table):  # a prompt without pictures
            return x_BTD
        if feature_BT is None:
            feature_BT = image_BT.flatten().cumsum(0).view_as(tokens_BT) - 1
        # other tokens take any feature, with no gradient; all different, since a GPU adds up those of one by one
        other_BT = torch.arange(tokens_BT.numel(), device=tokens_BT.device).view_as(tokens_BT) % len(table)
        feature_BTD = F.embedding(torch.where(image_BT, feature_BT, other_BT), table)
        return torch.where(image_BT[..., None], feature_BTD.to(x_BTD.dtype), x_BTD)

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Hidden states [B, T, D] of a packed batch; `decoder.logits` turns them into logits."""
        return self.routed(batch)[0]

    def routed(self, batch: Batch) -> tuple[torch.Tensor, list[LayerRouting]]:
        """The same, and what the decoder's experts did.

        The image encoder always runs, on a black image if the batch holds none. So all ranks do the same, and every
        parameter has a gradient, even if it is zero.
        """
        images_NCYX = batch.images_NCYX
        if not len(images_NCYX):
            size = self.config.vision.image_size
            images_NCYX = images_NCYX.new_zeros(1, 3, size, size)
        features_NSD = self.encode_images(images_NCYX)
        x_BTD = self.embed(batch.tokens_BT, features_NSD, batch.feature_BT)
        masks = masks_of(self.decoder.config, batch.document_BT)
        return self.decoder.routed(x_BTD, batch.position_BT, masks=masks, real_BT=batch.document_BT > 0)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, list[LayerRouting]]:
        """`routed`, under the name that wrappers such as FSDP hook into."""
        return self.routed(batch)
