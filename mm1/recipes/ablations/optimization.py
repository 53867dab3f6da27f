"""How a model is trained: learning rate and weight decay (MM1, section 3.4), starts, frozen parts (section 3)."""

from mm1.config.ablation import Ablation, Arm
from mm1.recipes.ablations.scales import Scale

DECAYS = (0.01, 0.03, 0.3, 1.0)


def learning_rate(scale: Scale) -> Ablation:
    """MM1, figure 6: every size with every rate.

    The paper searches with the multimodal model and compares 8-shot scores. At tiny scale a language model is trained
    on text alone and compared by its held-out loss, since eight shots tell nothing of so small models.
    That takes about 65 minutes on two cores with three seeds (predicted).
    """
    grid = [
        Arm(f"{size} {rate:g}", (*scale.sized(size), f"optim.learning_rate={rate:g}"), group=size, at=rate)
        for size in scale.decoders
        for rate in scale.rates
    ]
    return Ablation(
        name="learning_rate",
        question="Which peak learning rate is best at which size?",
        stages=scale.rate_stages,
        base=grid[0],
        arms=tuple(grid[1:]),
        evaluation=scale.rate_evaluation,
        axis="peak learning rate",
    )


def weight_decay(scale: Scale) -> Ablation:
    """MM1, section 3.4: the paper searched for the weight decay too, and took a tenth of the rate: 0.1 in torch."""
    base = scale.base.optim.weight_decay
    return Ablation(
        name="weight_decay",
        question="Does the weight decay matter beside the learning rate?",
        stages=scale.stages,
        base=Arm(f"decay {base:g}", at=base),
        arms=tuple(Arm(f"decay {decay:g}", (f"optim.weight_decay={decay:g}",), at=decay) for decay in DECAYS),
        evaluation=scale.evaluation,
        axis="weight decay",
    )


def start(scale: Scale) -> Ablation:
    """MM1, section 3: encoder and language model both start pre-trained; what each start brings."""
    starts = scale.base.start_from
    vision, decoder = (f'start_from={{"{part}": "{starts[part]}"}}' for part in ("vision", "decoder"))
    return Ablation(
        name="start",
        question="What do a pre-trained encoder and a pre-trained language model bring?",
        stages=scale.stages,
        base=Arm("both"),
        arms=(
            Arm("encoder alone", (vision,)),
            Arm("language model alone", (decoder,)),
            Arm("none", ("start_from={}",)),
        ),
        evaluation=scale.evaluation,
    )


def frozen(scale: Scale) -> Ablation:
    """MM1, section 4: nothing is frozen; here with encoder, language model or both kept as they start."""
    return Ablation(
        name="frozen",
        question="Is it better to keep the encoder or the language model as they start?",
        stages=scale.stages,
        base=Arm("nothing frozen"),
        arms=(
            Arm("encoder frozen", ('frozen=["vision"]',)),
            Arm("language model frozen", ('frozen=["decoder"]',)),
            Arm("both frozen", ('frozen=["vision", "decoder"]',)),
        ),
        evaluation=scale.evaluation,
    )
