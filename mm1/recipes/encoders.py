"""Encoders from scratch: by contrast, as CLIP and DFN train the ViTs of MM1, and by predicting patches, as AIM.

The data is not public. The recipes expect in the current folder: `captions.lance` of image-text pairs (for AIM also
`imagenet.lance` of images) and a `tokenizer.json` of at most 32,768 entries. An image is one token, which tells the
text tower nothing. Sequences of 1,024 positions hold 32 pairs of up to 32 positions on average.
"""

from mm1.config.model import ConnectorConfig, DecoderConfig, ModelConfig, VisionConfig
from mm1.config.run import AugmentConfig, DataConfig, OptimConfig, PixelsConfig, RunConfig, SourceConfig
from mm1.model import encoders, sizes
from mm1.recipes.tiny import tiny_encoder

PAIRS = 32_768
"""Pairs of a step in CLIP (arXiv 2103.00020, table 18)."""


def vit_l_14_224() -> RunConfig:
    """12.8 B pairs, as DFN's ViT-L/14 (Fang et al., arXiv 2309.17425) and DataComp's, whose optimizer this is.

    DataComp's largest scale (Gadre et al., arXiv 2304.14108) has larger batches, at the same peak rate.
    """
    return _contrastive("vit_l_14_224", encoders.clip("l", 224), _text_tower(768, layers=12), steps=390_000)


def vit_l_14_336(root: str = "runs") -> RunConfig:
    """400 M more pairs at 336 pixels: CLIP's own last epoch (section 2.5). The paper doesn't give its rate."""
    run = _contrastive("vit_l_14_336", encoders.clip("l", 336), _text_tower(768, layers=12), steps=12_200)
    return _continued(run, f"{root}/vit_l_14_224")


def vit_h_14_224() -> RunConfig:
    """39 B pairs, as the card of DFN's ViT-H/14 says. The rate is half of the ViT-L's; DFN doesn't publish its own."""
    run = _contrastive("vit_h_14_224", encoders.clip("h", 224), _text_tower(1024, layers=24), steps=1_190_000)
    run.optim.learning_rate = 5e-4
    return run


def vit_h_14_378(root: str = "runs") -> RunConfig:
    """5 B more pairs at 378 pixels, the encoder of MM1's final models; its card gives the pairs, not the rate."""
    run = _contrastive("vit_h_14_378", encoders.clip("h", 378), _text_tower(1024, layers=24), steps=153_000)
    return _continued(run, f"{root}/vit_h_14_224")


def aim_600m() -> RunConfig:
    """AIM-0.6B (El-Nouby et al., arXiv 2401.08541): 500k steps."""
    return _aim("aim_600m", encoders.aim("600m"), steps=500_000)


def aim_1b() -> RunConfig:
    """AIM-1B: 1.2 M steps."""
    return _aim("aim_1b", encoders.aim("1b"), steps=1_200_000)


def aim_3b() -> RunConfig:
    """AIM-3B: 1.2 M steps."""
    return _aim("aim_3b", encoders.aim("3b"), steps=1_200_000)


def tiny_aim() -> RunConfig:
    """The demo's encoder, trained on the same pictures by predicting patches.

    130 steps take as much arithmetic (`flops` in metrics.jsonl) as 150 of the contrast, which has a text tower.
    """
    run = tiny_encoder()
    run.steps = 130
    run.recipe, run.objective = "tiny_aim", "autoregressive_pixels"
    run.model.vision = tiny_aim_vision()
    run.pixels = PixelsConfig(head_width=128, head_layers=2)
    run.data.augment = AugmentConfig(jitter=0.3)
    run.optim = OptimConfig(learning_rate=2e-3, weight_decay=0.05, warmup_steps=20, final_fraction=0.0)
    return run


def tiny_aim_vision() -> VisionConfig:
    """The shape of the demo's encoder with the parts of AIM's."""
    return sizes.tiny().vision.model_copy(update={"bias": False, "patch_norm": True, "fixed_positions": True})


def _text_tower(width: int, *, layers: int) -> DecoderConfig:
    """A text tower of CLIP's width and depth: ours is causal too, with rotary positions and a gated feed-forward."""
    return DecoderConfig(
        vocabulary=32_768,
        width=width,
        layers=layers,
        heads=width // 64,
        kv_heads=width // 64,
        head_width=64,
        mlp_width=-(-width * 8 // 3 // 256) * 256,
        qk_norm=True,
    )


def _contrastive(name: str, vision: VisionConfig, text: DecoderConfig, *, steps: int) -> RunConfig:
    return RunConfig(
        recipe=name,
        objective="contrastive",
        model=ModelConfig(vision=vision, connector=ConnectorConfig(tokens=1), decoder=text),
        data=DataConfig(
            sources={"captions": SourceConfig(store="captions.lance")},
            tokenizer="tokenizer.json",
            sequence_length=1024,
            max_images=32,
        ),
        # DataComp, appendix on training: 1e-3, betas (0.9, 0.95), decay 0.2, 10k steps of warm-up
        optim=OptimConfig(learning_rate=1e-3, weight_decay=0.2, warmup_steps=10_000, final_fraction=0.0),
        steps=steps,
        batch_size=PAIRS // 32,
        micro_batch_size=4,
        checkpoint_every=1000,
    )


def _continued(run: RunConfig, start: str) -> RunConfig:
    """The stage at a higher resolution, from both towers of `start`, at a tenth of their rate."""
    run.start_from = {"model": start}
    run.optim = OptimConfig(learning_rate=1e-4, weight_decay=0.2, warmup_steps=1000, final_fraction=0.0)
    run.micro_batch_size = 2
    return run


def _aim(name: str, vision: VisionConfig, *, steps: int) -> RunConfig:
    """Batches of 4096 images, 80 % from DFN and 20 % from ImageNet; the head is 12 layers of width 2048 for all."""
    return RunConfig(
        recipe=name,
        objective="autoregressive_pixels",
        model=ModelConfig(vision=vision, connector=ConnectorConfig(tokens=1)),
        pixels=PixelsConfig(head_width=2048, head_layers=12),
        data=DataConfig(
            sources={
                "captions": SourceConfig(store="captions.lance", share=4),
                "imagenet": SourceConfig(store="imagenet.lance", share=1),
            },
            tokenizer="tokenizer.json",
            sequence_length=1024,
            max_images=32,
            # the paper names crops of 40 to 100 % of the area, flips and colour jitter; how much jitter is ours
            augment=AugmentConfig(min_area=0.4, flip=0.5, jitter=0.3),
        ),
        optim=OptimConfig(learning_rate=1e-3, weight_decay=0.05, warmup_steps=steps // 40, final_fraction=0.0),
        steps=steps,
        batch_size=4096 // 32,
        micro_batch_size=2,
        checkpoint_every=1000,
    )
