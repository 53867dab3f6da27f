"""What a run takes over from the runs that `start_from` names: their shapes and their tokenizer."""

from pathlib import Path

from mm1.config.model import DecoderConfig, TilingConfig, VisionConfig
from mm1.config.run import RunConfig, load, override
from mm1.data.recorded import TOKENIZER
from mm1.data.tokenizer import load_tokenizer


def with_starts(run: RunConfig, assignments: list[str]) -> RunConfig:
    """`run` with the assignments of a command line. Those of `start_from` come first: the run takes shapes and
    tokenizer of what it starts from, and the other assignments change them.

    Of a whole model it takes image size and tiles too, unless only the recipe has tiles. Else the recipe keeps its
    image size, or the nearest that the encoder's patches fill, since position embeddings are resized. It keeps its
    experts if it starts from a dense decoder. Where the start has tiles, the recipe's random views of pictures end, as
    each would be a single tile. A start that is missing changes nothing.

    Raises:
        ConfigError: an assignment that is no override of the run.
    """
    named = [assignment for assignment in assignments if assignment.startswith("start_from")]
    others = [assignment for assignment in assignments if assignment not in named]
    run = override(run, named)
    if named:
        for part, folder in run.start_from.items():
            if (Path(folder) / "config.json").is_file():
                run = _started(run, part, Path(folder))
    changed = override(run, others)
    if named and changed.model.tiling.kind != run.model.tiling.kind:  # limits of the start's tiles are not for others
        run.model.tiling = TilingConfig(pixels=run.model.tiling.pixels)
        changed = override(run, others)
    return changed


def _started(run: RunConfig, part: str, folder: Path) -> RunConfig:
    """`run` with the shape of a part of another run, or of all of its parts, and with that run's tokenizer."""
    start, run = load(folder / "config.json").model, run.model_copy(deep=True)
    if part == "model" and (start.tiling.kind != "none" or run.model.tiling.kind == "none"):
        run.model.tiling = TilingConfig()  # whose pixels may not be those of the start's patches
        run.model.vision, run.model.tiling = start.vision, start.tiling
        run.data.augment = None if start.tiling.kind != "none" else run.data.augment
    elif part in ("vision", "model"):
        run.model.vision = _vision(run.model.vision, start.vision)
    if part == "model":
        run.model.connector = start.connector
    if part in ("decoder", "model"):
        run.model.decoder = _decoder(run.model.decoder, start.decoder)
        run.data.tokenizer = _tokenizer(run.data.tokenizer, folder)
    return run


def _vision(ours: VisionConfig, start: VisionConfig) -> VisionConfig:
    patches = max(1, round(ours.image_size / start.patch_size))
    return start.model_copy(update={"image_size": patches * start.patch_size})


def _decoder(ours: DecoderConfig, start: DecoderConfig) -> DecoderConfig:
    upcycled = ours.sparse.experts and not start.sparse.experts
    return start.model_copy(update={"sparse": ours.sparse}) if upcycled else start


def _tokenizer(ours: str, folder: Path) -> str:
    """The tokenizer of the run in `folder`; `ours` if it is the same one, or if there is none in the folder."""
    theirs = folder / TOKENIZER
    if not theirs.is_file():
        return ours
    try:
        same = load_tokenizer(ours).fingerprint == load_tokenizer(str(theirs)).fingerprint
    except ValueError:  # the recipe's own is not there; it isn't needed
        same = False
    return ours if same else str(folder)
