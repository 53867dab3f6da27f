"""The paper's ablations as arms of the tiny run: what `mm1 ablate NAME` finds."""

from collections.abc import Callable

from mm1.config.ablation import Ablation, Arm
from mm1.config.base import ConfigError, nearest
from mm1.recipes.tiny import tiny, tiny_encoder, tiny_language


def connector(stages: str) -> Ablation:
    """MM1, figure 4: kinds of connector and numbers of image tokens. `stages` is the folder the arms start from."""
    kinds = ("average", "attention", "c_abstractor")

    def arm(kind: str, tokens: int) -> Arm:
        changes = (f"model.connector.kind={kind}", f"model.connector.tokens={tokens}")
        # attention divides the connector's width of 128 into heads, which the other kinds don't have
        return Arm(f"{kind}-{tokens}", (*changes, "model.connector.heads=4") if kind == "attention" else changes)

    return Ablation(
        name="connector",
        question="Does the kind of connector matter, or the number of image tokens?",
        stages=(tiny_encoder(), tiny_language()),
        base=tiny(stages),
        arms=tuple(
            arm(kind, tokens)
            for tokens in (4, 16)
            for kind in kinds
            if (kind, tokens) != ("c_abstractor", 16)  # the base
        ),
    )


def mix(stages: str) -> Ablation:
    """MM1, figure 5a: shares of captions and of interleaved pages, with a tenth of text in every arm."""

    def arm(captions: int, pages: int) -> Arm:
        shares = {"captions": captions, "interleaved/pages": pages // 3, "interleaved/galleries": pages * 2 // 3}
        return Arm(f"{captions}:{pages}", tuple(f"data.sources.{name}.share={n}" for name, n in shares.items()))

    return Ablation(
        name="mix",
        question="What do captions bring, and what do interleaved pages?",
        stages=(tiny_encoder(), tiny_language()),
        base=tiny(stages),
        arms=(arm(18, 0), arm(12, 6), arm(6, 12), arm(0, 18)),
    )


ABLATIONS: dict[str, Callable[[str], Ablation]] = {"connector": connector, "mix": mix}


def ablation(name: str, stages: str) -> Ablation:
    """The ablation `name`, whose runs start from those in the folder `stages`.

    Raises:
        ConfigError: there is no such ablation; the nearest is named.
    """
    if name not in ABLATIONS:
        raise ConfigError(f"no ablation {name!r}; {nearest(name, list(ABLATIONS))}")
    return ABLATIONS[name](stages)
