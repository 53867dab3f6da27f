"""What vLLM's Transformers backend asks of an export. vLLM itself is asked by `tests/with_vllm.py`, not in CI."""

import json

import numpy as np
import pytest
import torch
from test_export import ALL_PARTS, OWN, model, opened, run_of, write_run
from test_tiled_models import OWN as TILINGS
from test_tiled_models import PICTURES, our_run, picture, png

from mm1.data.encode import encode
from mm1.data.tiles import tile_spec
from mm1.data.tokenizer import load_tokenizer
from mm1.document import Document, Image, Text
from mm1.exchange.export import export_run

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("kind", TILINGS)
def test_a_processor_says_what_replaces_the_mark_of_a_picture(kind, tmp_path):
    """vLLM makes a prompt of the text for each picture, and counts tokens and tiles by its size alone."""
    ours, tokenizer = our_run(tmp_path / "run", kind), load_tokenizer("sample")
    export_run(tmp_path / "run", tmp_path / "out")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True)
    spec = tile_spec(ours.config, use=True)
    for name in PICTURES:
        canvas = picture(*PICTURES[name])
        options = {"return_tensors": "pt", "return_text_replacement_offsets": True}
        inputs = processor(images=[canvas], text="<|image|>", add_special_tokens=False, **options)
        ((entry,),) = inputs["text_replacement_offsets"]
        expanded = encode(Document((Image(png(canvas)), Text("a"))), tokenizer, tile=spec, end=False).tokens[1:-1]
        assert processor.tokenizer(entry["replacement"], add_special_tokens=False)["input_ids"] == expanded.tolist()
        counts = processor._get_num_multimodal_tokens(image_sizes=[canvas.size[::-1]])
        assert counts["num_image_tokens"] == [len(expanded)]
        assert counts["num_image_patches"] == [len(inputs["pixel_values"])]


@pytest.mark.parametrize("kind", ["mm1", "llava_next"])
def test_image_features_come_in_the_order_of_a_pictures_tokens(kind, tmp_path):
    our_run(tmp_path / "run", kind)
    export_run(tmp_path / "run", tmp_path / "out")
    theirs = opened(tmp_path / "out")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True)
    canvases = [picture(*PICTURES[name]) for name in ("tall", "odd")]
    options = {"return_tensors": "pt", "return_text_replacement_offsets": True}
    inputs = processor(images=canvases, text="<|image|>a<|image|>", **options)
    index = {"feature_index": inputs["feature_index"]} if "feature_index" in inputs else {}
    assert bool(index) == (kind == "llava_next")
    with torch.no_grad():
        parts = theirs.get_image_features(inputs["pixel_values"], return_dict=True, **index).pooler_output
        expected = theirs(**processor(images=canvases, text="<|image|>a<|image|>", return_tensors="pt")).logits
        ids_BT = inputs["input_ids"]
        x_BTD = theirs.get_input_embeddings()(ids_BT)
        features = torch.cat([part.reshape(-1, x_BTD.shape[-1]) for part in parts])
        x_BTD[ids_BT == theirs.config.image_token_id] = features
        torch.testing.assert_close(theirs(inputs_embeds=x_BTD).logits, expected, atol=1e-5, rtol=1e-5)


def test_attention_is_the_one_that_transformers_is_told_to_use(tmp_path):
    """Of every layer, and of no other module: so vLLM can put its own there."""
    write_run(tmp_path / "run", run_of(OWN["linear, a decoder of no family"]))
    export_run(tmp_path / "run", tmp_path / "out")
    theirs, called = opened(tmp_path / "out"), []

    def attend(module, q, k, v, mask, *, scaling, **kwargs):
        called.append(module.layer_idx)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        return y.transpose(1, 2), None

    tokens_BT = torch.arange(20)[None] + 300
    with torch.no_grad():
        expected = theirs(tokens_BT).logits
        transformers.AttentionInterface.register("counted", attend)
        theirs.set_attn_implementation("counted")
        torch.testing.assert_close(theirs(tokens_BT).logits, expected, atol=1e-5, rtol=1e-5)
    assert called == [0, 1]


def test_the_config_says_what_vllm_plans_by(tmp_path):
    """Sizes in a nested `text_config`, experts, and a base class beside the whole."""
    write_run(tmp_path / "run", run_of(model(OWN["attention, DINOv2"].vision, "average", 4, **ALL_PARTS)))
    export_run(tmp_path / "run", tmp_path / "out")
    described = json.loads((tmp_path / "out/config.json").read_text())
    assert [*described["auto_map"]][:2] == ["AutoConfig", "AutoModel"]
    theirs = transformers.AutoConfig.from_pretrained(tmp_path / "out", trust_remote_code=True)
    text = theirs.get_text_config()
    assert (text.hidden_size, text.num_hidden_layers, text.num_key_value_heads) == (32, 2, 2)
    assert (text.num_experts, text.num_experts_per_tok, text.norm_topk_prob) == (4, 2, False)
    inner = transformers.AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert type(inner).__name__ == "MM1Model"
    assert inner.get_decoder() is inner.language_model
    assert np.isin([0, 1], [getattr(one, "layer_idx", -1) for one in inner.modules()]).all()
