"""Our image encoders against `transformers` built from tiny random configs: same features in fp32, both ways."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mm1.config.model import VisionConfig
from mm1.hf.layouts import vision_from_hf, vision_to_hf
from mm1.hf.vision import vision_config_from_hf, vision_config_to_hf
from mm1.model.vision import Vision

transformers = pytest.importorskip("transformers")

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 6,
}
VISION = SHAPE | {"intermediate_size": 56}
FAMILIES = {
    "clip": ("CLIPVision", VISION),
    "siglip": ("SiglipVision", VISION),
    "vit": ("ViT", VISION),
    "dinov2": ("Dinov2", SHAPE),
    "dinov2, gated": ("Dinov2", SHAPE | {"use_swiglu_ffn": True}),
    "dinov2, registers": ("Dinov2WithRegisters", SHAPE | {"num_register_tokens": 3}),
    "dinov3": ("DINOv3ViT", VISION | {"num_register_tokens": 3}),
    "dinov3, gated": (
        "DINOv3ViT",
        VISION
        | {"num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu", "rope_theta": 30.0}
        | {"query_bias": False, "value_bias": False},
    ),
    "aimv2": ("Aimv2Vision", VISION),
    "aimv2, any size": ("Aimv2Vision", VISION | {"is_native": True}),
}
RESIZED = [name for name in FAMILIES if name != "aimv2"]  # theirs has no rule for other sizes


def build(family: str):
    """A random model of theirs with every parameter away from its neutral start (norms of 1, biases of 0)."""
    name, settings = FAMILIES[family]
    torch.manual_seed(0)
    model = getattr(transformers, name + "Model")(getattr(transformers, name + "Config")(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def published(theirs, folder) -> dict[str, torch.Tensor]:
    """Their state dict as their files name it, which is not always how their modules do."""
    theirs.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def our_vision(theirs, folder) -> Vision:
    vision = Vision(vision_config_from_hf(theirs.config.to_dict()))
    vision.load_state_dict(vision_from_hf(published(theirs, folder)))
    return vision


def pixels(images_NCYX: torch.Tensor, config: VisionConfig) -> torch.Tensor:
    """The pixels that their image processor makes of the same uint8 image."""
    mean, std = (torch.tensor(x)[:, None, None] for x in (config.mean, config.std))
    return (images_NCYX / 255 - mean) / std


def images(size: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))


def their_features(theirs, pixels_NCYX: torch.Tensor, **settings) -> list[torch.Tensor]:
    """Patch features after the embedding, after every layer, and after the last norm."""
    out = theirs(pixels_NCYX, output_hidden_states=True, **settings)
    norm = next(
        getattr(theirs, name) for name in ("post_layernorm", "layernorm", "rms_norm", "norm") if hasattr(theirs, name)
    )
    features = [*out.hidden_states, norm(out.hidden_states[-1])]
    patches = (pixels_NCYX.shape[-1] // 6) ** 2
    return [x_NQE[:, -patches:] for x_NQE in features]


@pytest.mark.parametrize("family", FAMILIES)
def test_features_of_every_layer_equal_theirs(family, tmp_path):
    theirs = build(family)
    ours = our_vision(theirs, tmp_path)
    with torch.no_grad():
        *layers, last, normed = their_features(theirs, pixels(images(24), ours.config))
        torch.testing.assert_close(ours(images(24)), normed, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(last, normed, atol=0.1)
        for back, expected in enumerate(reversed(layers), start=2):
            ours.config.feature_layer = -back
            torch.testing.assert_close(ours(images(24)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["clip", "dinov2", "dinov2, registers", "dinov3"])
def test_the_summary_is_their_pooled_output(family, tmp_path):
    theirs = build(family)
    ours = our_vision(theirs, tmp_path)
    with torch.no_grad():
        pooled = theirs(pixels(images(24), ours.config)).pooler_output
        torch.testing.assert_close(ours.summary(images(24)), pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [12, 18, 42, 66])
@pytest.mark.parametrize("family", RESIZED)
def test_positions_are_resized_by_their_own_rule(family, size, tmp_path):
    """To coarser and to finer grids; only DINOv2 with registers antialiases."""
    theirs = build(family)
    ours = our_vision(theirs, tmp_path)
    options = {"interpolate_pos_encoding": True} if family in ("clip", "siglip", "vit") else {}
    with torch.no_grad():
        expected = their_features(theirs, pixels(images(size), ours.config), **options)[-1]
        torch.testing.assert_close(ours(images(size)), expected, atol=1e-5, rtol=1e-5)
        if ours.position_PE is not None:
            ours.config.antialias = not ours.config.antialias
            assert not torch.allclose(ours(images(size)), expected, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_goes_there_and_back_unchanged(family, tmp_path):
    ours = our_vision(build(family), tmp_path)
    back = vision_from_hf(vision_to_hf(ours.state_dict()))
    assert vision_config_from_hf(vision_config_to_hf(ours.config)) == ours.config
    assert back.keys() == ours.state_dict().keys()
    assert all(torch.equal(back[name], x) for name, x in ours.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_opens_our_encoder_from_a_folder(family, tmp_path):
    """Our export is a model of theirs: config and weights load without a warning, and the features agree."""
    ours = our_vision(build(family), tmp_path / "theirs")
    (tmp_path / "config.json").write_text(json.dumps(vision_config_to_hf(ours.config)))
    state = {name: x.contiguous() for name, x in vision_to_hf(ours.state_dict()).items()}
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    model_class = getattr(transformers, FAMILIES[family][0] + "Model")
    theirs, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    # a ViT's pooler is for its classifier, which ours doesn't have
    assert not report["missing_keys"] - {"pooler.dense.weight", "pooler.dense.bias"}
    assert not report["unexpected_keys"]
    with torch.no_grad():
        expected = their_features(theirs.eval(), pixels(images(24), ours.config))[-1]
        torch.testing.assert_close(ours(images(24)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["clip", "aimv2"])
def test_an_encoder_is_found_inside_a_larger_model(family, tmp_path):
    """A whole CLIP has longer names for its image encoder, and more tensors than we read."""
    alone = published(build(family), tmp_path)
    whole = {"vision_model." + name.removeprefix("vision_model."): x for name, x in alone.items()}
    whole |= {"text_model.embeddings.token_embedding.weight": torch.zeros(2, 2), "logit_scale": torch.zeros(())}
    assert vision_from_hf(whole).keys() == vision_from_hf(alone).keys()


def test_a_config_inside_a_config_may_leave_out_defaults():
    config = vision_config_from_hf(
        {
            "model_type": "siglip",
            "vision_config": {"model_type": "siglip_vision_model", "patch_size": 14, "image_size": 384},
        }
    )
    assert config.image_size == 378  # 27 patches, as their convolution makes


@pytest.mark.parametrize("family", FAMILIES)
def test_unsaid_fields_have_the_defaults_of_their_config_class(family):
    config_class = getattr(transformers, FAMILIES[family][0] + "Config")
    assert vision_config_from_hf({"model_type": config_class.model_type}) == vision_config_from_hf(
        config_class().to_dict()
    )


@pytest.mark.parametrize(
    ("family", "change", "word"),
    [
        ("siglip", {"model_type": "siglip2_vision_model"}, "siglip2_vision_model"),
        ("clip", {"hidden_act": "relu"}, "relu"),
        ("dinov2", {"qkv_bias": False}, "qkv_bias"),
        ("dinov3", {"proj_bias": False}, "proj_bias"),
        ("dinov3, gated", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("aimv2", {"mlp_bias": True}, "mlp_bias"),
        ("aimv2", {"hidden_act": "gelu"}, "gelu"),
    ],
)
def test_what_our_encoder_cannot_compute_is_refused(family, change, word):
    with pytest.raises(ValueError, match=word):
        vision_config_from_hf(build(family).config.to_dict() | change)


def test_what_no_family_has_is_not_written():
    with pytest.raises(ValueError, match="siglip_vision_model is the most similar one, but here is patch_bias False"):
        vision_config_to_hf(VisionConfig(patch_bias=False))
