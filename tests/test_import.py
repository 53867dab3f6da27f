"""`mm1 import`: a published language model becomes a run that trains on from its weights."""

import json

import pytest
import torch
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from mm1 import checkpoint
from mm1.config import run as config
from mm1.config.base import ConfigError
from mm1.config.run import override
from mm1.data.tokenizer import Tokenizer
from mm1.exchange.importing import import_model
from mm1.hf import language
from mm1.model.decoder import Decoder
from mm1.model.mllm import MLLM
from mm1.train.run import train_run

transformers = pytest.importorskip("transformers")
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def published(tmp_path):
    """A tiny Llama in bf16, in several files, with a byte-level tokenizer of 256 letters and two specials."""
    letters = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = HFTokenizer(BPE(letters, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    torch.manual_seed(0)
    settings = transformers.LlamaConfig(vocab_size=260, num_key_value_heads=1, max_position_embeddings=64, **SHAPE)
    theirs = transformers.LlamaForCausalLM(settings).bfloat16().eval()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    tokenizer.save(str(tmp_path / "theirs/tokenizer.json"))
    settings_of_tokenizer = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True}
    (tmp_path / "theirs/tokenizer_config.json").write_text(json.dumps(settings_of_tokenizer))
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    return theirs.float()


def test_an_imported_model_says_what_it_said_and_trains_on(published, tmp_path, stores):
    folder = import_model(str(tmp_path / "theirs"), tmp_path / "ours").folder
    run = config.load(folder / "config.json")
    tokenizer = Tokenizer(run.data.tokenizer)
    assert run.model.decoder.vocabulary == tokenizer.vocabulary == 262  # 256 + 2 + four marks: it has its own of two
    model = MLLM(run.model)
    checkpoint.load_part(folder, model, "decoder")
    tokens_BT = torch.tensor([tokenizer.encode("a green circle")])
    with torch.no_grad():
        x_BTD = model.decoder.embed(tokens_BT)
        logits = model.decoder.logits(model.decoder(x_BTD, torch.arange(tokens_BT.shape[1])[None]))
        torch.testing.assert_close(logits[..., :260], published(tokens_BT).logits, atol=1e-5, rtol=1e-5)
    changes = [f"data.sources.captions.store={stores['captions']}", "steps=1", "batch_size=2", "micro_batch_size=2"]
    changes += ["data.workers=0", "data.max_images=8", "data.sequence_length=128", 'frozen=["decoder"]']
    trained = checkpoint.load_for_use(train_run(override(run, changes), tmp_path / "trained")).model.decoder
    assert all(torch.equal(x, trained.state_dict()[name]) for name, x in model.decoder.state_dict().items())


def test_a_folder_that_holds_a_run_is_left_alone(published, tmp_path):
    import_model(str(tmp_path / "theirs"), tmp_path / "ours")
    with pytest.raises(ConfigError, match="holds a run already"):
        import_model(str(tmp_path / "theirs"), tmp_path / "ours")


def test_a_name_on_the_hub_is_fetched_and_pickles_are_not_read(published, tmp_path, monkeypatch):
    requested = []

    def snapshot_download(name, *, allow_patterns):
        requested.append((name, allow_patterns))
        return str(tmp_path / "theirs")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    imported = language.read_language("someone/tiny-llama")
    assert requested == [("someone/tiny-llama", ["*.json", "*.safetensors", "chat_template.jinja"])]
    assert imported.weights.keys() == Decoder(imported.config).state_dict().keys()
    for file in (tmp_path / "theirs").glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"no \.safetensors"):
        language.read_language(str(tmp_path / "theirs"))


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        language.read_language(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        language.read_language(str(tmp_path))
    with pytest.raises(ValueError, match="no model at nobody/nothing"):
        language.read_language("nobody/nothing")
