"""Reading small text: the resolution of pre-training, stretched, and in tiles, in runs of equal time.

    mm1 prepare rendered_text text=sample:text-train count=20000 page_words=4 page_side=288 page_letters=0.08,0.16 \
        --to reading/train
    mm1 prepare rendered_text text=sample:text-test count=300 page_words=4 page_side=288 page_letters=0.08,0.16 seed=1 \
        --to reading/test
    mm1 ablate benchmarks/reading.py --seeds 3 --workers 2 --to runs/reading

The demo's model, pre-trained for a sixth of its steps, is fine-tuned on rendered pages. Letters are 11 to 46 pixels
high on the page; at 96 pixels a side they are a third of that in the largest pages. The score is `transcription`: 100
less the character error rate, in percent. The page has it with intervals, and the likelihood of the right text.

Steps are those that take as long as the base's 2000. A step took 0.26 s at 96 pixels, 2.0 times that stretched and 1.2
times in tiles, on one thread of a busy machine: compare `step_seconds` in `metrics.jsonl` of runs of 30 steps
(`encoder:steps=2 language:steps=2 multimodal:steps=2 reading:steps=30 --workers 2`) and change STEPS where they differ.
"""

from mm1.config.ablation import STAGE, Ablation, Arm, Evaluation, Stage
from mm1.config.run import OptimConfig, SourceConfig
from mm1.recipes.ablations import scales
from mm1.recipes.tiny import tiny_sft

STEPS = {"96 px": 2000, "stretched to 192 px": 1000, "192 px in tiles": 1650}
"""Equal times, not equal steps."""


def reading() -> Ablation:
    base, stretched, tiles = STEPS
    run = tiny_sft()
    run.start_from = {"model": f"{STAGE}multimodal"}
    run.data.sources = {"pages": SourceConfig(store="reading/train/images.lance")}
    run.data.validation = {"pages": "reading/test/images.lance"}
    run.model.vision.image_size = 96
    run.steps, run.checkpoint_every = STEPS[base], 500
    run.optim, run.data.augment = OptimConfig(warmup_steps=20), None  # text is read as it stands
    return Ablation(
        name="reading",
        question="What helps to read small text: more pixels for the encoder, or tiles of its own size?",
        stages=(*scales.tiny().stages, Stage("reading", run, seeded=True)),
        base=Arm(base),
        arms=(
            Arm(stretched, ("model.vision.image_size=192", f"steps={STEPS[stretched]}")),
            Arm(tiles, ("model.tiling.kind=mm1", f"steps={STEPS[tiles]}")),
        ),
        evaluation=Evaluation(tasks=("transcription",), shots=(0,), limit=300, data="reading/test"),
    )
