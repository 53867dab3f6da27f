"""`mm1 import` of LLaVA-1.5 and encoders; each becomes a run that others can start from."""

import json

import pytest
import torch
from safetensors.torch import save_file
from test_encoder_folders import IMAGES, OPENCLIP, openclip_by_formula, openclip_state
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from mm1 import checkpoint
from mm1.checkpoint import load_for_use
from mm1.config import run as config
from mm1.config.base import ConfigError
from mm1.config.model import VisionConfig
from mm1.eval.models import open_model
from mm1.exchange.importing import import_model
from mm1.hf.llava import llava_config_from_hf
from mm1.hf.vision import vision_config_from_openclip
from mm1.model import sizes
from mm1.model.mllm import MLLM
from mm1.model.vision import Vision
from mm1.serve.chat import answer
from mm1.train.run import train_run

transformers = pytest.importorskip("transformers")

VISION = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION |= {"image_size": 24, "patch_size": 6}
TEXT = {"vocab_size": 262, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
IMAGE = 258  # of their tokenizer


def write_tokenizer(folder) -> None:
    """256 letters, then <s>, </s>, <image>, <pad>; the matrices have two rows more."""
    letters = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = HFTokenizer(BPE(letters, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>", "</s>", "<image>", "<pad>"])
    tokenizer.save(str(folder / "tokenizer.json"))


def published(folder, kind: str, vision, text, **settings):
    """A tiny random LLaVA of theirs in `folder`, as save_pretrained writes it."""
    torch.manual_seed(0)
    whole = getattr(transformers, f"{kind}Config")(
        vision_config=vision, text_config=text, image_token_index=IMAGE, **settings
    )
    theirs = getattr(transformers, f"{kind}ForConditionalGeneration")(whole).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(folder, max_shard_size="50KB")
    write_tokenizer(folder)
    return theirs


def our_logits(imported, pixels_NCYX: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    """Our logits for an image and `tokens` after it, over the vocabulary that they have too."""
    loaded = load_for_use(imported.folder)
    image_tokens = [loaded.tokenizer.image] * loaded.run.model.connector.tokens
    with torch.no_grad():
        features_NSD = loaded.model.encode_images(pixels_NCYX)
        tokens_BT = torch.tensor([[*image_tokens, *tokens]])
        x_BTD = loaded.model.embed(tokens_BT, features_NSD)
        hidden_BTD = loaded.model.decoder(x_BTD, torch.arange(tokens_BT.shape[1])[None])
        return loaded.model.decoder.logits(hidden_BTD)[..., : TEXT["vocab_size"]]


def normalised(images_NCYX: torch.Tensor, vision: VisionConfig) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (vision.mean, vision.std))
    return (images_NCYX / 255 - mean) / std


LLAVAS = {
    "CLIP, Llama": (transformers.CLIPVisionConfig(**VISION), transformers.LlamaConfig(**TEXT), {}),
    "CLIP, Mistral, layer 1": (
        transformers.CLIPVisionConfig(**VISION),
        transformers.MistralConfig(**TEXT, sliding_window=None),
        {"vision_feature_layer": 1},
    ),
    "SigLIP, last layer, Qwen": (
        transformers.SiglipVisionConfig(**VISION, vision_use_head=False),
        transformers.Qwen2Config(**TEXT),
        {"vision_feature_select_strategy": "full", "vision_feature_layer": -1},
    ),
    "CLIP, Gemma 2, whose logits no LLaVA caps": (
        transformers.CLIPVisionConfig(**VISION),
        transformers.Gemma2Config(**TEXT, head_dim=8, attn_logit_softcapping=None, final_logit_softcapping=0.5),
        {},
    ),
    "SigLIP, tied Qwen": (
        transformers.SiglipVisionConfig(**VISION, vision_use_head=False),
        transformers.Qwen2Config(**TEXT, tie_word_embeddings=True),
        {"vision_feature_select_strategy": "full"},
    ),
}


@pytest.mark.parametrize("name", LLAVAS)
def test_a_llava_says_what_it_said(name, tmp_path):
    vision, text, settings = LLAVAS[name]
    theirs = published(tmp_path / "theirs", "Llava", vision, text, **settings)
    imported = import_model(str(tmp_path / "theirs"), tmp_path / "ours")
    assert not imported.left_out
    run = config.load(imported.folder / "config.json")
    pixels = normalised(IMAGES[:1], run.model.vision)
    with torch.no_grad():
        logits = theirs(input_ids=torch.tensor([[IMAGE] * 16 + [*range(70, 90)]]), pixel_values=pixels).logits
    torch.testing.assert_close(our_logits(imported, IMAGES[:1], [*range(70, 90)]), logits, atol=1e-5, rtol=1e-5)


def test_an_imported_llava_answers_trains_and_is_started_from(tmp_path, stores):
    vision, text, _ = LLAVAS["CLIP, Llama"]
    published(tmp_path / "theirs", "Llava", vision, text)
    folder = import_model(str(tmp_path / "theirs"), tmp_path / "ours").folder
    assert isinstance(answer(load_for_use(folder), "USER: what is it? ASSISTANT:", images=[], tokens=4), str)
    changes = [f"data.sources.captions.store={stores['captions']}", "steps=1", "batch_size=1", "micro_batch_size=1"]
    run = config.override(config.load(folder / "config.json"), [*changes, "data.workers=0", "optim.learning_rate=0"])
    before = load_for_use(folder).model.state_dict()
    trained = load_for_use(train_run(run, tmp_path / "on")).model.state_dict()
    assert all(torch.equal(x, trained[name]) for name, x in before.items())
    other = run.model_copy(deep=True)
    other.start_from = {"vision": str(folder), "decoder": str(folder)}
    other.model.connector.kind, other.model.connector.tokens = "average", 4
    part = load_for_use(train_run(other, tmp_path / "other")).model.state_dict()
    assert all(torch.equal(x, part[name]) for name, x in before.items() if not name.startswith("connector."))


ENCODERS = {
    "clip": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)),
    "siglip": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION)),
    "siglip 2, with its text tower": lambda: transformers.SiglipModel(
        transformers.SiglipConfig(vision_config=VISION, text_config=TEXT | {"num_attention_heads": 2})
    ),
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**VISION)),
    "aimv2": lambda: transformers.Aimv2VisionModel(transformers.Aimv2VisionConfig(**VISION)),
}


@pytest.mark.parametrize("name", [*ENCODERS, "openclip"])
def test_an_encoder_alone_is_a_run_to_start_from(name, tmp_path):
    """As `start_from.vision` reads it, and it gives their features."""
    if name == "openclip":
        (tmp_path / "theirs").mkdir()
        (tmp_path / "theirs/open_clip_config.json").write_text(json.dumps(OPENCLIP))
        save_file(openclip_state(), tmp_path / "theirs/open_clip_model.safetensors")
    else:
        torch.manual_seed(0)
        theirs = ENCODERS[name]().eval()
        theirs.save_pretrained(tmp_path / "theirs")
    folder = import_model(str(tmp_path / "theirs"), tmp_path / "ours").folder
    run = config.load(folder / "config.json")
    assert run.start_from == {"vision": str(folder)}
    model = MLLM(run.model)
    checkpoint.load_part(folder, model, "vision")
    vision = model.vision
    with torch.no_grad():
        if name == "openclip":
            expected = openclip_by_formula(openclip_state())
        else:
            tower = getattr(theirs, "vision_model", theirs)
            expected = tower(normalised(IMAGES, vision.config)).last_hidden_state[:, -16:]
            expected = tower.post_layernorm(expected) if name == "clip" else expected
        torch.testing.assert_close(vision(IMAGES), expected, atol=1e-5, rtol=1e-5)


def test_the_published_llava_configs_are_read():
    """LLaVA-1.5-7B, and NeXT on Mistral-7B, leave out the defaults of their classes."""
    vision = {"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model"}
    vision |= {"num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14}
    text = {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "vocab_size": 32064}
    whole = {"model_type": "llava", "vision_config": vision, "text_config": text, "vision_feature_layer": -2}
    mistral = {"model_type": "mistral", "intermediate_size": 14336, "max_position_embeddings": 32768}
    mistral |= {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "sliding_window": None, "vocab_size": 32064}
    second = whole | {"model_type": "llava_next", "text_config": mistral | {"rope_theta": 1e6}}
    for theirs, kv_heads, parameters in ((whole, 32, 7.06e9), (second, 8, 7.57e9)):
        model = llava_config_from_hf(theirs)
        assert model.vision == sizes.vit_l_14_336().model_copy(update={"feature_layer": -2})
        assert (model.connector.kind, model.connector.tokens) == ("mlp", 576)
        assert (model.decoder.layers, model.decoder.kv_heads) == (32, kv_heads)
        with torch.device("meta"):
            assert sum(x.numel() for x in MLLM(model).parameters()) == pytest.approx(parameters, rel=0.005)


def test_dfns_vit_h_378_fits_its_published_shapes():
    """632 M parameters, built without memory; OpenCLIP's counts them with the projection of 1280 x 1024."""
    vision_cfg = {"image_size": 378, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14}
    with torch.device("meta"):
        vision = Vision(vision_config_from_openclip({"model_cfg": {"quick_gelu": True, "vision_cfg": vision_cfg}}))
    assert tuple(vision.position_PE.shape) == (27 * 27 + 1, 1280)
    assert sum(x.numel() for x in vision.parameters()) == pytest.approx(632e6, rel=0.005)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"vision_feature_layer": 4}, "vision_feature_layer is 4"),
        ({"vision_feature_layer": [-2, -5]}, r"\[-2, -5\]"),
        ({"vision_feature_select_strategy": "full"}, "'full'"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'"),
        ({"multimodal_projector_bias": False}, "multimodal_projector_bias"),
        ({"text_config": {"model_type": "gemma"}}, "gemma"),
        ({"text_config": None}, "no text_config"),
    ],
)
def test_a_llava_that_ours_cannot_be_is_refused(change, word):
    whole = {"model_type": "llava", "vision_config": VISION | {"model_type": "clip_vision_model"}}
    with pytest.raises(ValueError, match=word):
        llava_config_from_hf(whole | {"text_config": {"model_type": "llama"} | TEXT} | change)


def test_bad_folders_are_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        import_model(str(tmp_path), tmp_path / "ours")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        import_model(str(tmp_path), tmp_path / "ours")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a model \(gpt2\), which mm1 doesn't read; mm1 reads"):
        import_model(str(tmp_path), tmp_path / "ours")
    vision, text, _ = LLAVAS["CLIP, Llama"]
    published(tmp_path / "theirs", "Llava", vision, text)
    (tmp_path / "theirs/tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        import_model(str(tmp_path / "theirs"), tmp_path / "ours")
    write_tokenizer(tmp_path / "theirs")
    shard = next((tmp_path / "theirs").glob("model-00002*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{shard.name} is damaged"):
        import_model(str(tmp_path / "theirs"), tmp_path / "ours")
    shard.unlink()
    with pytest.raises(ValueError, match="model-00002"):
        import_model(str(tmp_path / "theirs"), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_tensors_that_are_not_those_of_the_config_are_named(tmp_path):
    """A wrong width, a layer that is missing, and one too many are errors of the import, not of the first use."""
    vision, text, _ = LLAVAS["CLIP, Llama"]
    published(tmp_path / "theirs", "Llava", vision, text)
    file = tmp_path / "theirs/config.json"
    whole = json.loads(file.read_text())
    changes = {
        "intermediate_size": (50, r"down\.weight is \[32, 48\] in the files, but \[32, 50\] by config"),
        "num_hidden_layers": (3, r"blocks\.2\.\S+ is missing in the files, but \[16, 32\] by config"),
    }
    for name, (value, message) in changes.items():
        file.write_text(json.dumps(whole | {"text_config": whole["text_config"] | {name: value}}))
        with pytest.raises(ValueError, match=message):
            import_model(str(tmp_path / "theirs"), tmp_path / "ours")
    file.write_text(json.dumps(whole | {"text_config": whole["text_config"] | {"num_hidden_layers": 1}}))
    with pytest.raises(ValueError, match=r"blocks\.1\.\S+ is \[16, 32\] in the files, but no tensor by config"):
        import_model(str(tmp_path / "theirs"), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_what_belongs_elsewhere_is_told_where(tmp_path):
    vision, text, _ = LLAVAS["CLIP, Llama"]
    published(tmp_path / "theirs", "Llava", vision, text)
    folder = import_model(str(tmp_path / "theirs"), tmp_path / "ours").folder
    with pytest.raises(ConfigError, match="ours is a run already; mm1 export writes"):
        import_model(str(folder), tmp_path / "other")
    with pytest.raises(ConfigError, match=r"holds a model of transformers, not a run; `mm1 import \S+theirs --to RUN`"):
        load_for_use(tmp_path / "theirs")
    with pytest.raises(ValueError, match="ours is a run of mm1; give it without hf:"):
        open_model(f"hf:{folder}")
    with pytest.raises(ValueError, match=r"transformers opens \S+theirs as no model of images and text"):
        open_model(f"hf:{tmp_path / 'theirs'}")  # it has no processor
    (tmp_path / "cat.gguf").write_bytes(b"GIF89a, no model")
    with pytest.raises(ValueError, match=r"cat\.gguf is not a whole GGUF file"):
        import_model(str(tmp_path / "cat.gguf"), tmp_path / "other")


def test_a_run_is_not_overwritten(tmp_path):
    vision, text, _ = LLAVAS["CLIP, Llama"]
    published(tmp_path / "theirs", "Llava", vision, text)
    import_model(str(tmp_path / "theirs"), tmp_path / "ours")
    with pytest.raises(ConfigError, match="holds a run already"):
        import_model(str(tmp_path / "theirs"), tmp_path / "ours")
