"""Published image encoders, from a folder or from the hub: config and weights."""

import fnmatch
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from mm1.config.model import VisionConfig
from mm1.hf.layouts import State, find, vision_from_hf
from mm1.hf.unread import check_encoder, naming
from mm1.hf.vision import FAMILIES, vision_config_from_aim, vision_config_from_hf, vision_config_from_openclip
from mm1.hf.weight_files import PICKLE, SAFETENSORS, weight_files

NAMES = {
    "ViT-B-16-quickgelu/dfn2b": "apple/DFN2B-CLIP-ViT-B-16",
    "ViT-L-14-quickgelu/dfn2b": "apple/DFN2B-CLIP-ViT-L-14",
    "ViT-H-14-quickgelu/dfn5b": "apple/DFN5B-CLIP-ViT-H-14",
    "ViT-H-14-378-quickgelu/dfn5b": "apple/DFN5B-CLIP-ViT-H-14-378",
}
"""OpenCLIP's names (MODEL/PRETRAINED) for DFN's encoders (Fang et al., arXiv 2309.17425), and the hub's."""

_OPENCLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # in the order they are looked for
_HF = ("model*.safetensors", "pytorch_model*.bin")


def read_encoder(source: str) -> tuple[VisionConfig, State]:
    """Config and state of the image encoder `source`: a folder, a name on the hub, or one of `NAMES`.

    The folder holds an open_clip_config.json or a config.json, and weights beside it. From a larger model's
    safetensors only the encoder's tensors are read.

    Raises:
        ValueError: no folder, no config, no weights, or an encoder with parts that our ViT doesn't have.
    """
    folder = Path(source) if Path(source).is_dir() else _download(NAMES.get(source, source))
    config, weights = _choose([path.name for path in folder.iterdir()], source)
    theirs = _json(folder / config)
    if "vision_config" in theirs:
        check_encoder(folder, theirs)
    if config == "open_clip_config.json":
        return vision_config_from_openclip(theirs), _state([folder / name for name in weights])
    state = _state(weight_files(folder, SAFETENSORS if weights[0].endswith(".safetensors") else PICKLE))
    with naming(folder, theirs):
        ours = vision_config_from_aim(theirs) if "num_blocks" in theirs else vision_config_from_hf(theirs)
    ours.mean, ours.std = pixels_of(folder, ours)
    return ours, state


def is_encoder(theirs: dict[str, Any]) -> bool:
    """Whether this is the config of an image encoder, alone or in a CLIP, that `read_encoder` may read."""
    types = {"aimv2", "clip", "siglip", *FAMILIES}
    return "model_cfg" in theirs or "num_blocks" in theirs or theirs.get("model_type") in types


def pixels_of(folder: Path, config: VisionConfig) -> tuple[Any, Any]:
    """Mean and standard deviation from the folder's processor, else those of `config`."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        file = folder / "processor_config.json"  # newer versions keep the image processor there, one level deeper
    settings = _json(file) if file.is_file() else {}
    settings = settings.get("image_processor", settings)
    return settings.get("image_mean", config.mean), settings.get("image_std", config.std)


def _choose(names: list[str], source: str) -> tuple[str, list[str]]:
    """The config file and the weight files among `names`; OpenCLIP's if there are both layouts."""
    for config, patterns in (("open_clip_config.json", _OPENCLIP), ("config.json", _HF)):
        for pattern in patterns:
            if config in names and (weights := sorted(fnmatch.filter(names, pattern))):
                return config, weights
    indices = sorted(fnmatch.filter(names, "*.index.json"))
    raise ValueError(
        f"{source} has no config.json with {' or '.join(_HF)}, "
        f"and no open_clip_config.json with {' or '.join(_OPENCLIP)}"
        + (f"; of weights it has only {', '.join(indices)}" if indices else "")
    )


def _download(name: str) -> Path:
    """The folder of that name on the hub, with config and weights only; from the cache if the hub can't be reached."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        config, weights = _choose(HfApi().list_repo_files(name), name)
    except OSError:
        try:
            return Path(snapshot_download(name, local_files_only=True))
        except OSError as error:
            raise ValueError(
                f"{name!r} is not a folder here, and can't be had from the hub; names of OpenCLIP: {', '.join(NAMES)}"
            ) from error
    beside = ["*.index.json", "preprocessor_config.json", "processor_config.json"]
    return Path(snapshot_download(name, allow_patterns=[config, *weights, *beside]))


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _state(files: list[Path]) -> State:
    """The state of our `Vision` from `files`, which together hold one state dict of theirs."""
    if files[0].suffix != ".safetensors":
        # weights_only refuses everything in a pickle but tensors; mmap reads only the tensors that are used
        states = [torch.load(file, map_location="cpu", weights_only=True, mmap=True) for file in files]
        return vision_from_hf({name: x for state in states for name, x in state.items()})
    with _opened(files) as tensors:
        _, prefix = find(tensors)
        return vision_from_hf({name: tensors[name].get_tensor(name) for name in tensors if name.startswith(prefix)})


@contextmanager
def _opened(files: list[Path]) -> Iterator[dict[str, Any]]:
    """The open file of each tensor, by the tensor's name."""
    with ExitStack() as stack:
        handles = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
        yield {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118 - no dict
