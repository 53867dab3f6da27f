"""The demo's first three stages with eighteen times the parameters, for ten minutes of one H200.

    mm1 train benchmarks/scaled.py:encoder --to runs/scaled_encoder
    mm1 train benchmarks/scaled.py:language --to runs/scaled_language
    mm1 train benchmarks/scaled.py --to runs/scaled
    mm1 eval runs/scaled --shots 0,4,8

The first two may run at the same time. docs/gpu.md has the table.
"""

from mm1.config.model import ConnectorConfig, ModelConfig, VisionConfig
from mm1.config.run import AugmentConfig, OptimConfig, RunConfig
from mm1.model import sizes
from mm1.recipes import tiny as demo


def size(*, tokens: int) -> ModelConfig:
    """A model of 44 M parameters: a ViT of 15 M that sees 144 pixels, and a decoder of 28 M."""
    decoder = {"width": 512, "layers": 8, "heads": 8, "kv_heads": 8, "mlp_width": 1408}
    return ModelConfig(
        vision=VisionConfig(image_size=144, patch_size=16, width=384, layers=8, heads=6, mlp_width=1536),
        connector=ConnectorConfig(kind="c_abstractor", tokens=tokens, width=384, depth=1),
        decoder=sizes.tiny().decoder.model_copy(update=decoder),
    )


def encoder() -> RunConfig:
    """The image encoder, on random views of the pictures."""
    run = _grown(demo.tiny_encoder(), steps=300, sequences=8)
    run.data.augment = AugmentConfig(min_area=0.6, jitter=0.2)
    return run


def language() -> RunConfig:
    """The language model."""
    return _grown(demo.tiny_language(), steps=300, sequences=16)


def scaled() -> RunConfig:
    """The multimodal stage: three times the sequences of the demo, on random views of the pictures."""
    run = _grown(demo.tiny(), steps=1200, sequences=8)
    run.start_from = {"vision": "runs/scaled_encoder", "decoder": "runs/scaled_language"}
    run.data.augment = AugmentConfig(min_area=0.6, jitter=0.2)
    run.validate_every = 200
    return run


def _grown(run: RunConfig, *, steps: int, sequences: int) -> RunConfig:
    run.model = size(tokens=run.model.connector.tokens)
    run.micro_batch_size = 1  # it must divide the batch
    run.batch_size = sequences
    run.micro_batch_size = sequences
    run.steps = run.checkpoint_every = steps
    run.optim = OptimConfig(warmup_steps=run.optim.warmup_steps)  # the paper's optimizer and rate
    return run
