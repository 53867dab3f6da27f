"""Language models from GGUF files: tiny ones made here, and SmolLM2-135M from its package."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import small
import torch
from weights import SMOLLM2, fetched

from mm1.config.model import DecoderConfig
from mm1.data.tokenizer import Tokenizer
from mm1.generate.engine import Engine
from mm1.generate.prompt import Prompt
from mm1.generate.sampling import Decoding
from mm1.hf.gguf import NAMES, Gguf
from mm1.hf.names import translate
from mm1.hf.vocabulary import extended
from mm1.model.decoder import Decoder
from mm1.model.layers import initialise
from mm1.model.mllm import MLLM

gguf = pytest.importorskip("gguf")

GOLDEN = Path(__file__).parent / "fixtures/smollm2.json"


def write(path: Path, decoder: Decoder, architecture: str, *, add: Callable = lambda _: None, **fields) -> None:
    """Write `decoder` as GGUF, with the library's own writer and llama.cpp's conventions; `add` writes more fields."""
    config, writer = decoder.config, gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.layers)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.mlp_width)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_width)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    for name, value in fields.items():
        writer.add_string(f"{architecture}.{name.replace('__', '.')}", value)
    add(writer)
    state = decoder.state_dict()
    for name, theirs in translate(state, NAMES).items():
        x = state[name]
        if architecture == "llama" and name.endswith(("query.weight", "key.weight")):
            x = x.unflatten(0, (-1, 2, config.head_width // 2)).transpose(1, 2).flatten(0, 2)
        writer.add_tensor(theirs, x.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


FAMILIES = {
    "llama": {},
    "qwen2": {"qkv_bias": True, "tie_embeddings": True},
    "qwen3": {"qk_norm": True, "norm_epsilon": 1e-6},
}


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_gguf_is_read_as_what_was_written(architecture, tmp_path):
    shape = {"vocabulary": 64, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_width": 16, "mlp_width": 64}
    config = DecoderConfig(**shape | {"tie_embeddings": False} | FAMILIES[architecture])
    decoder = Decoder(config)
    initialise(decoder, 0)
    write(tmp_path / "model.gguf", decoder, architecture)
    gguf = Gguf(tmp_path / "model.gguf")
    assert gguf.config() == config
    state = dict(gguf.tensors())
    assert state.keys() == decoder.state_dict().keys()
    assert all(torch.equal(state[name], x) for name, x in decoder.state_dict().items())


def test_what_is_not_read_is_refused_by_name(tmp_path):
    decoder = Decoder(
        DecoderConfig(vocabulary=64, width=32, layers=1, heads=2, head_width=16, kv_heads=2, mlp_width=64)
    )
    write(tmp_path / "stretched.gguf", decoder, "llama", rope__scaling__type="yarn")
    with pytest.raises(ValueError, match="'yarn'"):
        Gguf(tmp_path / "stretched.gguf").config()
    write(tmp_path / "other.gguf", decoder, "gemma")
    with pytest.raises(ValueError, match=r"'gemma'.*known: llama"):
        Gguf(tmp_path / "other.gguf")


@pytest.fixture(scope="module")
def smollm2() -> Gguf:
    return Gguf(next(fetched(SMOLLM2).rglob("*.gguf")))


def test_smollm2_writes_what_transformers_reads_out_of_the_same_file(smollm2, tmp_path):
    """64 tokens on five prompts, greedily, through the whole model with its vocabulary extended by our marks."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(smollm2.words().tokenizer))
    tokenizer = Tokenizer(tmp_path)
    config = small.config()
    config.decoder = smollm2.config().model_copy(update={"vocabulary": tokenizer.vocabulary})
    with torch.device("meta"):
        model = MLLM(config)
    model.vision.to_empty(device="cpu")
    model.connector.to_empty(device="cpu")
    model.decoder.load_state_dict(extended(dict(smollm2.tensors()), tokenizer.vocabulary), assign=True)
    golden = json.loads(GOLDEN.read_text())
    assert [tokenizer.encode(case["prompt"]) for case in golden[:4]] == [case["ids"] for case in golden[:4]]
    prompts = [Prompt(case["ids"]) for case in golden]
    completions = Engine(model.eval()).generate(prompts, Decoding(max_tokens=64))
    for case, completion in zip(golden, completions, strict=True):
        assert tokenizer._inner.decode(completion.tokens, skip_special_tokens=False) == case["text"]
