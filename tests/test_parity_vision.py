"""Our image encoders against `transformers` built from tiny random configs: same features in fp32, both ways."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mm1.config import VisionConfig
from mm1.hf.vision import vision_config_from_hf, vision_config_to_hf, vision_from_hf, vision_to_hf
from mm1.model.vision import Vision

transformers = pytest.importorskip("transformers")

VISION = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 6,
}


def build(family: str, settings: dict):
    """A random model of theirs with every parameter away from its neutral start (norms of 1, biases of 0)."""
    classes = {
        "clip": (transformers.CLIPVisionConfig, transformers.CLIPVisionModel),
        "siglip": (transformers.SiglipVisionConfig, transformers.SiglipVisionModel),
    }
    config_class, model_class = classes[family]
    torch.manual_seed(0)
    model = model_class(config_class(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def our_vision(theirs) -> Vision:
    vision = Vision(vision_config_from_hf(theirs.config.to_dict()))
    vision.load_state_dict(vision_from_hf(theirs.state_dict()))
    return vision


def pixels(images_NCYX: torch.Tensor, config: VisionConfig) -> torch.Tensor:
    """What their image processor would make of the same uint8 image."""
    mean, deviation = (torch.tensor(x)[:, None, None] for x in (config.mean, config.deviation))
    return (images_NCYX / 255 - mean) / deviation


IMAGES = torch.randint(0, 256, (3, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_vision_features_equal_theirs(family):
    theirs = build(family, VISION)
    ours = our_vision(theirs)
    with torch.no_grad():
        out = theirs(pixels(IMAGES, ours.config), output_hidden_states=True)
        patches = slice(1, None) if family == "clip" else slice(None)
        normed = theirs.post_layernorm(out.hidden_states[-1])
        torch.testing.assert_close(ours(IMAGES), normed[:, patches], atol=1e-5, rtol=1e-5)
        ours.config.feature_layer = -2
        torch.testing.assert_close(ours(IMAGES), out.hidden_states[-2][:, patches], atol=1e-5, rtol=1e-5)


def test_clip_summary_equals_their_pooled_output():
    theirs = build("clip", VISION)
    ours = our_vision(theirs)
    with torch.no_grad():
        pooled = theirs(pixels(IMAGES, ours.config)).pooler_output
        torch.testing.assert_close(ours.summary(IMAGES), pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_interpolated_positions_equal_theirs(family):
    theirs = build(family, VISION)
    ours = our_vision(theirs)
    images_NCYX = torch.randint(0, 256, (2, 3, 42, 42), dtype=torch.uint8)
    with torch.no_grad():
        out = theirs(pixels(images_NCYX, ours.config), interpolate_pos_encoding=True, output_hidden_states=True)
        normed = theirs.post_layernorm(out.hidden_states[-1])[:, int(family == "clip") :]
        torch.testing.assert_close(ours(images_NCYX), normed, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_vision_goes_there_and_back_unchanged(family):
    ours = our_vision(build(family, VISION))
    theirs = vision_to_hf(ours.state_dict())
    back = vision_from_hf(theirs)
    assert vision_config_from_hf(vision_config_to_hf(ours.config)) == ours.config
    assert back.keys() == ours.state_dict().keys()
    assert all(torch.equal(back[name], x) for name, x in ours.state_dict().items())


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_transformers_opens_our_vision_from_a_folder(family, tmp_path):
    ours = our_vision(build(family, VISION))
    write(tmp_path, vision_config_to_hf(ours.config), vision_to_hf(ours.state_dict()))
    model_class = {"clip": transformers.CLIPVisionModel, "siglip": transformers.SiglipVisionModel}[family]
    theirs, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        out = theirs(pixels(IMAGES, ours.config)).last_hidden_state
        if family == "clip":
            out = theirs.post_layernorm(out)[:, 1:]
        torch.testing.assert_close(ours(IMAGES), out, atol=1e-5, rtol=1e-5)


def test_a_config_inside_a_config_may_leave_out_defaults():
    config = vision_config_from_hf(
        {
            "model_type": "siglip",
            "vision_config": {"model_type": "siglip_vision_model", "patch_size": 14, "image_size": 384},
        }
    )
    theirs = transformers.SiglipVisionConfig()
    assert (config.width, config.layers, config.heads) == (
        theirs.hidden_size,
        theirs.num_hidden_layers,
        theirs.num_attention_heads,
    )
    assert config.norm_epsilon == theirs.layer_norm_eps
    assert config.image_size == 378  # 27 patches, as their convolution makes


def write(folder, config: dict, state: dict):
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: x.contiguous() for name, x in state.items()}, folder / "model.safetensors", {"format": "pt"})


def test_an_encoder_is_found_inside_a_larger_model():
    """A whole CLIP names its image encoder deeper, and holds more than we take."""
    theirs = build("clip", VISION)
    whole = {"vision_model." + name: x for name, x in theirs.state_dict().items()}
    whole |= {"text_model.embeddings.token_embedding.weight": torch.zeros(2, 2), "logit_scale": torch.zeros(())}
    assert vision_from_hf(whole).keys() == our_vision(theirs).state_dict().keys()


def test_what_no_family_has_is_not_written():
    with pytest.raises(ValueError, match="class_token True"):
        vision_config_to_hf(VisionConfig(class_token=True))
