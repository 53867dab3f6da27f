"""What a model is trained on: MM1, figure 5."""

from mm1.config.ablation import Ablation, Arm
from mm1.recipes.ablations.scales import Scale


def mix(scale: Scale) -> Ablation:
    """MM1, figure 5: captions to interleaved (a), text or none (b), how much text (c), one kind of caption (d).

    The paper does not say whether the arms of 5a have text; here they have a tenth, as the base has. The captions of
    5d are synthetic ones (VeCap); the shipped sample has none, so at tiny scale one of its two sources is left out.
    Tiny, three seeds: about 50 minutes on two cores (predicted).
    """

    def arm(name: str, captions: int, interleaved: int, *, text: int, group: str) -> Arm:
        return Arm(name, scale.shares(captions, interleaved, text=text), group=group)

    source, pattern = scale.one_making
    a, b, c = "captions : interleaved", "without text", "image : text"
    return Ablation(
        name="mix",
        question="What do captions, interleaved pages and text each bring?",
        stages=scale.stages,
        base=Arm("9:9:2", group=a),
        arms=(
            arm("captions 18:0:2", 18, 0, text=2, group=a),
            arm("captions 12:6:2", 12, 6, text=2, group=a),
            arm("captions 6:12:2", 6, 12, text=2, group=a),
            arm("captions 0:18:2", 0, 18, text=2, group=a),
            arm("captions alone", 1, 0, text=0, group=b),
            arm("interleaved alone", 0, 1, text=0, group=b),
            arm("image:text 100:0", 9, 9, text=0, group=c),
            arm("image:text 86:14", 9, 9, text=3, group=c),
            arm("image:text 67:33", 9, 9, text=9, group=c),
            Arm("captions of one making", (f"data.sources.{source}.only={pattern}",), group="captions' making"),
        ),
        evaluation=scale.evaluation,
    )
