"""The files with a published model's weights, and the tensors in them."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
"""The names of `transformers`. Weights in several files have an index, and the number of each in its name."""

_READ = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64)
"""Types of weights; integers are constants."""

_WEIGHTS = ("weight", "_proj")
"""The ends of the names of matrices, which are quantised where they are integers; others may be masks or positions."""


def weight_files(folder: Path, whole: str = SAFETENSORS) -> list[Path]:
    """The files that hold the weights under the name `whole`, or the only file of that kind under another name.

    As in `transformers`, a single file goes before an index, and an index before files that it doesn't name: either
    may be left from an earlier version. An index of which no file is there is left from one.

    Raises:
        ValueError: there are none, some files of the index are missing, or the index is damaged.
    """
    name, index = Path(whole), folder / f"{whole}.index.json"
    if (folder / whole).is_file():
        return [folder / whole]
    indexed = _indexed(index) if index.is_file() else []
    missing = [file.name for file in indexed if not file.is_file()]
    if indexed and not missing:
        return indexed
    if len(missing) < len(indexed):
        raise ValueError(f"{folder} has no {missing[0]}, which {index.name} names; download it again")
    if numbered := sorted(folder.glob(f"{name.stem}*{name.suffix}")):
        return numbered
    others = sorted(folder.glob(f"*{name.suffix}"))
    if len(others) == 1:
        return others
    if others:
        raise ValueError(
            f"{folder} has {', '.join(file.name for file in others)}, of which mm1 can't tell what belongs together; "
            f"it reads {whole}, {name.stem}-00001-of-0000N{name.suffix}, files that {index.name} names, or one file "
            "of another name"
        )
    if index.is_file():
        raise ValueError(f"{folder} has no file that {index.name} names ({_some(missing)}); download them too")
    pickles = "; weights in pickles are not read" if whole == SAFETENSORS else ""
    raise ValueError(f"{folder} has no {name.suffix} file of a model{pickles}")


def _indexed(index: Path) -> list[Path]:
    """The files that an index names."""
    try:
        return sorted({index.parent / name for name in json.loads(index.read_text())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index} is damaged; download it again") from None


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + ", ..." * (len(names) > 2) if names else "none"


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the folder's safetensors. Files are mapped, so tensors take memory only when they are used.

    Raises:
        ValueError: there are none, a file of the index is missing, one is damaged, or weights are quantised.
    """
    state: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                state |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118, it is no dict
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged ({error}); download it again") from None
    for name, x in state.items():
        if x.dtype not in _READ and (x.is_floating_point() or name.endswith(_WEIGHTS)):  # floats are of 8 bits
            kind = str(x.dtype).removeprefix("torch.")
            raise ValueError(
                f"{folder} holds quantised weights ({name} as {kind}), which mm1 doesn't read; import the model in "
                "bf16 or fp32 that they were made from"
            )
    return state
