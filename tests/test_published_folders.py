"""Folders as people publish them: weights and configs that disagree, and models that mm1 doesn't read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_published_text import ZEPHYR, letters

from mm1.checkpoint import load_for_use
from mm1.config import run as config
from mm1.config.run import override
from mm1.exchange.export import export_run
from mm1.exchange.importing import import_model
from mm1.hf.rope import rope_scaling_from_hf
from mm1.hf.unread import check_decoder, left_out_tensors
from mm1.hf.weight_files import tensors_of
from mm1.train.run import train_run

transformers = pytest.importorskip("transformers")

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = torch.arange(20, 40)[None]
VISION = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}


def published(folder: Path, model, **changes: Any) -> Path:
    """A model as `save_pretrained` writes it, with a tokenizer, and with some fields of config.json changed."""
    torch.manual_seed(0)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(letters(["<s>", "</s>"]).to_str())
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value != "gone"}))
    return folder


def llama(**settings: Any):
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=264, num_key_value_heads=2, **SHAPE | settings)
    ).eval()


def logits_of(source: Path, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Theirs, as `transformers` opens the folder, and ours, over the tokens that both have."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(source).eval()
    import_model(str(source), folder)
    decoder = load_for_use(folder).model.decoder
    with torch.no_grad():
        expected = theirs(TOKENS).logits
        hidden_BTD = decoder(decoder.embed(TOKENS), torch.arange(TOKENS.shape[1])[None])
        return expected, decoder.logits(hidden_BTD)[..., : expected.shape[-1]]


def test_an_output_matrix_beside_tied_embeddings_is_used(tmp_path):
    source = published(tmp_path / "theirs", llama(tie_word_embeddings=False), tie_word_embeddings=True)
    expected, ours = logits_of(source, tmp_path / "ours")
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_a_missing_output_matrix_is_said_with_its_mend(tmp_path):
    source = published(tmp_path / "theirs", llama(tie_word_embeddings=True), tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r'no file holds lm_head\.weight.*add "tie_word_embeddings": true'):
        import_model(str(source), tmp_path / "ours")


def test_one_file_goes_before_an_index_of_an_earlier_version(tmp_path):
    source = published(tmp_path / "theirs", llama())
    old = {name: x + 1 for name, x in load_file(source / "model.safetensors").items()}
    save_file(old, source / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(old, "model-00001-of-00001.safetensors")}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    expected, ours = logits_of(source, tmp_path / "ours")
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


DECODERS = (
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "smollm3",
    "gemma2",
    "gemma3_text",
    "phi3",
)  # Qwen3-MoE's default can't be read


@pytest.mark.parametrize("family", DECODERS)
def test_fields_that_a_config_leaves_out_are_those_of_its_class(family, tmp_path):
    """Rotary base, epsilon, key-value heads and experts are left out where they are the class's defaults."""
    shape = SHAPE | {"vocab_size": 264, "num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 32}
    own = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    config = transformers.AutoConfig.for_model(family, **shape, **own, max_position_embeddings=4096)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    kept = {"model_type", "architectures", *shape, "max_position_embeddings", "pad_token_id"}
    gone = {name: "gone" for name in config.to_dict() if name not in kept}
    source = published(tmp_path / "theirs", model, **gone)
    expected, ours = logits_of(source, tmp_path / "ours")
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_a_siglip_whose_patches_do_not_fill_its_images_says_so(tmp_path):
    settings = transformers.SiglipVisionConfig(**VISION, image_size=32, patch_size=14)
    transformers.SiglipVisionModel(settings).save_pretrained(tmp_path / "theirs")
    imported = import_model(str(tmp_path / "theirs"), tmp_path / "ours")
    assert "resized to 28 x 28" in imported.left_out
    assert "last 4 rows" in imported.left_out


UNREAD = {
    "dinov3, convnext": {"model_type": "dinov3_convnext", "architectures": ["DINOv3ConvNextModel"]},
    "convnext": {"model_type": "convnext", "architectures": ["ConvNextForImageClassification"]},
    "radio": {"model_type": "", "architectures": ["RADIOModel"]},
    "radio of transformers": {"model_type": "radio", "architectures": ["RadioModel"]},
    "perception encoder": {"architecture": "vit_pe_core_large_patch14_336"},
    "perception lm": {
        "model_type": "perception_lm",
        "architectures": ["PerceptionLMForConditionalGeneration"],
        "vision_config": {"model_type": "timm_wrapper"},
    },
    "timm": {"architecture": "vit_base_patch16_224", "num_classes": 1000},
    "qwen2.5-vl": {
        "model_type": "qwen2_5_vl",
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "vision_config": {"model_type": "qwen2_5_vl"},
    },
    "internvl3": {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "vision_config": {"model_type": "intern_vit_6b"},
    },
    "gemma 4": {"model_type": "gemma9", "architectures": ["Gemma9ForCausalLM"]},
}


@pytest.mark.parametrize("name", UNREAD)
def test_a_family_that_is_not_read_is_named_with_what_is(name, tmp_path):
    theirs = UNREAD[name]
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="mm1 reads") as refusal:
        import_model(str(tmp_path), tmp_path / "ours")
    message = str(refusal.value)
    assert "\n" not in message
    assert (theirs.get("architectures") or [theirs.get("architecture")])[0] in message
    assert "llava" in message


DEEPSEEK = {"original_max_position_embeddings": 16, "mscale": 0.7, "mscale_all_dim": 1.0}


@pytest.mark.parametrize("more", [{}, DEEPSEEK])
def test_yarn_is_read_however_its_length_and_scale_are_said(more, tmp_path):
    """Without a length that was stretched it is the model's; DeepSeek says how much attention is scaled."""
    stretched = {"rope_theta": 1e4, "rope_scaling": {"type": "yarn", "factor": 4.0} | more}
    source = published(tmp_path / "theirs", llama(max_position_embeddings=32), rope_parameters="gone", **stretched)
    expected, ours = logits_of(source, tmp_path / "ours")
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_an_export_has_the_context_of_a_model_of_short_texts(tmp_path):
    import_model(str(published(tmp_path / "theirs", llama(max_position_embeddings=96))), tmp_path / "ours")
    export_run(tmp_path / "ours", tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["max_position_embeddings"] == 96


def test_a_part_that_cannot_be_read_is_said_of_its_model(tmp_path):
    partly = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}
    source = published(tmp_path / "theirs", llama(), **partly)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM \(llama\), which mm1 can't read: partial_rotary_factor"):
        import_model(str(source), tmp_path / "ours")
    whole = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}
    (source / "config.json").write_text(json.dumps(whole | {"vision_config": {"model_type": "pixtral"}}))
    with pytest.raises(
        ValueError, match=r"LlavaForConditionalGeneration \(llava\), .*: image encoders of type 'pixtral'"
    ):
        import_model(str(source), tmp_path / "ours")


def test_a_model_with_another_head_is_refused_or_its_head_named(tmp_path):
    """A classifier writes no text, though its embeddings may be tied; a value head stands beside a model that does."""
    classifier = llama(tie_word_embeddings=True)
    source = published(tmp_path / "judge", classifier, architectures=["LlamaForSequenceClassification"])
    with pytest.raises(ValueError, match=r"LlamaForSequenceClassification \(llama\), which has another head"):
        import_model(str(source), tmp_path / "ours")
    source = published(tmp_path / "valued", llama())
    tensors = load_file(source / "model.safetensors") | {"v_head.summary.weight": torch.zeros(1, 32)}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert "v_head.summary.weight" in import_model(str(source), tmp_path / "ours").left_out
    torch.manual_seed(0)
    settings = transformers.ViTConfig(**VISION, image_size=24, patch_size=6)
    transformers.ViTForImageClassification(settings).save_pretrained(tmp_path / "vit")
    assert "head of ViTForImageClassification" in import_model(str(tmp_path / "vit"), tmp_path / "encoder").left_out


@pytest.mark.parametrize("method", ["fp8", "gptq", "awq", "bitsandbytes"])
def test_quantised_weights_are_refused_by_their_method(method, tmp_path):
    source = published(tmp_path / "theirs", llama(), quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(ValueError, match=rf"quantised weights \({method}\).*bf16 or fp32"):
        import_model(str(source), tmp_path / "ours")


@pytest.mark.parametrize(
    "beside", ["quantize_config.json", "quant_config.json", "hf_quant_config.json", "mlx", "int32"]
)
def test_quantised_weights_are_known_without_a_word_in_the_config(beside, tmp_path):
    """By the file that their tool writes, MLX's name for it, or the types of the tensors."""
    source = published(tmp_path / "theirs", llama(), **({"quantization": {"bits": 4}} if beside == "mlx" else {}))
    if beside.endswith(".json"):
        (source / beside).write_text("{}")
    if beside == "int32":
        tensors = load_file(source / "model.safetensors")
        tensors["model.layers.0.mlp.up_proj.qweight"] = torch.zeros(4, 48, dtype=torch.int32)
        save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"holds quantised weights .*bf16 or fp32"):
        import_model(str(source), tmp_path / "ours")


@pytest.mark.parametrize("settings", ["int4", ["int4"], 4, {"bits": 4}])
def test_quantised_weights_are_known_however_the_config_says_it(settings, tmp_path):
    source = published(tmp_path / "theirs", llama(), quantization=settings)
    with pytest.raises(ValueError, match=rf"quantised weights \({'int4' if settings == 'int4' else 'of an unnamed'}"):
        import_model(str(source), tmp_path / "ours")


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int8, torch.uint8, torch.uint32])
def test_masks_and_positions_are_no_quantised_weights(kind, tmp_path):
    buffers = {"mask": torch.ones(1, dtype=torch.bool), "position_ids": torch.ones(1, dtype=torch.int32)}
    buffers |= {"attn.bias": torch.ones(1, dtype=torch.uint8)}
    save_file(buffers, tmp_path / "model.safetensors")
    assert tensors_of(tmp_path).keys() == buffers.keys()
    save_file(buffers | {"up_proj.weight": torch.ones(1).to(kind)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"holds quantised weights \(up_proj\.weight as"):
        tensors_of(tmp_path)


def index(folder: Path, *names: str) -> None:
    weights = {"weight_map": {f"x{n}": name for n, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(weights))


def test_an_index_whose_files_are_all_gone_is_left_from_an_earlier_version(tmp_path):
    vit = transformers.ViTModel(transformers.ViTConfig(**VISION, image_size=24, patch_size=6))
    vit.save_pretrained(tmp_path / "vit", variant="fp16")
    gone = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    for source in (tmp_path / "vit", published(tmp_path / "llama", llama())):
        index(source, *gone)
        if source.name == "llama":
            (source / "model.safetensors").rename(source / "model.fp16.safetensors")
        import_model(str(source), tmp_path / f"ours of {source.name}")
        (source / "model.fp16.safetensors").unlink()
        with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json") as refusal:
            import_model(str(source), tmp_path / "ours")
    assert gone[0] in str(refusal.value)


@pytest.mark.parametrize("name", ["consolidated.safetensors", "weights.00.safetensors"])
def test_one_file_of_another_name_is_read(name, tmp_path):
    source = published(tmp_path / "theirs", llama())
    (source / "model.safetensors").rename(source / name)
    import_model(str(source), tmp_path / "ours")
    save_file({"x": torch.zeros(1)}, source / "x.safetensors")
    with pytest.raises(ValueError, match=rf"{name}, x\.safetensors.*it reads model\.safetensors, model-00001-of-"):
        import_model(str(source), tmp_path / "again")


@pytest.mark.parametrize("text", ["version https://git-lfs.github.com/spec/v1", "{}", '{"weight_map": []}'])
def test_a_damaged_index_is_named(text, tmp_path):
    source = published(tmp_path / "theirs", llama())
    (source / "model.safetensors").rename(source / "model-00001-of-00001.safetensors")
    (source / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json is damaged; download it again"):
        import_model(str(source), tmp_path / "ours")


@pytest.mark.parametrize(
    ("rope", "missing"),
    [
        ({"rope_type": "yarn", "factor": 4.0}, "max_position_embeddings"),
        ({"rope_type": "yarn", "original_max_position_embeddings": 16}, "max_position_embeddings"),
        ({"rope_type": "linear"}, "factor"),
    ],
)
def test_a_field_that_rotary_positions_lack_is_named(rope, missing):
    with pytest.raises(ValueError, match=rf"type '{rope['rope_type']}' have no {missing}$"):
        rope_scaling_from_hf(rope)


def test_classes_that_write_text_of_images_have_no_other_head(tmp_path):
    for name in ("LlamaForVision2Seq", "LlamaForVisionText2Text"):
        check_decoder(tmp_path, {"model_type": "llama", "architectures": [name]})


def test_tensors_beside_a_language_model_are_counted():
    assert left_out_tensors([]) == ""
    assert left_out_tensors(["v_head"]) == "1 tensor that is no language model's, v_head"
    said = "the output matrix's bias (lm_head.bias); 2 tensors that are no language model's, such as a"
    assert left_out_tensors(["a", "lm_head.bias", "b"]) == said


def test_an_adapter_alone_is_refused_with_the_way_to_merge_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "x", "peft_type": "LORA"}))
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"holds an adapter.*merge_and_unload\(\), and import what you save then$"):
        import_model(str(tmp_path), tmp_path / "ours")
    published(tmp_path, llama())
    with pytest.raises(ValueError, match=r"holds an adapter.*remove its files if the model beside it has it merged in"):
        import_model(str(tmp_path), tmp_path / "ours")


def test_one_file_of_a_model_is_answered_with_its_folder(tmp_path):
    file = published(tmp_path / "llama", llama()) / "model.safetensors"
    with pytest.raises(ValueError, match=r"model\.safetensors is one file of a model; name its folder.*/llama$"):
        import_model(str(file), tmp_path / "run")


def test_a_model_read_for_its_encoder_alone_says_what_is_left_out(tmp_path):
    vision = transformers.SiglipVisionConfig(**VISION, image_size=28, patch_size=14)
    text = transformers.GemmaConfig(vocab_size=264, head_dim=8, num_key_value_heads=1, **SHAPE)
    whole = transformers.PaliGemmaConfig(vision_config=vision, text_config=text, projection_dim=32)
    transformers.PaliGemmaForConditionalGeneration(whole).save_pretrained(tmp_path / "theirs")
    imported = import_model(str(tmp_path / "theirs"), tmp_path / "ours")
    assert "PaliGemmaForConditionalGeneration" in imported.left_out
    assert "see each other in both directions" in imported.left_out


CLASSES = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6},
    "gemma3_text": {"head_dim": 8, "sliding_window": 6, "layer_types": ["sliding_attention"] * 2},
}
"""Families with windows in other layers than those of the models that people know."""


@pytest.mark.parametrize("family", CLASSES)
def test_a_window_in_every_layer_leaves_in_the_class_that_it_came_in(family, tmp_path):
    settings = SHAPE | {"vocab_size": 264, "num_key_value_heads": 2, "pad_token_id": None} | CLASSES[family]
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(family, **settings))
    source = published(tmp_path / "theirs", theirs)
    expected, ours = logits_of(source, tmp_path / "ours")
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    export_run(tmp_path / "ours", tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(again) is type(theirs)
    with torch.no_grad():
        torch.testing.assert_close(again(TOKENS).logits[..., :264], expected, atol=1e-5, rtol=1e-5)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64, "rope_theta": 500_000.0}


def test_a_llama_that_learned_more_text_leaves_as_the_llama_it_was(tmp_path, stores):
    """Its class, its context and its rotary scaling, in the forms of `transformers` 4 and 5."""
    source = published(tmp_path / "theirs", llama(max_position_embeddings=2048, rope_parameters=LLAMA3))
    (source / "chat_template.jinja").write_text(ZEPHYR)
    (source / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    folder = import_model(str(source), tmp_path / "ours").folder
    changes = [f"data.sources.text.store={stores['text']}", "steps=1", "batch_size=1", "micro_batch_size=1"]
    changes += ["data.workers=0", f"data.tokenizer={folder}", "data.sequence_length=128"]
    run = override(config.load(folder / "config.json"), changes)
    export_run(train_run(run, tmp_path / "trained"), tmp_path / "out")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["architectures"] == ["LlamaForCausalLM"]
    assert written["max_position_embeddings"] == 2048
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text())["model_max_length"] == 2048
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 500_000.0
    assert {name: written["rope_scaling"][name] for name in LLAMA3} == LLAMA3
    assert not list((tmp_path / "out").glob("*.py"))
    assert (tmp_path / "out/chat_template.jinja").read_text().endswith(ZEPHYR)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert again.config.rope_parameters["rope_type"] == "llama3"
    decoder = load_for_use(tmp_path / "trained").model.decoder
    tokens = torch.arange(20, 20 + 100)[None]
    with torch.no_grad():
        ours = decoder.logits(decoder(decoder.embed(tokens), torch.arange(100)[None]))
        torch.testing.assert_close(again(tokens).logits, ours, atol=1e-5, rtol=1e-5)
