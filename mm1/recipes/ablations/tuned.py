"""What helps after fine-tuning: MM1, figures 7b and 7c. The fine-tuned model is scored, without shots."""

from mm1.config.ablation import Ablation, Arm
from mm1.recipes.ablations.scales import Scale


def resolution(scale: Scale) -> Ablation:
    """MM1, figure 7b: pixels per side in fine-tuning; the largest are an overview and its four quarters."""
    tuning = scale.tuning()
    own = tuning.run.model.vision.image_size

    def arm(pixels: int, tile: int) -> Arm:
        tiling = ("model.tiling.kind=mm1",) if tile < pixels else ()
        return Arm(f"{pixels} px", (f"model.vision.image_size={tile}", *tiling), at=pixels)

    return Ablation(
        name="resolution",
        question="What does a higher resolution in fine-tuning bring?",
        stages=(*scale.stages, tuning),
        base=Arm(f"{own} px", at=own),
        arms=tuple(arm(pixels, tile) for pixels, tile in scale.tuned_pixels),
        evaluation=scale.tuned_evaluation,
        axis="pixels per side",
    )


def steps(scale: Scale) -> Ablation:
    """MM1, figure 7c: steps of pre-training before the same fine-tuning."""
    most = scale.base.steps
    return Ablation(
        name="steps",
        question="Does more pre-training help after fine-tuning?",
        stages=(*scale.stages, scale.tuning()),
        base=Arm(f"{most:,} steps", at=most),
        arms=tuple(Arm(f"{n:,} steps", (f"multimodal:steps={n}",), at=n) for n in (most // 4, most // 2)),
        evaluation=scale.tuned_evaluation,
        axis="steps of pre-training",
    )
