"""The files with a published model's weights, and the tensors in them."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
"""The names of `transformers`. Weights in several files have an index, and the number of each in its name."""

_READ = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64)
"""Types of tensors; integers are constants such as positions."""


def weight_files(folder: Path, whole: str = SAFETENSORS) -> list[Path]:
    """The files that hold the weights under the name `whole`; none if there are none.

    As in `transformers`, a single file goes before an index, and an index before files that it doesn't name: either
    may be left from an earlier version.

    Raises:
        ValueError: some files of the index are missing.
    """
    name, index = Path(whole), folder / f"{whole}.index.json"
    if (folder / whole).is_file():
        return [folder / whole]
    if not index.is_file():
        return sorted(folder.glob(f"{name.stem}*{name.suffix}"))
    files = sorted({folder / file for file in json.loads(index.read_text())["weight_map"].values()})
    missing = [file.name for file in files if not file.is_file()]
    if len(missing) == len(files):
        return []
    if missing:
        raise ValueError(f"{folder} has no {missing[0]}, which {index.name} names; download it again")
    return files


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the folder's safetensors. Files are mapped, so tensors take memory only when they are used.

    Raises:
        ValueError: there are none, a file of the index is missing, one is damaged, or weights are quantised.
    """
    files = weight_files(folder)
    if not files:
        raise ValueError(f"{folder} has no .safetensors file of a model; weights in pickles are not read")
    state: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                state |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118, it is no dict
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged ({error}); download it again") from None
    for name, x in state.items():
        if x.dtype not in _READ:
            kind = str(x.dtype).removeprefix("torch.")
            raise ValueError(
                f"{folder} holds quantised weights ({name} as {kind}), which mm1 doesn't read; import the model in "
                "bf16 or fp32 that they were made from"
            )
    return state
