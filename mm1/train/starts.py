"""The weights of the runs that a run starts from."""

from pathlib import Path

import torch
from torch import nn

from mm1 import checkpoint
from mm1.config import run as config
from mm1.config.base import ConfigError
from mm1.config.model import ModelConfig, SparseConfig
from mm1.config.run import RunConfig
from mm1.model.connector import ROW_END
from mm1.model.layers import sharded_like
from mm1.model.lora import is_adapter
from mm1.model.mllm import MLLM
from mm1.model.moe import upcycled
from mm1.train.log import console


def load_starts(run: RunConfig, model: nn.Module) -> None:
    """Load the weights of the runs in `start_from`, and say what they are.

    Raises:
        ConfigError: the image size is not for the connector of a start.
        CheckpointError: a run has no whole checkpoint, or its part has other names or shapes.
    """
    for name, folder in run.start_from.items():
        start = config.load(Path(folder) / "config.json").model
        part: str = name
        new: set[str] = set()
        seen, how = "", ""
        if name == "model":
            _check_blocks(run.model, start)
            part, new, seen = "", _new(run.model, start), f"\n  {_seen(run.model, start)}"
        if name != "vision" and run.model.decoder.sparse.experts and not start.decoder.sparse.experts:
            origin = _upcycle(run, Path(folder), model=model, part=part, new=new)
            how = ", each expert from its feed-forward"
        else:
            origin = checkpoint.load_part(Path(folder), model, part, but=new)
        told = "".join(f"\n  new, since the start has none: {weight}" for weight in sorted(new))
        console.print(f"started {name} from {origin.path}{how}{seen}{told}", highlight=False, soft_wrap=True)


def _check_blocks(model: ModelConfig, start: ModelConfig) -> None:
    """Check that a pixel shuffle takes blocks of as many patches as it has learned.

    Raises:
        ConfigError: the image size makes other blocks of the same number of tokens.
    """
    if not model.connector.kind == start.connector.kind in ("pixel_shuffle", "pixel_shuffle_mlp"):
        return
    here, there = (-(-each.vision.grid.rows // each.connector.grid.rows) for each in (model, start))
    if here != there:
        size = there * model.connector.grid.rows * model.vision.patch_size
        raise ConfigError(
            f"with model.vision.image_size={model.vision.image_size} the connector joins blocks of {here} x {here} "
            f"patches to each of {model.connector.tokens} image tokens, but it learned blocks of {there} x {there}; "
            f"set model.vision.image_size={size}"
        )


def _new(model: ModelConfig, start: ModelConfig) -> set[str]:
    """The weights that the tiles of a model need and those of its start don't: what ends their rows."""
    ends = [each.tile_features > each.connector.tokens for each in (model, start)]
    return {ROW_END} if ends == [True, False] else set()


def _seen(model: ModelConfig, start: ModelConfig) -> str:
    """How pictures are seen, and what the start saw where that differs."""

    def told(ours: object, theirs: object) -> str:
        return f"{ours}" + ("" if ours == theirs else f" ({theirs} there)")

    pixels = told(model.vision.image_size, start.vision.image_size)
    return f"image size: {pixels}; tiles: {told(model.tiling.kind, start.tiling.kind)}"


@torch.no_grad()
def _upcycle(run: RunConfig, folder: Path, *, model: nn.Module, part: str, new: set[str]) -> checkpoint.Checkpoint:
    """Start a sparse model (or its decoder) from a dense run, but for the `new` weights."""
    shape = run.model.model_copy(deep=True)
    shape.decoder.sparse = SparseConfig()
    dense = MLLM(shape)
    origin = checkpoint.load_part(folder, dense, part, but=new)
    state = {name: value for name, value in model.state_dict().items() if name not in new}
    weights = {name: value for name, value in state.items() if name.startswith(part) and not is_adapter(name)}
    for name, value in upcycled(dense.state_dict(), weights).items():
        weights[name].copy_(value if value is weights[name] else sharded_like(value, weights[name]))
    return origin
