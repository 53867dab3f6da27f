"""Encoders in published folders: OpenCLIP's and AIM's layouts, which `transformers` doesn't have."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from mm1.checkpoint import Weights, save_weights
from mm1.config import run as config
from mm1.config.run import PixelsConfig, RunConfig
from mm1.exchange.export import export_run
from mm1.exchange.importing import import_model
from mm1.hf.encoder import NAMES, read_encoder
from mm1.hf.layouts import LAYOUTS, vision_from_hf, vision_to_hf, write
from mm1.hf.vision import (
    vision_config_from_aim,
    vision_config_from_openclip,
    vision_config_to_aim,
    vision_config_to_hf,
)
from mm1.model import sizes
from mm1.model.encoders import CLIP_PIXELS, IMAGENET_PIXELS
from mm1.model.layers import initialise
from mm1.model.vision import Vision
from mm1.objectives.index import objective_of

WIDTH, HEADS, LAYERS, PATCH, SIDE = 32, 4, 3, 6, 4
IMAGES = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
OPENCLIP = {
    "model_cfg": {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 24, "layers": LAYERS, "width": WIDTH, "head_width": 8, "patch_size": PATCH},
    },
    "preprocess_cfg": {"mean": CLIP_PIXELS[0], "std": CLIP_PIXELS[1]},
}
AIM = {"img_size": 24, "patch_size": PATCH, "embed_dim": WIDTH, "num_blocks": LAYERS, "num_heads": HEADS}


def random_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


def openclip_state() -> dict[str, torch.Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (WIDTH,),
        "visual.positional_embedding": (SIDE**2 + 1, WIDTH),
        "visual.conv1.weight": (WIDTH, 3, PATCH, PATCH),
        "visual.proj": (WIDTH, 16),
        "positional_embedding": (77, 16),
        "transformer.resblocks.0.ln_1.weight": (16,),
        "logit_scale": (),
    }
    for norm in ("ln_pre", "ln_post"):
        shapes |= {f"visual.{norm}.{leaf}": (WIDTH,) for leaf in ("weight", "bias")}
    for block in (f"visual.transformer.resblocks.{n}." for n in range(LAYERS)):
        shapes |= {block + f"{norm}.{leaf}": (WIDTH,) for norm in ("ln_1", "ln_2") for leaf in ("weight", "bias")}
        shapes |= {block + "attn.in_proj_weight": (3 * WIDTH, WIDTH), block + "attn.in_proj_bias": (3 * WIDTH,)}
        shapes |= {block + "attn.out_proj.weight": (WIDTH, WIDTH), block + "attn.out_proj.bias": (WIDTH,)}
        shapes |= {block + "mlp.c_fc.weight": (4 * WIDTH, WIDTH), block + "mlp.c_fc.bias": (4 * WIDTH,)}
        shapes |= {block + "mlp.c_proj.weight": (WIDTH, 4 * WIDTH), block + "mlp.c_proj.bias": (WIDTH,)}
    return random_state(shapes)


def aim_state(*, gated: bool) -> dict[str, torch.Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "preprocessor.patchifier.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "preprocessor.patchifier.proj.bias": (WIDTH,),
        "head.cls_token": (1, 1, WIDTH),
    }
    hidden = 56 if gated else 4 * WIDTH
    norms = ["preprocessor.patchifier.norm", "trunk.post_trunk_norm"]
    for n in range(LAYERS):
        block = f"trunk.blocks.{n}."
        norms += [block + "norm_1", block + "norm_2"]
        shapes |= {block + "attn.qkv.weight": (3 * WIDTH, WIDTH), block + "attn.proj.weight": (WIDTH, WIDTH)}
        shapes |= {block + "mlp.fc1.weight": (hidden, WIDTH), block + "mlp.fc2.weight": (WIDTH, hidden)}
        if gated:
            shapes |= {block + "mlp.fc3.weight": (hidden, WIDTH)}
    shapes |= {norm + ".weight": (WIDTH,) for norm in norms}
    shapes |= {"preprocessor.pos_embed": (1, SIDE**2, WIDTH)} if gated else {norm + ".bias": (WIDTH,) for norm in norms}
    return random_state(shapes)


def pixels(mean, std) -> torch.Tensor:
    return (IMAGES / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def attend(x, qkv: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    q, k, v = F.linear(x, qkv, bias).chunk(3, -1)
    q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in (q, k, v))
    return ((q @ k.mT / (WIDTH // HEADS) ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)


def openclip_by_formula(state: dict[str, torch.Tensor]) -> torch.Tensor:
    """Normalised patch tokens, as OpenCLIP's VisionTransformer computes them."""

    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), state[f"visual.{name}.weight"], state[f"visual.{name}.bias"], 1e-5)

    x = F.conv2d(pixels(*CLIP_PIXELS), state["visual.conv1.weight"], stride=PATCH).flatten(2).mT
    x = torch.cat((state["visual.class_embedding"].expand(2, 1, -1), x), 1) + state["visual.positional_embedding"]
    x = norm(x, "ln_pre")
    for n in range(LAYERS):
        name = f"transformer.resblocks.{n}"
        block = {k.removeprefix(f"visual.{name}."): v for k, v in state.items() if k.startswith(f"visual.{name}.")}
        y = attend(norm(x, f"{name}.ln_1"), block["attn.in_proj_weight"], block["attn.in_proj_bias"])
        x = x + F.linear(y, block["attn.out_proj.weight"], block["attn.out_proj.bias"])
        y = F.linear(norm(x, f"{name}.ln_2"), block["mlp.c_fc.weight"], block["mlp.c_fc.bias"])
        x = x + F.linear(y * torch.sigmoid(1.702 * y), block["mlp.c_proj.weight"], block["mlp.c_proj.bias"])
    return norm(x, "ln_post")[:, 1:]


def aim_positions() -> torch.Tensor:
    """Position by position, as AIM's SinCosPosEmbed names them: its first half is of the column."""
    positions = []
    for row in range(SIDE):
        for column in range(SIDE):
            angles = [[index / 10_000 ** (i / (WIDTH / 4)) for i in range(WIDTH // 4)] for index in (column, row)]
            waves = [wave for axis in angles for wave in (torch.tensor(axis).sin(), torch.tensor(axis).cos())]
            positions.append(torch.cat(waves))
    return torch.stack(positions)


def aim_by_formula(state: dict[str, torch.Tensor], *, gated: bool) -> torch.Tensor:
    def norm(x, name):
        weight = state[name + ".weight"]
        if gated:
            return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
        return F.layer_norm(x, (WIDTH,), weight, state[name + ".bias"], 1e-6)

    mean, std = CLIP_PIXELS if gated else IMAGENET_PIXELS
    patch, bias = (state["preprocessor.patchifier.proj." + leaf] for leaf in ("weight", "bias"))
    x = norm(F.conv2d(pixels(mean, std), patch, bias, PATCH).flatten(2).mT, "preprocessor.patchifier.norm")
    x = x + (state["preprocessor.pos_embed"] if gated else aim_positions())
    for block in (f"trunk.blocks.{n}." for n in range(LAYERS)):
        x = (
            x
            + attend(norm(x, block + "norm_1"), state[block + "attn.qkv.weight"], None)
            @ state[block + "attn.proj.weight"].mT
        )
        y = norm(x, block + "norm_2")
        up = y @ state[block + "mlp.fc1.weight"].mT
        hidden = F.silu(up) * (y @ state[block + "mlp.fc3.weight"].mT) if gated else F.gelu(up)
        x = x + hidden @ state[block + "mlp.fc2.weight"].mT
    return norm(x, "trunk.post_trunk_norm")


def loaded(folder) -> Vision:
    config, state = read_encoder(str(folder))
    vision = Vision(config)
    vision.load_state_dict(state)
    return vision


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_an_openclip_folder_is_read(file, tmp_path):
    """And exported as the CLIP that it is."""
    (tmp_path / "open_clip_config.json").write_text(json.dumps(OPENCLIP))
    (tmp_path / "config.json").write_text("{}")  # of the same model for other libraries
    state = openclip_state()
    save_file(state, tmp_path / file) if file.endswith("safetensors") else torch.save(state, tmp_path / file)
    vision = loaded(tmp_path)
    assert vision.config.antialias
    with torch.no_grad():
        torch.testing.assert_close(vision(IMAGES), openclip_by_formula(state), atol=1e-5, rtol=1e-5)
    assert vision_config_to_hf(vision.config)["model_type"] == "clip_vision_model"


@pytest.mark.parametrize("gated", [False, True])
def test_an_aim_folder_is_read(gated, tmp_path):
    """AIM, and AIMv2 as Apple published it first."""
    second = {"model_type": "aimv2", "hidden_size": WIDTH, "intermediate_size": 56, "num_hidden_layers": LAYERS}
    second |= {"num_attention_heads": HEADS, "image_size": 24, "patch_size": PATCH, "use_bias": False}
    (tmp_path / "config.json").write_text(json.dumps(second if gated else AIM))
    state = aim_state(gated=gated)
    save_file(state, tmp_path / "model.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(loaded(tmp_path)(IMAGES), aim_by_formula(state, gated=gated), atol=1e-5, rtol=1e-5)


def test_an_aim_is_exported_in_its_published_layout(tmp_path):
    """The encoder of a run that predicted pixels, without its head; imported and exported again it is the same."""
    run = RunConfig(objective="autoregressive_pixels", pixels=PixelsConfig(head_width=16), recipe="small_aim")
    run.model.vision = vision_config_from_aim(AIM)
    run.model.vision.mean = (0.1, 0.2, 0.3)
    run.optim.learning_rate = 1e-3
    model = objective_of(run).build(run, []).model
    model.initialise(0)
    save_weights(tmp_path / "run", model.state_dict())
    config.save(run, tmp_path / "run" / "config.json")
    export_run(tmp_path / "run", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {name: written[name] for name in AIM} == AIM
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert state.keys() == aim_state(gated=False).keys() - {"head.cls_token"}
    with torch.no_grad():
        model.vision.config.mean = IMAGENET_PIXELS[0]
        torch.testing.assert_close(model.vision(IMAGES), aim_by_formula(state, gated=False), atol=1e-5, rtol=1e-5)
    import_model(str(tmp_path / "out"), tmp_path / "back")
    assert config.load(tmp_path / "back" / "config.json").model.vision.mean == (0.1, 0.2, 0.3)
    export_run(tmp_path / "back", tmp_path / "again")
    for file in (tmp_path / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (tmp_path / "plain").mkdir(exist_ok=True)
        (tmp_path / "plain" / name).write_bytes((tmp_path / "out" / name).read_bytes())
    plain = {name: value for name, value in written.items() if name != "mm1"}
    (tmp_path / "plain" / "config.json").write_text(json.dumps(plain))
    import_model(str(tmp_path / "plain"), tmp_path / "theirs")  # as a published folder, without our record
    ours, theirs = (Weights(tmp_path / name) for name in ("run", "theirs"))
    assert all(torch.equal(ours.read(name), theirs.read(name)) for name in theirs.shapes)
    gated = vision_config_from_aim(AIM).model_copy(update={"bias": True})
    with pytest.raises(ValueError, match="AIM has no such encoder: here is bias True"):
        vision_config_to_aim(gated)


@pytest.mark.parametrize(
    ("layout", "state"),
    [
        ("openclip", openclip_state()),
        ("aim", aim_state(gated=False)),
        ("aimv2, as published", aim_state(gated=True)),
    ],
)
def test_layouts_go_there_and_back_unchanged(layout, state):
    back = write(vision_from_hf(state), LAYOUTS[layout])
    read = {name: x for name, x in state.items() if not LAYOUTS[layout].dropped.match(name)}
    assert back.keys() == read.keys()
    assert all(torch.equal(back[name], x) for name, x in read.items())
    if layout == "aim":
        assert vision_to_hf(vision_from_hf(state)).keys() == read.keys()


def test_a_name_of_openclip_is_fetched_from_the_hub(tmp_path, monkeypatch):
    """Only the files that are read: the hub's folder has the same weights in other formats too."""
    import huggingface_hub

    requested = {}

    def snapshot_download(name, *, allow_patterns):
        requested[name] = allow_patterns
        (tmp_path / "open_clip_config.json").write_text(json.dumps(OPENCLIP))
        torch.save(openclip_state(), tmp_path / "open_clip_pytorch_model.bin")
        return str(tmp_path)

    names = ["config.json", "pytorch_model.bin", "open_clip_config.json", "open_clip_pytorch_model.bin", "README.md"]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, name: names)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    config, _ = read_encoder("ViT-H-14-378-quickgelu/dfn5b")
    assert config.width == WIDTH
    selected = ["open_clip_config.json", "open_clip_pytorch_model.bin"]
    selected += ["*.index.json", "preprocessor_config.json", "processor_config.json"]
    assert requested == {"apple/DFN5B-CLIP-ViT-H-14-378": selected}


def test_shards_and_what_else_they_hold_are_one_model(tmp_path):
    """The encoder of a LLaVA is in some of the shards; mean and std are those of its processor."""
    vision = Vision(vision_config_from_openclip(OPENCLIP))
    initialise(vision, 0)
    names = sorted(theirs := vision_to_hf(vision.state_dict()))
    inside = {"model.vision_tower." + name: theirs[name].contiguous() for name in names}
    halves = names[::2], names[1::2]
    for index, half in enumerate(halves):
        shard = {"model.vision_tower." + name: inside["model.vision_tower." + name] for name in half}
        shard[f"model.language_model.{index}.weight"] = torch.zeros(2)
        save_file(shard, tmp_path / f"model-{index}.safetensors")
    whole = {"model_type": "llava", "vision_config": vision_config_to_hf(vision.config)}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3]}))
    config, state = read_encoder(str(tmp_path))
    assert config.mean == (0.1, 0.2, 0.3)
    assert state.keys() == vision.state_dict().keys()
    assert all(torch.equal(state[name], x) for name, x in vision.state_dict().items())


def test_shards_that_the_index_does_not_name_are_left_from_an_earlier_version(tmp_path):
    vision = Vision(vision_config_from_openclip(OPENCLIP))
    initialise(vision, 0)
    theirs = {name: x.contiguous() for name, x in vision_to_hf(vision.state_dict()).items()}
    save_file(theirs, tmp_path / "model-00001-of-00001.safetensors")
    save_file({name: x + 1 for name, x in theirs.items()}, tmp_path / "model-00001-of-00003.safetensors")
    index = {"weight_map": dict.fromkeys(theirs, "model-00001-of-00001.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps(vision_config_to_hf(vision.config)))
    _, state = read_encoder(str(tmp_path))
    assert all(torch.equal(state[name], x) for name, x in vision.state_dict().items())


def test_dfns_vit_h_is_the_final_models_encoder():
    """The published open_clip_config.json: OpenCLIP's ViT-H-14-378-quickgelu."""
    vision_cfg = {"image_size": 378, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14}
    config = vision_config_from_openclip({"model_cfg": {"quick_gelu": True, "vision_cfg": vision_cfg}})
    assert config.model_copy(update={"antialias": False}) == sizes.vit_h_14_378()
    assert "ViT-H-14-378-quickgelu/dfn5b" in NAMES


@pytest.mark.parametrize(
    ("config", "word"),
    [({"timm_model_name": "vit_so400m"}, "timm_model_name"), ({"layers": [3, 4, 6, 3]}, "ResNet")],
)
def test_other_openclip_encoders_are_refused(config, word):
    whole = {"model_cfg": {"vision_cfg": OPENCLIP["model_cfg"]["vision_cfg"] | config}}
    with pytest.raises(ValueError, match=word):
        vision_config_from_openclip(whole)


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json with"):
        read_encoder(str(tmp_path))
    with pytest.raises(ValueError, match=r"not a folder here.*ViT-H-14-378-quickgelu/dfn5b"):
        read_encoder("somebody/no-such-encoder")
