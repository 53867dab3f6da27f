"""What a model is made of: the encoder (MM1, table 1), the connector (figure 4), experts (section 4)."""

from mm1.config.ablation import Ablation, Arm
from mm1.recipes.ablations.scales import Encoder, Scale

CONNECTORS = ("average", "attention", "c_abstractor")


def encoder(scale: Scale) -> Ablation:
    """MM1, table 1: size, resolution and data of a contrastive encoder, and reconstructive ones (AIM).

    At tiny scale each encoder is trained with each seed, since it is what the question is about; the reconstructive one
    for as much arithmetic as the base. At paper scale the decoder has 2.9 B parameters, as the paper's.
    """

    def arm(one: Encoder) -> Arm:
        if one.data and scale.trains_encoder:
            data: tuple[str, ...] = (f"encoder:data.sources.captions.only={one.data}",)
        else:
            data = (f"start_from.vision={one.data}",) if one.data else ()
        return Arm(one.name, (*scale.seen_by(one.vision), *data, *one.changes))

    return Ablation(
        name="encoder",
        question="What matters most in an image encoder: its size, its resolution, its data or its loss?",
        stages=scale.encoder_stages,
        base=Arm(scale.base_encoder),
        arms=tuple(arm(one) for one in scale.encoders),
        evaluation=scale.evaluation,
    )


def connector(scale: Scale) -> Ablation:
    """MM1, figure 4: three kinds of connector, two numbers of image tokens, two resolutions.

    Tiny, three seeds: about 55 minutes on two cores (predicted).
    """
    base = scale.base.model.connector

    def arm(kind: str, tokens: int, pixels: int) -> Arm:
        changes = [f"model.connector.kind={kind}", f"model.connector.tokens={tokens}"]
        if kind == "attention":  # it divides the connector's width into heads, which the other kinds don't have
            changes.append(f"model.connector.heads={base.width // 64}")
        vision = scale.base.model.vision.model_copy(update={"image_size": pixels})
        name = f"{kind}-{tokens}-{pixels}px"
        return Arm(name, (*changes, *scale.seen_by(vision)), group=f"{tokens} tokens, {pixels} px")

    grid = [arm(kind, tokens, pixels) for tokens in scale.tokens for pixels in scale.images for kind in CONNECTORS]
    name = f"{base.kind}-{base.tokens}-{scale.base.model.vision.image_size}px"
    (own,) = [one for one in grid if one.name == name]
    return Ablation(
        name="connector",
        question="Does the kind of connector matter, the number of image tokens, or the resolution?",
        stages=scale.stages,
        base=Arm(name, group=own.group),
        arms=tuple(one for one in grid if one is not own),
        evaluation=scale.evaluation,
    )


def experts(scale: Scale) -> Ablation:
    """MM1, section 4: a dense decoder and a sparse one, which starts from the dense language model."""
    sparse = scale.experts.model_dump(exclude_defaults=True)
    return Ablation(
        name="experts",
        question="What do experts bring at the same arithmetic per token and the same data?",
        stages=scale.stages,
        base=Arm("dense"),
        arms=(Arm("sparse", tuple(f"model.decoder.sparse.{name}={value}" for name, value in sparse.items())),),
        evaluation=scale.evaluation,
    )
