"""The demo's four stages: a 96-pixel ViT, a C-Abstractor and a small decoder, on the shipped sample.

The stages are those of MM1 at a small scale: contrastive training of an encoder, training of a language model on text,
joint training of both on captions, pages and text with nothing frozen (MM1, section 3), then fine-tuning on questions.
Two CPU cores do all four in some twelve minutes.
"""

from mm1.config.run import AugmentConfig, DataConfig, OptimConfig, RunConfig, SourceConfig
from mm1.model.sizes import tiny as tiny_size


def tiny_encoder() -> RunConfig:
    """The image encoder, by CLIP's loss on captions. An image is one token, which tells the text tower nothing."""
    model = tiny_size()
    model.connector.tokens = 1
    return RunConfig(
        recipe="tiny_encoder",
        objective="contrastive",
        model=model,
        data=DataConfig(
            sources={"captions": SourceConfig(store="sample:captions-train")},
            validation={"captions": "sample:captions-test"},
            sequence_length=512,
            max_images=96,
            augment=_views(),
        ),
        optim=OptimConfig(kind="muon", learning_rate=6e-3, warmup_steps=20),
        steps=125,
        batch_size=2,
        micro_batch_size=2,
        checkpoint_every=50,
        validation_sequences=4,
    )


def tiny_language() -> RunConfig:
    """The language model, on text alone."""
    return RunConfig(
        recipe="tiny_language",
        model=tiny_size(),
        data=DataConfig(
            sources={"text": SourceConfig(store="sample:text-train")},
            validation={"text": "sample:text-test"},
            sequence_length=512,
            max_images=0,
        ),
        optim=OptimConfig(kind="muon", learning_rate=5e-3, warmup_steps=20),
        steps=220,
        batch_size=4,
        micro_batch_size=4,
        checkpoint_every=75,
        frozen=["vision", "connector"],
    )


def tiny(root: str = "runs") -> RunConfig:
    """Multimodal pre-training: sequences mixed 9:9:2 from captions, interleaved pages and text, nothing frozen.

    MM1, section 3.3: 45 % captions, 45 % interleaved, 10 % text. Of nine interleaved sequences three are galleries and
    three are pages of labels in one language: they have a tenth of the tokens but nearly all repeated patterns, and
    only these teach so small a model to continue a page as it began.

    Muon does in 1,000 steps what AdamW doesn't: a CIDEr of 40 where AdamW has 23 at the rate of the paper's law, and 15
    at Muon's (pictures held out from the training set, one seed).
    """
    return RunConfig(
        recipe="tiny",
        model=tiny_size(),
        data=DataConfig(
            sources={
                "captions": SourceConfig(store="sample:captions-train", share=9),
                "interleaved/pages": SourceConfig(store="sample:interleaved-train", only="*-doc", share=3),
                "interleaved/galleries": SourceConfig(store="sample:interleaved-train", only="*-galleries", share=3),
                "interleaved/languages": SourceConfig(store="sample:languages-train", share=3),
                "text": SourceConfig(store="sample:text-train", share=2),
            },
            validation={
                "captions": "sample:captions-test",
                "interleaved": "sample:interleaved-test",
                "text": "sample:text-test",
            },
            augment=_views(),
        ),
        start_from={"vision": f"{root}/tiny_encoder", "decoder": f"{root}/tiny_language"},
        optim=OptimConfig(kind="muon", learning_rate=5e-3, warmup_steps=50),
        steps=1500,
        batch_size=2,
        micro_batch_size=2,
        checkpoint_every=300,
        validate_every=300,
    )


def tiny_sft(root: str = "runs") -> RunConfig:
    """Fine-tuning on easy-vqa: an image and its questions as one chat, loss on the answers only.

    The resolution is higher than in pre-training, as in MM1 (section 5). With this rate, crops and mirrored
    pictures most runs learn shapes and colours; at twice the rate, without the views, a run learned colours alone.
    """
    model = tiny_size()
    model.vision.image_size = 144
    return RunConfig(
        recipe="tiny_sft",
        model=model,
        data=DataConfig(
            sources={"vqa": SourceConfig(store="sample:vqa-train")},
            validation={"vqa": "sample:vqa-test"},
            augment=AugmentConfig(min_area=0.5, flip=0.5),
        ),
        start_from={"model": f"{root}/tiny"},
        optim=OptimConfig(kind="muon", learning_rate=2e-3, lr_multipliers={"decoder": 0.5}, warmup_steps=20),
        steps=1500,
        batch_size=2,
        micro_batch_size=2,
        checkpoint_every=200,
    )


def _views() -> AugmentConfig:
    """Pictures are not mirrored: captions say left and right."""
    return AugmentConfig(min_area=0.7, flip=0.0, jitter=0.1)
