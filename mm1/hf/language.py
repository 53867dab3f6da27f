"""A published language model, from a folder, a GGUF file or the hub: config, weights, tokenizer."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from mm1.config.model import DecoderConfig
from mm1.data.chat import TEMPLATE
from mm1.hf.convert import decoder_config_from_hf, decoder_from_hf
from mm1.hf.gguf import Gguf
from mm1.hf.vocabulary import Words, extended, read_words


@dataclass(frozen=True, slots=True)
class Language:
    """A language model that knows the project's marks. `weights` are those of our `Decoder`."""

    config: DecoderConfig
    weights: dict[str, torch.Tensor]
    words: Words


def read_language(name: str) -> Language:
    """The language model `name`: a folder in HF layout, a .gguf file or a folder with one, or a name on the hub.

    Weights keep the type they are stored in; of GGUF they are fp32.

    Raises:
        ValueError: nothing of that name, or a model that our decoder can't compute.
    """
    path = Path(name) if Path(name).exists() else downloaded(name)
    files = [path] if path.is_file() else sorted(path.glob("*.gguf"))
    if not (path / "config.json").is_file() and len(files) == 1:
        gguf = Gguf(files[0])
        return with_room(gguf.config(), dict(gguf.tensors()), gguf.words())
    for needed in ("config.json", "tokenizer.json"):
        if not (path / needed).is_file():
            raise ValueError(f"{path} has no {needed} and not just one .gguf; is it a model's folder?")
    config = decoder_config_from_hf(json.loads((path / "config.json").read_text()))
    weights = decoder_from_hf(tensors_of(path), tie_embeddings=config.tie_embeddings)
    return with_room(config, weights, read_words(path))


def with_room(config: DecoderConfig, weights: dict[str, torch.Tensor], words: Words) -> Language:
    """The model with rows for all of its words in its matrices."""
    tokenizer = words.tokenizer
    ids = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])]
    vocabulary = max(config.vocabulary, max(ids) + 1)
    return Language(config.model_copy(update={"vocabulary": vocabulary}), extended(weights, vocabulary), words)


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of the folder's files, which are mapped, not read: memory is taken as they are used.

    Raises:
        ValueError: no safetensors there, or not all that its index names.
    """
    files, index = sorted(path.glob("*.safetensors")), path / "model.safetensors.index.json"
    if index.is_file():  # some folders hold the same weights in another form beside these
        files = sorted({path / name for name in json.loads(index.read_text())["weight_map"].values()})
    lost = [file.name for file in files if not file.is_file()]
    if len(lost) == len(files):
        raise ValueError(f"{path} has no .safetensors file; weights in pickles are not read")
    if lost:
        raise ValueError(f"{path} has no {lost[0]}, which {index.name} names; download it again")
    found: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                found |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118, it is no dict
        except SafetensorError as error:
            raise ValueError(f"{file} is torn ({error}); download it again") from None
    return found


def downloaded(name: str, *, kinds: tuple[str, ...] = ("*.json", "*.safetensors", TEMPLATE)) -> Path:
    """The folder of the model `name` on the hub, with its files of these kinds.

    Raises:
        ValueError: there is none.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=[*kinds]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"no model at {name}, and the hub has none: {str(error).splitlines()[0]}") from error
