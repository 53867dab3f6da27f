"""The configs of a model: encoder, connector, decoder.

Defaults are the simplest case; the sizes of the paper are in `model/sizes.py`.
"""

import math
from dataclasses import fields, replace
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mm1.config.base import Config
from mm1.tiling import KINDS, Grid, Tiling


class VisionConfig(Config):
    """An image encoder. The defaults are a plain pre-norm ViT without class token."""

    image_size: int = Field(96, gt=0)  # pixels per side
    patch_size: int = Field(12, gt=0)
    width: int = Field(192, gt=0)
    layers: int = Field(6, gt=0)
    heads: int = Field(3, gt=0)
    mlp_width: int = Field(768, gt=0)
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu"
    gated: bool = False  # SwiGLU instead of the activation (AIMv2, DINOv2's giant)
    bias: bool = True  # in attention and feed-forward
    no_bias_in: tuple[Literal["query", "key", "value"], ...] = ()  # matrices of attention without it (DINOv3)
    norm: Literal["layer", "rms"] = "layer"
    norm_epsilon: float = 1e-6
    layer_scale: bool = False  # a learned factor per channel on both residual branches (DINOv2)
    class_token: bool = False
    registers: int = Field(0, ge=0)  # learned tokens without a position (DINOv2)
    patch_bias: bool = True
    patch_norm: bool = False  # AIM normalises before adding positions
    input_norm: bool = False  # CLIP normalises after adding positions
    fixed_positions: bool = False  # sines and cosines instead of learned positions (AIM)
    rope_base: float | None = Field(None, gt=0)  # of rotary positions instead of learned ones (DINOv3)
    antialias: bool = False  # when learned positions are resized to a smaller grid (OpenCLIP, DINOv2 with registers)
    feature_layer: int = Field(-1, lt=0)  # -1: the last layer's output, normed; -2: the layer before's, not normed
    feature_norm: bool = True  # false: the last layer's output is not normed either (InternVL)
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of RGB in [0, 1]
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @model_validator(mode="after")
    def _divides(self) -> "VisionConfig":
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}; "
                f"try {self.image_size - self.image_size % self.patch_size}"
            )
        return self

    @model_validator(mode="after")
    def _rotates_rows_and_columns(self) -> "VisionConfig":
        if self.rope_base is not None and (self.fixed_positions or self.width // self.heads % 4):
            raise ValueError(
                f"rope_base {self.rope_base} rotates heads by rows and by columns, in pairs of channels: their width, "
                f"here {self.width // self.heads}, must be a multiple of 4, and fixed_positions false"
            )
        return self

    @model_validator(mode="after")
    def _has_the_layer(self) -> "VisionConfig":
        if self.feature_layer < -self.layers - 1:
            raise ValueError(
                f"feature_layer {self.feature_layer} is before the first of {self.layers} layers; "
                f"{-self.layers - 1} is the embedded patches, -1 the last layer's output"
            )
        return self

    @property
    def grid(self) -> Grid:
        """The patches of an image."""
        return Grid(self.image_size // self.patch_size, self.image_size // self.patch_size)


class TilingConfig(Config):
    """How a picture becomes tiles, each an image of the encoder: docs/tiles.md, `tiling.py`.

    `kind` names a preset of all fields after it; one that is null has the preset's value.
    """

    kind: Literal["none", "mm1", "mm1_5", "llava_next", "llava_onevision", "internvl", "idefics3"] = "none"
    # how many rows and columns: always 1 x 1; 2 x 2; the least padding; one of LLaVA-NeXT's shapes with the most pixels
    # used, or one of LLaVA-OneVision's; the nearest aspect; the longer side always the same number of tiles
    grid: Literal["one", "quarters", "padding", "pixels", "pixels_of_36", "nearest_aspect", "longer_side"] | None = None
    # how the picture fills them: its aspect is lost; kept, with black around it, also in the overview or not there;
    # lost, in two steps (Idefics3)
    fit: Literal["squeeze", "pad", "pad_tiles", "squeeze_twice"] | None = None
    # a picture of one tile is its overview alone, but not in the last order
    order: Literal["overview_first", "overview_last", "overview_first_always"] | None = None
    # text around tiles that says which is which, or where a picture starts and ends
    indicators: Literal["none", "index", "row_column", "start_end"] | None = None
    # the image tokens of a tile after those of the one before; or the rows of all tiles together, without padding, each
    # ended by a learned token (LLaVA-NeXT)
    layout: Literal["tiles", "rows"] | None = None
    min_tiles: int | None = Field(None, ge=1)  # without the overview
    max_tiles: int | None = Field(None, ge=1)  # without the overview; in training
    use_max_tiles: int | None = Field(None, ge=1)  # in evaluation, chat and serving; null: max_tiles, if that is set
    full_images: int | None = Field(None, ge=0)  # of a document only the last so many pictures are cut; null: all
    max_document_images: int | None = Field(None, ge=0)  # documents of more pictures show overviews only
    # pixels of a tile's side, if it is larger than what the patches of the encoder fill: they see its top left
    pixels: int | None = Field(None, gt=0)

    @property
    def resolved(self) -> Tiling:
        """The choices of the preset, and those that replace them. Where only `max_tiles` is set, use has it too."""
        values = {field.name: getattr(self, field.name) for field in fields(Tiling)}
        if self.use_max_tiles is None:
            values["use_max_tiles"] = self.max_tiles
        return replace(KINDS[self.kind], **{name: value for name, value in values.items() if value is not None})


class ConnectorConfig(Config):
    """A connector: it turns P patch features into S image tokens of the decoder's width."""

    kind: Literal["c_abstractor", "average", "attention", "linear", "mlp", "pixel_shuffle", "pixel_shuffle_mlp"] = (
        "average"
    )
    tokens: int = Field(16, gt=0)  # S, image tokens per image; a square number
    width: int = Field(192, gt=0)  # inner width; of c_abstractor and attention
    depth: int = Field(1, gt=0)  # c_abstractor: blocks before and after pooling; attention: layers
    heads: int = Field(3, gt=0)  # of attention

    @model_validator(mode="after")
    def _square(self) -> "ConnectorConfig":
        if round(self.tokens**0.5) ** 2 != self.tokens:
            raise ValueError(f"connector.tokens is {self.tokens}, but must be a square number (64, 144)")
        return self

    @property
    def grid(self) -> Grid:
        """The image tokens of an image, each for one cell of it."""
        return Grid(math.isqrt(self.tokens), math.isqrt(self.tokens))


class SparseConfig(Config):
    """Experts instead of a decoder's feed-forwards; with 0 experts every layer is dense."""

    experts: int = Field(0, ge=0)
    every: int = Field(1, ge=1)  # one layer of every so many is sparse, the last of its group
    top_k: int = Field(2, ge=2)  # experts per token; with a single one the router would get no gradient
    normalize: bool = True  # the weights of a token's experts add up to one; OLMoE: they stay as the router gave them
    capacity: float | None = Field(None, gt=0)  # an expert's most tokens of a sequence, in even shares; null: no limit
    load_balance_weight: float = Field(0.0, ge=0)  # weight of the load-balance loss
    router_z_weight: float = Field(0.0, ge=0)  # weight of the router's z loss

    @model_validator(mode="after")
    def _enough(self) -> "SparseConfig":
        if 0 < self.experts < self.top_k:
            raise ValueError(f"top_k is {self.top_k}, but there are only {self.experts} experts; lower it")
        return self

    def at(self, layer: int) -> bool:
        """Whether this layer, counted from 0, has experts."""
        return self.experts > 0 and (layer + 1) % self.every == 0


class RopeScalingConfig(Config):
    """How rotary positions are stretched to sequences that are longer than those of most of the training."""

    kind: Literal["linear", "llama3", "yarn", "longrope"]
    factor: float = Field(gt=0)
    factors: tuple[float, ...] = ()  # of each pair of channels; of longrope, for texts of the original length
    low: float = 1.0  # llama3: low_freq_factor; yarn: beta_slow
    high: float = 4.0  # llama3: high_freq_factor; yarn: beta_fast
    original_positions: int = Field(8192, gt=0)  # of the sequences before; of llama3 and yarn
    attention_factor: float = 1.0  # cosines and sines are multiplied by it; of yarn and longrope
    truncate: bool = True  # the range of channels ends at whole ones; of yarn


class DecoderConfig(Config):
    """A decoder-only transformer: RMSNorm, RoPE, SwiGLU, grouped-query attention."""

    vocabulary: int = Field(8192, gt=0)
    width: int = Field(192, gt=0)
    layers: int = Field(6, gt=0)
    heads: int = Field(3, gt=0)
    kv_heads: int = Field(3, gt=0)
    head_width: int = Field(64, gt=0)
    mlp_width: int = Field(512, gt=0)
    rope_base: float = 10_000.0
    rope_scaling: RopeScalingConfig | None = None
    no_rope_layers: tuple[int, ...] = ()  # layers without rotary positions, counted from 0; SmolLM3: every fourth
    norm_epsilon: float = 1e-5
    qk_norm: bool = False
    qk_norm_across_heads: bool = False  # one norm over all heads of a layer, as OLMo 2's, not one over each
    norm_before: bool = True  # norms of what attention and feed-forward take; OLMo 2 has none
    norm_after: bool = False  # norms of what they give (OLMo 2, Gemma)
    norm_offset: bool = False  # norms multiply by 1 + weight (Gemma)
    activation: Literal["silu", "gelu_tanh"] = "silu"  # of the gate of feed-forwards
    query_scale: float | None = Field(None, gt=0)  # scores are multiplied by it; null: head_width ** -0.5
    attention_softcap: float | None = Field(None, gt=0)  # scores stay between -this and this (Gemma 2); null: any
    logit_softcap: float | None = Field(None, gt=0)  # logits likewise
    embedding_scale: float = 1.0  # embeddings of tokens are multiplied by it (Gemma)
    window: int | None = Field(None, gt=0)  # positions that a query sees, its own and those just before; null: all
    full_layers: tuple[int, ...] = ()  # layers without the window, counted from 0
    window_rope_base: float | None = None  # rope_base of layers with the window, not stretched (Gemma 3); null: as all
    rotary_share: float = Field(1.0, gt=0, le=1)  # the share of a head's channels that are rotated (Phi-4-mini)
    qkv_bias: bool = False
    out_bias: bool = False  # of attention's output
    mlp_bias: bool = False
    tie_embeddings: bool = True  # the output matrix is the embedding matrix
    max_positions: int | None = Field(None, gt=0)  # that a published decoder was trained for; null: see the run
    sparse: SparseConfig = Field(default_factory=SparseConfig)

    def window_of(self, layer: int) -> int | None:
        """The window of this layer, counted from 0; None if it sees all."""
        return None if layer in self.full_layers else self.window

    @field_validator("rope_scaling", mode="before")
    @classmethod
    def _is_of_an_earlier_version(cls, value: Any) -> Any:
        """Version 0.1 recorded Llama 3.1's scaling as four numbers."""
        if not isinstance(value, list | tuple):
            return value
        return dict(zip(("factor", "low", "high", "original_positions"), value, strict=True)) | {"kind": "llama3"}


class ModelConfig(Config):
    """Encoder, connector and decoder.

    `image_token_id` is the id of the image token; null: the tokenizer's, which a run fills in when it starts. An image
    takes `connector.tokens` positions.
    """

    image_token_id: int | None = Field(None, ge=0)
    vision: VisionConfig = Field(default_factory=VisionConfig)
    tiling: TilingConfig = Field(default_factory=TilingConfig)
    connector: ConnectorConfig = Field(default_factory=ConnectorConfig)
    decoder: DecoderConfig = Field(default_factory=DecoderConfig)

    @model_validator(mode="after")
    def _fills_tiles(self) -> "ModelConfig":
        pixels, vision = self.tiling.pixels, self.vision
        if pixels is not None and pixels // vision.patch_size != vision.grid.rows:
            raise ValueError(
                f"model.tiling.pixels is {pixels}, in which {pixels // vision.patch_size} patches of a side fit, but "
                f"model.vision.image_size has {vision.grid.rows}; set model.tiling.pixels to null"
            )
        return self

    @property
    def tile_features(self) -> int:
        """What the connector makes of a tile: its image tokens and, in the layout `rows`, the end of a row."""
        layout = self.tiling.layout or KINDS[self.tiling.kind].layout  # `resolved` takes 0.2 ms, for each prompt
        return self.connector.tokens + (layout == "rows")

    @property
    def image_token(self) -> int:
        """`image_token_id`, or -1, which no position holds."""
        return -1 if self.image_token_id is None else self.image_token_id
