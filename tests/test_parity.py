"""Our decoders against `transformers` built from tiny random configs: same outputs in fp32, both ways."""

import tempfile

import pytest
import torch
from safetensors.torch import load_file

from mm1.config.model import DecoderConfig, SparseConfig
from mm1.hf.decoder_config import decoder_config_from_hf, decoder_config_to_hf
from mm1.hf.decoder_state import decoder_from_hf, decoder_to_hf
from mm1.model.decoder import Decoder

transformers = pytest.importorskip("transformers")

DECODER = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 16}
DECODERS = {
    "llama": {"rms_norm_eps": 1e-5},
    "llama, as Llama 2": {"num_key_value_heads": 4, "max_position_embeddings": 4096},
    "llama, as SmolLM2": {"tie_word_embeddings": True, "num_key_value_heads": 1, "rope_theta": 1e5},
    "llama, scaled positions": {"rope_parameters": LLAMA3},
    "llama, tied, wide heads": {"tie_word_embeddings": True, "head_dim": 12},
    "mistral": {"sliding_window": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "mistral, window": {"sliding_window": 16},
    "qwen2": {},
    "qwen2, as Qwen 2.5": {"tie_word_embeddings": True, "rms_norm_eps": 1e-6, "use_sliding_window": False},
    "qwen3": {"head_dim": 16},
    "smollm3": {"num_hidden_layers": 5, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "smollm3, other layers": {"no_rope_layers": [0, 1, 0], "tie_word_embeddings": True, "pad_token_id": 0},
    "mixtral": {"num_local_experts": 5},
    "mixtral, three": {"num_local_experts": 6, "num_experts_per_tok": 3, "router_aux_loss_coef": 0.02},
    "llama, biases": {"attention_bias": True, "mlp_bias": True},
    "llama, linear positions": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
    "qwen2, YaRN": {"rope_parameters": YARN, "max_position_embeddings": 64},
    "llama, YaRN, other settings": {
        "rope_parameters": YARN | {"beta_fast": 8.0, "beta_slow": 2.0, "attention_factor": 1.3, "truncate": False}
    },
    "olmo2": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "olmo2, biases": {"attention_bias": True},
    "gemma2": {
        "num_hidden_layers": 4,
        "head_dim": 8,
        "query_pre_attn_scalar": 24,
        "sliding_window": 6,
        "attn_logit_softcapping": 0.5,
        "final_logit_softcapping": 2.0,
    },
    "gemma2, tied, no caps": {
        "tie_word_embeddings": True,
        "head_dim": 16,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
    "olmoe": {"num_experts": 6, "num_experts_per_tok": 3},
    "olmoe, weights of one": {"num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": True},
    "qwen3_moe, weights as they are": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 20,
        "head_dim": 16,
        "norm_topk_prob": False,
    },
    "qwen3_moe": {
        "num_local_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 20,
        "head_dim": 16,
        "norm_topk_prob": True,
    },
}


def build(family: str, settings: dict):
    """A random model of theirs with every parameter away from its neutral start (norms of 1, biases of 0)."""
    classes = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        "smollm3": (transformers.SmolLM3Config, transformers.SmolLM3ForCausalLM),
        "mixtral": (transformers.MixtralConfig, transformers.MixtralForCausalLM),
        "gemma2": (transformers.Gemma2Config, transformers.Gemma2ForCausalLM),
        "olmo2": (transformers.Olmo2Config, transformers.Olmo2ForCausalLM),
        "olmoe": (transformers.OlmoeConfig, transformers.OlmoeForCausalLM),
        "qwen3_moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
    }
    config_class, model_class = classes[family]
    torch.manual_seed(0)
    # Gemma 2 caps its scores only so in transformers 5.20
    model = model_class(config_class(**settings, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def our_decoder(theirs) -> Decoder:
    config = decoder_config_from_hf(theirs.config.to_dict())
    decoder = Decoder(config)
    decoder.load_state_dict(decoder_from_hf(published(theirs), tie_embeddings=config.tie_embeddings))
    return decoder


def published(theirs) -> dict[str, torch.Tensor]:
    """Their weights with the names of their files; in memory the experts' names differ."""
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return load_file(f"{folder}/model.safetensors")


TOKENS = torch.randint(0, 61, (2, 40), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_logits_equal_theirs(name):
    theirs = build(name.split(",")[0], DECODER | DECODERS[name])
    ours = our_decoder(theirs)
    position_BT = torch.arange(40).expand(2, -1)
    with torch.no_grad():
        logits = ours.logits(ours(ours.embed(TOKENS), position_BT))
        torch.testing.assert_close(logits, theirs(TOKENS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_goes_there_and_back_unchanged(name):
    ours = our_decoder(build(name.split(",")[0], DECODER | DECODERS[name]))
    theirs = decoder_to_hf(ours.state_dict(), ours.config)
    back = decoder_from_hf(theirs, tie_embeddings=ours.config.tie_embeddings)
    config = decoder_config_to_hf(ours.config, max_positions=ours.config.max_positions)
    assert decoder_config_from_hf(config) == ours.config
    assert back.keys() == ours.state_dict().keys()
    assert all(torch.equal(back[name], x) for name, x in ours.state_dict().items())


@pytest.mark.parametrize("name", DECODERS)
def test_transformers_opens_our_decoder_from_a_folder(name, tmp_path):
    """Our export is a model of theirs: config and weights load without a warning, and the logits agree."""
    ours = our_decoder(build(name.split(",")[0], DECODER | DECODERS[name]))
    write(
        tmp_path,
        decoder_config_to_hf(ours.config, max_positions=ours.config.max_positions),
        decoder_to_hf(ours.state_dict(), ours.config),
    )
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    position_BT = torch.arange(40).expand(2, -1)
    with torch.no_grad():
        logits = ours.logits(ours(ours.embed(TOKENS), position_BT))
        torch.testing.assert_close(logits, theirs(TOKENS).logits, atol=1e-5, rtol=1e-5)


def write(folder, config: dict, state: dict):
    import json

    from safetensors.torch import save_file

    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: x.contiguous() for name, x in state.items()}, folder / "model.safetensors", {"format": "pt"})


def test_a_decoder_is_found_inside_a_larger_model():
    """A LLaVA has longer names for its parts, and more tensors than we read."""
    decoder = build("llama", DECODER)
    whole = {"language_model." + name: x for name, x in decoder.state_dict().items()}
    whole |= {"vision_tower.post_layernorm.weight": torch.zeros(2), "logit_scale": torch.zeros(())}
    assert decoder_from_hf(whole, tie_embeddings=False).keys() == our_decoder(decoder).state_dict().keys()


@pytest.mark.parametrize(
    ("family", "change", "word"),
    [
        ("mistral", {"attention_bias": True}, "attention_bias"),
        ("llama", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("llama", {"hidden_act": "gelu"}, "gelu"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
        ("llama", {"model_type": "gpt2"}, "gpt2"),
    ],
)
def test_what_our_decoder_cannot_compute_is_refused(family, change, word):
    config = {"llama": transformers.LlamaConfig, "mistral": transformers.MistralConfig}[family](**DECODER).to_dict()
    with pytest.raises(ValueError, match=word):
        decoder_config_from_hf(config | change)


def test_smollm3_without_a_list_of_layers_leaves_every_fourth_unrotated():
    config = transformers.SmolLM3Config(**DECODER | {"num_hidden_layers": 9}, pad_token_id=0).to_dict()
    listed = decoder_config_from_hf(config)
    del config["no_rope_layers"]
    assert decoder_config_from_hf(config) == listed
    assert listed.no_rope_layers == (3, 7)


def test_a_missing_expert_is_refused():
    state = published(build("mixtral", DECODER | DECODERS["mixtral"]))
    del state["model.layers.1.block_sparse_moe.experts.3.w2.weight"]
    with pytest.raises(ValueError, match=r"layers\.1.*experts\.w2\.weight.*\[0, 1, 2, 4\]"):
        decoder_from_hf(state, tie_embeddings=False)


def test_a_tensor_of_another_family_is_refused():
    state = build("qwen3", DECODER).state_dict() | {"model.layers.0.self_attn.sinks": torch.zeros(4)}
    with pytest.raises(ValueError, match="sinks"):
        decoder_from_hf(state, tie_embeddings=False)


def test_what_no_family_has_is_not_written():
    with pytest.raises(ValueError, match="every layer"):
        decoder_config_to_hf(DecoderConfig(sparse=SparseConfig(experts=4, every=2)), max_positions=8)
    with pytest.raises(ValueError, match="all of these: qkv_bias, experts"):
        decoder_config_to_hf(DecoderConfig(sparse=SparseConfig(experts=4), qkv_bias=True), max_positions=8)
    with pytest.raises(ValueError, match="all of these: qkv_bias, qk_norm"):
        decoder_config_to_hf(DecoderConfig(qkv_bias=True, qk_norm=True), max_positions=8)
