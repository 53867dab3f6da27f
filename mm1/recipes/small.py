"""The stages of `sample:small`, a model that is to ship: the demo's recipe with 5.6 M parameters and an hour's steps.

    python -m sample_build.chats chats.lance
    mm1 train small_encoder && mm1 train small_language && mm1 train small && mm1 train small_sft

The last stage keeps what the third one learned: 10 of 22 sequences are still pre-training's, so one model answers chats
in four languages, captions pictures after shots, and continues pages.
"""

from mm1.config.model import ModelConfig
from mm1.config.run import RunConfig, SourceConfig
from mm1.model import sizes
from mm1.recipes import tiny as demo


def size(*, tokens: int = 16) -> ModelConfig:
    """A model of 5.6 M parameters: the demo's with half as much width again, and two more layers of the decoder."""
    model = sizes.tiny()
    model.vision = model.vision.model_copy(update={"width": 192, "heads": 3, "mlp_width": 768})
    model.connector = model.connector.model_copy(update={"width": 192, "tokens": tokens})
    wider = {"width": 192, "layers": 6, "heads": 3, "kv_heads": 3, "mlp_width": 512}
    model.decoder = model.decoder.model_copy(update=wider)
    return model


def small_encoder() -> RunConfig:
    """The image encoder."""
    return _grown(demo.tiny_encoder(), "small_encoder", steps=250)


def small_language() -> RunConfig:
    """The language model."""
    return _grown(demo.tiny_language(), "small_language", steps=300)


def small(root: str = "runs") -> RunConfig:
    """Multimodal pre-training."""
    run = _grown(demo.tiny(), "small", steps=3000)
    run.start_from = {"vision": f"{root}/small_encoder", "decoder": f"{root}/small_language"}
    return run


def small_sft(root: str = "runs") -> RunConfig:
    """Fine-tuning on chats: easy-vqa's and questions about all captioned pictures, beside sequences of pre-training."""
    run = _grown(demo.tiny_sft(), "small_sft", steps=1500)
    run.start_from = {"model": f"{root}/small"}
    chats = {
        "chats": SourceConfig(store="chats.lance", share=6),
        "vqa": SourceConfig(store="sample:vqa-train", share=6),
    }
    kept = {name: source.model_copy(update={"share": 2}) for name, source in demo.tiny().data.sources.items()}
    run.data.sources = chats | kept
    run.data.augment = demo.tiny().data.augment
    return run


def _grown(run: RunConfig, name: str, *, steps: int) -> RunConfig:
    tokens, pixels = run.model.connector.tokens, run.model.vision.image_size
    run.recipe, run.model = name, size(tokens=tokens)
    run.model.vision.image_size = pixels
    run.steps, run.checkpoint_every = steps, steps // 5
    return run
