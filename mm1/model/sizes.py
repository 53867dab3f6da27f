"""The shapes of models: a tiny one for a laptop, and the paper's, as far as the paper or published code gives them.

MM1 doesn't publish the layers, widths and vocabulary of its decoders. Here they follow AXLearn's "Gala" sizes
(https://github.com/apple/axlearn), which give most of the paper's parameter counts as 12 * layers * width^2.
Parameters are counted without embedding and output matrices, as in the paper's learning-rate law. Each count is within
3 % of its name; where Gala's shape is not, the docstring gives the reason for ours.
"""

from mm1.config.model import ConnectorConfig, DecoderConfig, ModelConfig, SparseConfig, VisionConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's CLIP; DFN keeps it
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def tiny() -> ModelConfig:
    """A model of 2.4 M parameters, small enough for two cores, which read some two million tokens in ten minutes."""
    return ModelConfig(
        vision=VisionConfig(image_size=96, patch_size=16, width=128, layers=4, heads=2, mlp_width=512),
        connector=ConnectorConfig(kind="c_abstractor", tokens=16, width=128, depth=1),
        decoder=DecoderConfig(
            vocabulary=4096,
            width=128,
            layers=4,
            heads=2,
            kv_heads=2,
            head_width=64,
            mlp_width=384,
            qk_norm=True,
            tie_embeddings=True,
        ),
    )


def vit_l_14_336() -> VisionConfig:
    """The encoder of the ablations: CLIP's ViT-L/14 at 336 pixels (MM1, section 3.1)."""
    return VisionConfig(
        image_size=336,
        patch_size=14,
        width=1024,
        layers=24,
        heads=16,
        mlp_width=4096,
        activation="quick_gelu",
        norm_epsilon=1e-5,
        class_token=True,
        patch_bias=False,
        input_norm=True,
        mean=CLIP_MEAN,
        std=CLIP_STD,
    )


def vit_h_14_378() -> VisionConfig:
    """The encoder of the final models: DFN's ViT-H/14 at 378 pixels (MM1, section 4)."""
    return vit_l_14_336().model_copy(
        update={"image_size": 378, "width": 1280, "layers": 32, "heads": 16, "mlp_width": 5120}
    )


def c_abstractor_144() -> ConnectorConfig:
    """The connector of the final models. MM1 gives only kind and tokens; depth and width are Honeybee's."""
    return ConnectorConfig(kind="c_abstractor", tokens=144, width=1024, depth=3)


def decoder_9m() -> DecoderConfig:
    """The smallest decoder of the learning-rate searches (MM1, section 3.4): 9.04 M.

    12 layers of width 256 are the usual shape for about 9 M. Gala's feed-forward would have a width of 768, which gives
    10.2 M; 640 is the multiple of 128 that fits the name.
    """
    return _gala(width=256, layers=12, head_width=64, mlp_width=640)


def decoder_85m() -> DecoderConfig:
    """The second decoder of the learning-rate searches: Gala's own, 84.9 M."""
    return _gala(width=768, layers=12, head_width=64)


def decoder_302m() -> DecoderConfig:
    """The third decoder of the learning-rate searches: Gala's own, 308 M (302 M before rounding up to 256)."""
    return _gala(width=1024, layers=24, head_width=64)


def decoder_1_2b() -> DecoderConfig:
    """The decoder of the ablations: Gala's own, 1.23 B, with 32 heads."""
    return _gala(width=2048, layers=24, head_width=64)


def decoder_2_9b() -> DecoderConfig:
    """The decoder of the encoder ablations; 26 layers of width 3072 are a usual shape for that many: 2.94 B."""
    return _gala(width=3072, layers=26, head_width=128)


def decoder_3b() -> DecoderConfig:
    """The final 3B: the 2.9B shape. With 64 experts in every second layer it has the paper's 64 B."""
    return decoder_2_9b()


def decoder_7b() -> DecoderConfig:
    """The final 7B: Gala's 32 layers of 4096 with a wider feed-forward, 7.18 B.

    Gala's own width, 11008, gives 6.48 B, and with 32 experts in every fourth layer 40 B, but the paper says 47 B.
    Only a wider feed-forward fits both: 12800 is the only multiple of 256 that is within 3 % of each.
    """
    return _gala(width=4096, layers=32, head_width=128, mlp_width=12_800)


def decoder_30b() -> DecoderConfig:
    """The final 30B: 48 layers of width 7168 give 29.6 B, with 56 heads of the usual width, 128."""
    return _gala(width=7168, layers=48, head_width=128)


def decoder_3b_moe() -> DecoderConfig:
    """The sparse 3B: 64 experts in every second layer (MM1, section 4), 64.8 B."""
    return decoder_3b().model_copy(update={"sparse": _experts(64, every=2)})


def decoder_7b_moe() -> DecoderConfig:
    """The sparse 7B: 32 experts in every fourth layer (MM1, section 4), 46.2 B; the paper says 47 B."""
    return decoder_7b().model_copy(update={"sparse": _experts(32, every=4)})


def mm1_3b() -> ModelConfig:
    """MM1-3B (section 4)."""
    return ModelConfig(vision=vit_h_14_378(), connector=c_abstractor_144(), decoder=decoder_3b())


def mm1_7b() -> ModelConfig:
    """MM1-7B (section 4)."""
    return ModelConfig(vision=vit_h_14_378(), connector=c_abstractor_144(), decoder=decoder_7b())


def mm1_30b() -> ModelConfig:
    """MM1-30B (section 4)."""
    return ModelConfig(vision=vit_h_14_378(), connector=c_abstractor_144(), decoder=decoder_30b())


def mm1_3b_moe() -> ModelConfig:
    """MM1-3B-MoE (section 4)."""
    return ModelConfig(vision=vit_h_14_378(), connector=c_abstractor_144(), decoder=decoder_3b_moe())


def mm1_7b_moe() -> ModelConfig:
    """MM1-7B-MoE (section 4)."""
    return ModelConfig(vision=vit_h_14_378(), connector=c_abstractor_144(), decoder=decoder_7b_moe())


def ablation_base() -> ModelConfig:
    """The base of the ablations: ViT-L/14 at 336, C-Abstractor with 144 tokens, 1.2B (section 3)."""
    return ModelConfig(vision=vit_l_14_336(), connector=c_abstractor_144(), decoder=decoder_1_2b())


def non_embedding_parameters(config: DecoderConfig) -> int:
    """The decoder's parameters without embedding and output matrices: N of the learning-rate law.

    For a sparse decoder those of its dense backbone, since MM1 trains both with the same rate (section 4).
    """
    queries, keys = config.heads * config.head_width, config.kv_heads * config.head_width
    attention = config.width * (2 * queries + 2 * keys) + config.qkv_bias * (queries + 2 * keys)
    feed_forward = 3 * config.width * config.mlp_width + config.mlp_bias * (2 * config.mlp_width + config.width)
    head_norms = queries + keys if config.qk_norm_across_heads else 2 * config.head_width
    norms = 2 * (config.norm_before + config.norm_after) * config.width
    others = norms + config.qk_norm * head_norms + config.out_bias * config.width
    return config.layers * (attention + feed_forward + others) + config.width


def _experts(experts: int, *, every: int) -> SparseConfig:
    """Top-2 experts with MM1's weights of both losses (section 4).

    AXLearn's layer has a capacity of two even shares, a limit of its hardware; here no token is dropped.
    """
    return SparseConfig(experts=experts, every=every, top_k=2, load_balance_weight=0.01, router_z_weight=0.001)


def _gala(*, width: int, layers: int, head_width: int, mlp_width: int | None = None) -> DecoderConfig:
    """AXLearn's Gala block: QK-norm, and by default a feed-forward of 8/3 widths, rounded up to a multiple of 256."""
    return DecoderConfig(
        vocabulary=32_768,  # of the public config; MM1's own is not published
        width=width,
        layers=layers,
        heads=width // head_width,
        kv_heads=width // head_width,  # no grouped queries are described
        head_width=head_width,
        mlp_width=mlp_width or -(-width * 8 // 3 // 256) * 256,
        norm_epsilon=1e-5,
        qk_norm=True,
        tie_embeddings=True,
    )
