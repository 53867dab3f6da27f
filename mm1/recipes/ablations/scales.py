"""The two scales of the ablations: `tiny`, on the shipped sample and two cores, and `paper`, MM1's own.

A scale gives the base (its stages and its evaluation) and the sizes that arms choose from; what an arm changes is
written once, for both.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

from mm1.config.ablation import STAGE, Evaluation, Stage
from mm1.config.base import flatten
from mm1.config.model import DecoderConfig, SparseConfig, VisionConfig
from mm1.config.run import DataConfig, OptimConfig, RunConfig, SourceConfig
from mm1.model import sizes
from mm1.model.encoders import aim
from mm1.recipes import encoders, mm1
from mm1.recipes import tiny as demo

PAPER_TASKS = ("coco", "nocaps", "textcaps", "vqav2", "textvqa", "vizwiz", "gqa", "okvqa")
"""The benchmarks whose mean the paper's ablations show (MM1, section 3.1)."""

TUNED_TASKS = ("vqav2", "textvqa", "scienceqa", "mmmu", "mathvista", "mme", "mmbench", "seed", "pope")
"""The benchmarks of the fine-tuned models (MM1, section 5) that need no judge."""

TINY_STEPS = 250
"""Steps of the multimodal stage at tiny scale, a sixth of the demo's."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """An encoder of table 1: its shape, and the source of its data or, at paper scale, the run it is taken from.

    `changes` are those of its own training, where that is a stage.
    """

    name: str
    vision: VisionConfig
    data: str = ""
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scale:
    """The base of all ablations and the sizes they choose from.

    tuning           makes the stage of fine-tuning; `tuned_evaluation` scores what comes out of it
    encoder_stages   stages of the comparison of `encoders`, whose base has the encoder `base_encoder`
    images, tokens   the lower and the higher resolution, the fewer and the more image tokens, of the connector's grid
    interleaved      weights of the sources that interleaved pages come from
    one_making       the source of captions, and the pattern of those of a single making
    tuned_pixels     resolutions of fine-tuning: pixels of a picture, and of a tile of it
    rate_stages      stages of the search for the learning rate, over `decoders` and `rates`
    """

    name: str
    stages: tuple[Stage, ...]
    evaluation: Evaluation
    tuning: Callable[[], Stage]
    tuned_evaluation: Evaluation
    encoder_stages: tuple[Stage, ...]
    base_encoder: str
    encoders: tuple[Encoder, ...]
    images: tuple[int, int]
    tokens: tuple[int, int]
    interleaved: dict[str, int]
    one_making: tuple[str, str]
    tuned_pixels: tuple[tuple[int, int], ...]
    rate_stages: tuple[Stage, ...]
    rate_evaluation: Evaluation
    decoders: dict[str, DecoderConfig]
    rates: tuple[float, ...]
    experts: SparseConfig

    @property
    def base(self) -> RunConfig:
        """The multimodal run that arms differ from."""
        return self.stages[-1].run

    @property
    def trains_encoder(self) -> bool:
        """Whether the encoder is a stage; otherwise it comes from a run that the user has."""
        return any(stage.name == "encoder" for stage in self.stages)

    def seen_by(self, vision: VisionConfig) -> tuple[str, ...]:
        """The changes that give the base another encoder: trained so in its own stage, or taken from another run."""
        old, new = self.base.model.vision.model_dump(mode="json"), vision.model_dump(mode="json")
        fields = [f"model.vision.{name}={json.dumps(new[name])}" for name in new if old[name] != new[name]]
        if self.trains_encoder:
            return (*fields, *(f"encoder:{field}" for field in fields))
        size = "l" if vision.width == sizes.vit_l_14_336().width else "h"
        return (*fields, f"start_from.vision=runs/vit_{size}_14_{vision.image_size}")

    def sized(self, name: str) -> tuple[str, ...]:
        """The changes that give a run of the search the decoder `name`, and the language model it starts from."""
        run = self.rate_stages[-1].run
        old, new = (config.model_dump(mode="json") for config in (run.model.decoder, self.decoders[name]))
        fields = [f"model.decoder.{field}={new[field]}" for field in new if old[field] != new[field]]
        return (*fields, *[f"start_from.decoder=runs/language_{name}"] * ("decoder" in run.start_from))

    def shares(self, captions: int, interleaved: int, *, text: int) -> tuple[str, ...]:
        """The changes that give the sources these shares."""
        whole = sum(self.interleaved.values())
        counts = {"captions": captions * whole, "text": text * whole}
        counts |= {name: interleaved * weight for name, weight in self.interleaved.items()}
        divisor = 3 if whole == 3 and not any(count % 3 for count in counts.values()) else 1
        return tuple(f"data.sources.{name}.share={count // divisor}" for name, count in counts.items())


def tiny() -> Scale:
    """The stages of the demo, with a shorter multimodal stage. Its sizes are set for many runs, not for good scores.

    Arms show the paper's choices, so all stages have its optimizer and rates, and pictures as they are.
    """
    encoder, language, multimodal = _tiny_encoder(), _as_the_paper(demo.tiny_language()), _as_the_paper(demo.tiny())
    multimodal.start_from = {"vision": f"{STAGE}encoder", "decoder": f"{STAGE}language"}
    multimodal.steps, multimodal.checkpoint_every = TINY_STEPS, 125
    languages = multimodal.data.sources.pop("interleaved/languages")
    multimodal.data.sources["interleaved/galleries"].share += languages.share
    vision = multimodal.model.vision
    small = vision.model_copy(update={"width": 64, "heads": 1, "mlp_width": 256, "layers": 2})
    high = {"image_size": 144}
    return Scale(
        name="tiny",
        stages=(
            Stage("encoder", encoder),
            Stage("language", language),
            Stage("multimodal", multimodal, seeded=True),
        ),
        evaluation=Evaluation(),
        tuning=_tiny_tuning,
        tuned_evaluation=Evaluation(tasks=("easy_vqa",), shots=(0,), limit=300),
        encoder_stages=(
            Stage("encoder", encoder, seeded=True),
            Stage("language", language),
            Stage("multimodal", multimodal, seeded=True),
        ),
        base_encoder="base-96",
        encoders=(
            Encoder("small-96", small),
            Encoder("base-96-one", vision, "fluent-emoji-3d"),
            Encoder("small-144", small.model_copy(update=high)),
            Encoder("base-144", vision.model_copy(update=high)),
            Encoder("reconstructive-96", encoders.tiny_aim_vision(), changes=_as_aim()),
        ),
        images=(96, 144),
        tokens=(4, 16),
        interleaved={"interleaved/pages": 1, "interleaved/galleries": 2},
        one_making=("captions", "fluent-emoji-3d"),
        tuned_pixels=((144, 144), (192, 96), (288, 144)),
        rate_stages=(_tiny_rates(),),
        rate_evaluation=Evaluation(tasks=()),
        decoders={name: _tiny_decoder(*shape) for name, shape in TINY_DECODERS.items()},
        rates=(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
        experts=SparseConfig(experts=4, every=2, load_balance_weight=0.01, router_z_weight=0.001),
    )


def _as_the_paper(run: RunConfig) -> RunConfig:
    """A stage of the demo with AdamW at the rate of the paper's law, on pictures as they are."""
    run.optim, run.data.augment, run.validate_every = OptimConfig(warmup_steps=20), None, 0
    return run


def _tiny_encoder() -> RunConfig:
    run = _as_the_paper(demo.tiny_encoder())
    run.steps = 150
    return run


def _as_aim() -> tuple[str, ...]:
    """What makes the stage of the encoder `tiny_aim`, but for the encoder's shape: as much arithmetic as the base's."""
    ours, theirs = (run.model_dump(mode="json") for run in (_tiny_encoder(), encoders.tiny_aim()))
    for run in (ours, theirs):
        del run["recipe"], run["model"]
    flat = flatten(ours), flatten(theirs)
    changed = [name for name in flat[1] if name not in flat[0] or flat[0][name] != flat[1][name]]
    return tuple(f"encoder:{name}={json.dumps(flat[1][name])}" for name in changed)


TINY_DECODERS = {"0.3m": (64, 6), "0.7m": (96, 6), "1.1m": (128, 6), "2.7m": (192, 6), "5.4m": (256, 7)}
"""Width and layers of decoders by their parameters without embeddings."""


def _tiny_decoder(width: int, layers: int) -> DecoderConfig:
    heads = width // 32
    return sizes.tiny().decoder.model_copy(
        update={
            "width": width,
            "layers": layers,
            "heads": heads,
            "kv_heads": heads,
            "head_width": 32,
            "mlp_width": 8 * width // 3 // 32 * 32,
        }
    )


def _tiny_rates() -> Stage:
    """Text alone, from random weights, in half of the demo's batch."""
    run = _as_the_paper(demo.tiny_language())
    run.micro_batch_size = 2  # before the batch, which it must divide
    run.batch_size = 2
    run.steps = run.checkpoint_every = 300
    return Stage("language", run, seeded=True)


def _tiny_tuning() -> Stage:
    run = _as_the_paper(demo.tiny_sft())
    run.start_from = {"model": f"{STAGE}multimodal"}
    run.model.vision.image_size = 96
    run.steps = 300
    return Stage("tuning", run, seeded=True)


def paper() -> Scale:
    """The base of MM1, section 3: ViT-L/14 at 336 pixels, C-Abstractor with 144 tokens, a decoder of 1.2 B.

    The paper trains the arms of figure 5 for the full 200k steps and does not say for how many it trains the others;
    here all have 200k. Encoders and language model are taken from runs that `mm1 import` or `mm1 train` made.
    """
    base = mm1.mm1_3b()
    base.recipe, base.model = "mm1_ablation", sizes.ablation_base()
    base.start_from = {"vision": "runs/vit_l_14_336", "decoder": "runs/language_1_2b"}
    base.data.validation = {name: f"{name}-test.lance" for name in ("captions", "interleaved", "text")}
    larger = base.model_copy(deep=True)
    larger.model.decoder, larger.start_from["decoder"] = sizes.decoder_2_9b(), "runs/language_3b"
    large, huge = sizes.vit_l_14_336(), sizes.vit_h_14_378()
    return Scale(
        name="paper",
        stages=(Stage("multimodal", base, seeded=True),),
        evaluation=Evaluation(tasks=PAPER_TASKS, limit=5000, data="benchmarks"),
        tuning=_paper_tuning,
        tuned_evaluation=Evaluation(tasks=TUNED_TASKS, shots=(0,), limit=5000, data="benchmarks"),
        encoder_stages=(Stage("multimodal", larger, seeded=True),),
        base_encoder="ViT-L 336 DFN+VeCap",
        encoders=(
            Encoder("ViT-L 224 DFN+VeCap", _at(large, 224)),
            Encoder("ViT-H 224 DFN", _at(huge, 224), "runs/vit_h_14_224_dfn"),
            Encoder("ViT-H 224 DFN+VeCap", _at(huge, 224)),
            Encoder("ViT-H 336 DFN+VeCap", _at(huge, 336)),
            Encoder("ViT-L 336 OpenAI", large, "runs/vit_l_14_336_openai"),
            Encoder("ViT-H 378 DFN", huge, "runs/vit_h_14_378"),
            Encoder("AIM-600M 224 DFN", aim("600m"), "runs/aim_600m"),
            Encoder("AIM-1B 224 DFN", aim("1b"), "runs/aim_1b"),
            Encoder("AIM-3B 224 DFN", aim("3b"), "runs/aim_3b"),
        ),
        images=(224, 336),
        tokens=(64, 144),
        interleaved={"interleaved": 1},
        one_making=("captions", "web"),
        tuned_pixels=((672, 672), (1344, 672), (1792, 896)),
        rate_stages=(Stage("multimodal", base, seeded=True),),
        rate_evaluation=Evaluation(tasks=PAPER_TASKS, limit=5000, data="benchmarks"),
        decoders={
            "9m": sizes.decoder_9m(),
            "85m": sizes.decoder_85m(),
            "302m": sizes.decoder_302m(),
            "1_2b": sizes.decoder_1_2b(),
        },
        rates=(2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3),
        experts=sizes.decoder_3b_moe().sparse,
    )


def _at(vision: VisionConfig, pixels: int) -> VisionConfig:
    return vision.model_copy(update={"image_size": pixels})


def _paper_tuning() -> Stage:
    """MM1, section 5: 10k steps of 256 sequences of 2048 tokens, AdaFactor with a peak of 1e-5, nothing frozen."""
    run = RunConfig(
        recipe="mm1_ablation_sft",
        model=sizes.ablation_base(),
        data=DataConfig(
            sources={"chats": SourceConfig(store="chats.lance")},
            tokenizer="tokenizer.json",
            sequence_length=2048,
            max_images=8,
        ),
        start_from={"model": f"{STAGE}multimodal"},
        optim=OptimConfig(kind="adafactor", learning_rate=1e-5, final_fraction=0.0),
        steps=10_000,
        batch_size=256,
        micro_batch_size=1,
        checkpoint_every=1000,
    )
    return Stage("tuning", run, seeded=True)


SCALES: dict[str, Callable[[], Scale]] = {"tiny": tiny, "paper": paper}
