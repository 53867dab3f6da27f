"""Every recipe by its name, for `mm1 train NAME`."""

from collections.abc import Callable
from pathlib import Path

from mm1.config.base import ConfigError, nearest
from mm1.config.run import RunConfig, load, parse
from mm1.recipes import encoders, mm1, sft, small, tiny
from mm1.recipes.file import load_function, names_file

RECIPES: dict[str, Callable[[], RunConfig]] = {
    "tiny_encoder": tiny.tiny_encoder,
    "tiny_aim": encoders.tiny_aim,
    "tiny_language": tiny.tiny_language,
    "tiny": tiny.tiny,
    "tiny_sft": tiny.tiny_sft,
    "small_encoder": small.small_encoder,
    "small_language": small.small_language,
    "small": small.small,
    "small_sft": small.small_sft,
    "vit_l_14_224": encoders.vit_l_14_224,
    "vit_l_14_336": encoders.vit_l_14_336,
    "vit_h_14_224": encoders.vit_h_14_224,
    "vit_h_14_378": encoders.vit_h_14_378,
    "aim_600m": encoders.aim_600m,
    "aim_1b": encoders.aim_1b,
    "aim_3b": encoders.aim_3b,
    "mm1_3b": mm1.mm1_3b,
    "mm1_7b": mm1.mm1_7b,
    "mm1_30b": mm1.mm1_30b,
    "mm1_3b_moe": mm1.mm1_3b_moe,
    "mm1_7b_moe": mm1.mm1_7b_moe,
    "mm1_3b_sft": sft.mm1_3b_sft,
    "mm1_7b_sft": sft.mm1_7b_sft,
    "mm1_30b_sft": sft.mm1_30b_sft,
    "mm1_3b_moe_sft": sft.mm1_3b_moe_sft,
    "mm1_7b_moe_sft": sft.mm1_7b_moe_sft,
    "mm1_5_sft": sft.mm1_5_sft,
}


def recipe(name: str) -> RunConfig:
    """The run of the recipe `name`, of a user's file (`FILE.py` or `FILE.py:FUNCTION`), or of a recorded `FILE.json`.

    Raises:
        ConfigError: there is no such recipe (the message has the nearest name), function or file, or the run is not
            valid.
    """
    if name.endswith(".json"):
        return load(Path(name))
    if names_file(name):
        function = load_function(name, RunConfig)
        # from its JSON form, since that is all that a run's folder records; its `recipe` is the function's name
        return parse(function().model_dump(mode="json", warnings=False) | {"recipe": function.name})
    if name not in RECIPES:
        raise ConfigError(f"no recipe {name!r}; {nearest(name, list(RECIPES))}")
    return RECIPES[name]()
