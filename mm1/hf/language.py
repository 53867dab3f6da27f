"""Published language models, from a folder, a GGUF file or the hub: config, weights, tokenizer."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mm1.config.model import DecoderConfig
from mm1.data.chat_format import TEMPLATE
from mm1.hf.decoder_config import decoder_config_from_hf
from mm1.hf.decoder_state import beside_decoder, decoder_from_hf, with_own_head
from mm1.hf.gguf import Gguf
from mm1.hf.unread import check_decoder, left_out_tensors, naming
from mm1.hf.vocabulary import Words, extended, read_words, vocabulary_of
from mm1.hf.weight_files import tensors_of


@dataclass(frozen=True, slots=True)
class Language:
    """A language model whose vocabulary has the project's marks. `weights` are those of our `Decoder`; `left_out` says
    what else its files hold."""

    config: DecoderConfig
    weights: dict[str, torch.Tensor]
    words: Words
    left_out: str = ""


def read_language(name: str, *, tokenizer: Path | None = None) -> Language:
    """The language model `name`: a folder in HF layout, a .gguf file or a folder with one, or a name on the hub.

    Weights keep the type they are stored in; those of GGUF become fp32. `tokenizer` is a folder in HF layout whose
    tokenizer and chat template replace the model's own.

    Raises:
        ValueError: nothing has that name, or our decoder can't compute the model.
    """
    path = Path(name) if Path(name).exists() else downloaded(name)
    if path.is_file() and path.suffix in (".safetensors", ".bin", ".json", ".pt", ".pth"):
        raise ValueError(f"{path} is one file of a model; name its folder, which has a config.json too: {path.parent}")
    files = [path] if path.is_file() else sorted(path.glob("*.gguf"))
    if not (path / "config.json").is_file() and len(files) == 1:
        gguf = Gguf(files[0])
        words = read_words(tokenizer) if tokenizer else gguf.words()
        return with_words(gguf.config(), dict(gguf.tensors()), words)
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} has no config.json, and not exactly one .gguf; is it a model's folder?")
    described = json.loads((path / "config.json").read_text())
    check_decoder(path, described)
    words = read_words(tokenizer or path)
    with naming(path, described):
        config = decoder_config_from_hf(described)
    theirs = tensors_of(path)
    config = with_own_head(config, theirs)
    weights = decoder_from_hf(theirs, tie_embeddings=config.tie_embeddings)
    return replace(with_words(config, weights, words), left_out=left_out_tensors(beside_decoder(theirs)))


def with_words(config: DecoderConfig, weights: dict[str, torch.Tensor], words: Words) -> Language:
    """The model with a vocabulary, and matrices, for all tokens of `words`."""
    vocabulary = max(config.vocabulary, max(vocabulary_of(words.tokenizer).values()) + 1)
    return Language(config.model_copy(update={"vocabulary": vocabulary}), extended(weights, vocabulary), words)


def downloaded(name: str, *, kinds: tuple[str, ...] = ("*.json", "*.safetensors", TEMPLATE)) -> Path:
    """The folder of the model `name` on the hub, with its files that match `kinds`.

    Raises:
        ValueError: the hub has no such model.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=[*kinds]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"no model at {name}, and none on the hub: {str(error).splitlines()[0]}") from error
