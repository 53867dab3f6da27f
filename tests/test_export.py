"""`mm1 export`: transformers loads a run and writes what the run writes; importing the export gives the same files."""

import ast
import io
import json
import random
import sys
import weakref
from pathlib import Path

import pytest
import torch
from PIL import Image as Picture
from safetensors.torch import load_file

from mm1 import checkpoint
from mm1.__main__ import main
from mm1.config import run as config
from mm1.config.base import ConfigError
from mm1.config.model import ConnectorConfig, DecoderConfig, ModelConfig, RopeScalingConfig, SparseConfig, VisionConfig
from mm1.config.run import DataConfig, RunConfig, SourceConfig
from mm1.data import image
from mm1.data.encode import encode
from mm1.data.recorded import chat_format_of, record_text
from mm1.data.store import open_store, write_store
from mm1.data.tiles import tile_spec
from mm1.data.tokenizer import load_tokenizer
from mm1.document import Document, Image, Text
from mm1.exchange.export import export_run
from mm1.exchange.importing import import_model
from mm1.generate.engine import Engine
from mm1.generate.prompt import Prompt
from mm1.generate.prompt import picture as named
from mm1.generate.sampling import Decoding
from mm1.hf.files import code
from mm1.hf.shards import bytes_of
from mm1.model.encoders import clip
from mm1.model.layers import initialise
from mm1.model.mllm import MLLM
from mm1.tiling import TileSpec

transformers = pytest.importorskip("transformers")

SHAPE = {"patch_size": 6, "width": 24, "layers": 3, "heads": 2, "mlp_width": 40, "feature_layer": -2}
VISION = VisionConfig(image_size=24, **SHAPE)
CLIP = clip("l", 28).model_copy(update={"image_size": 24} | SHAPE)
SIGLIP = VISION.model_copy(update={"activation": "gelu_tanh"})
DINO = VISION.model_copy(
    update={"class_token": True, "registers": 2, "layer_scale": True, "mlp_width": 96, "feature_layer": -1}
)
DINOV3 = DINO.model_copy(
    update={"mlp_width": 40, "norm_epsilon": 1e-5, "rope_base": 100.0, "no_bias_in": ("key",), "std": (0.3, 0.2, 0.3)}
)
AIMV2 = VISION.model_copy(update={"norm": "rms", "gated": True, "bias": False, "patch_norm": True})
AIM = VISION.model_copy(update={"bias": False, "patch_norm": True, "fixed_positions": True, "feature_layer": -1})
DECODER = DecoderConfig(vocabulary=4096, width=32, layers=2, heads=4, kv_heads=2, head_width=8, mlp_width=48)
STRETCHED = {
    "rope_scaling": RopeScalingConfig(kind="llama3", factor=4.0, original_positions=16),
    "no_rope_layers": (1,),
    "qkv_bias": True,
    "qk_norm": True,
    "tie_embeddings": False,
}


YARN = RopeScalingConfig(kind="yarn", factor=4.0, high=32.0, original_positions=16, attention_factor=1.2)
SPARSE = SparseConfig(experts=4, every=2, normalize=False)
FLAGS = ("qk_norm", "qk_norm_across_heads", "norm_after", "norm_offset", "qkv_bias", "out_bias", "mlp_bias")
ALL_PARTS = dict.fromkeys(FLAGS, True) | {"rope_scaling": YARN, "sparse": SPARSE, "activation": "gelu_tanh"}
ALL_PARTS |= {"query_scale": 0.3, "embedding_scale": 3.0, "rotary_share": 0.5}
ALL_PARTS |= {"attention_softcap": 0.5, "logit_softcap": 2.0}
ALL_PARTS |= {"window": 5, "full_layers": (1,), "window_rope_base": 100.0}


def model(vision: VisionConfig, kind: str, tokens: int, **decoder) -> ModelConfig:
    connector = ConnectorConfig(kind=kind, tokens=tokens, width=16, depth=2, heads=2)
    return ModelConfig(vision=vision, connector=connector, decoder=DECODER.model_copy(update=decoder))


NATIVE = {
    "CLIP, Llama": model(CLIP, "mlp", 16),
    "SigLIP, Qwen": model(SIGLIP, "mlp", 16, qkv_bias=True, tie_embeddings=False),
    "SigLIP, Mixtral": model(SIGLIP, "mlp", 16, sparse=SparseConfig(experts=4)),
}
OWN = {
    "C-Abstractor, sparse": model(VISION, "c_abstractor", 4, qk_norm=True, sparse=SparseConfig(experts=4, every=2)),
    "attention, DINOv2": model(DINO, "attention", 9),
    "linear, DINOv3": model(DINOV3, "linear", 9),
    "average, AIM": model(AIM, "average", 9),
    "pixel shuffle, AIMv2": model(AIMV2, "pixel_shuffle", 4),
    "linear, a decoder of no family": model(SIGLIP, "linear", 9, **STRETCHED),
    "average, a decoder of all parts": model(VISION, "average", 4, **ALL_PARTS),
    "mlp of fewer tokens": model(CLIP, "mlp", 4),
}


def write_run(folder: Path, run: RunConfig, *, part: str = "") -> MLLM:
    """Write a run's folder as training leaves it, with every weight away from its neutral start; the model."""
    model = MLLM(run.model)
    initialise(model, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    state = {name: x for name, x in model.state_dict().items() if name.startswith(part)}
    checkpoint.save_weights(folder, state)
    stores = [open_store(source.store) for source in run.data.sources.values()]
    record_text(
        folder, load_tokenizer(run.data.tokenizer), chat_format=chat_format_of(stores), images=run.data.max_images > 0
    )
    config.save(run, folder / "config.json")
    return model.eval()


def run_of(shape: ModelConfig, **data) -> RunConfig:
    run = RunConfig(model=shape, data=DataConfig(sequence_length=256, **data))
    run.model.image_token_id = load_tokenizer(run.data.tokenizer).image
    return run


def picture() -> bytes:
    """A PNG of the encoder's size, of which both sides get the same pixels."""
    file = io.BytesIO()
    Picture.frombytes("RGB", (24, 24), random.Random(0).randbytes(24 * 24 * 3)).save(file, format="PNG")
    return file.getvalue()


def opened(folder: Path, kind: str = "AutoModelForImageTextToText"):
    """Their model of an export, which must hold exactly the tensors it asks for."""
    theirs, report = getattr(transformers, kind).from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    )
    assert not any(report.values()), report
    return theirs.eval()


def same_files(ours: Path, theirs: Path) -> None:
    names = sorted(path.name for path in ours.iterdir())
    assert names == sorted(path.name for path in theirs.iterdir())
    assert [name for name in names if (ours / name).read_bytes() != (theirs / name).read_bytes()] == []


@pytest.mark.parametrize("name", [*NATIVE, *OWN])
def test_transformers_says_what_the_run_says(name, tmp_path):
    """Same inputs from its processor, same logits, same greedy text with a cache; importing it gives the same files."""
    shape = (NATIVE | OWN)[name]
    ours, data, tokenizer = write_run(tmp_path / "run", run_of(shape)), picture(), load_tokenizer("sample")
    export_run(tmp_path / "run", tmp_path / "out", shard_bytes=200_000)
    theirs = opened(tmp_path / "out")
    assert type(theirs).__name__.startswith("Llava" if name in NATIVE else "MM1")

    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True)
    inputs = processor(images=Picture.open(io.BytesIO(data)), text="<|image|>a red circle", return_tensors="pt")
    document = Document((Image(data), Text("a red circle")))
    prompt = encode(document, tokenizer, tile=tile_spec(shape), end=False).tokens.tolist()
    assert inputs["input_ids"].tolist() == [prompt]

    pixels_NCYX = torch.from_numpy(image.load(data, 24))[None]
    with torch.no_grad():
        x_BTD = ours.embed(torch.tensor([prompt]), ours.encode_images(pixels_NCYX))
        logits = ours.decoder.logits(ours.decoder(x_BTD, torch.arange(len(prompt))[None]))
        torch.testing.assert_close(theirs(**inputs).logits, logits, atol=1e-5, rtol=1e-5)
    decoding = Decoding(max_tokens=12, stop_tokens=frozenset({tokenizer.end}))
    images = [named(x_CYX) for x_CYX in pixels_NCYX]
    (written,) = Engine(ours, rows=1).generate([Prompt(prompt, images)], decoding)
    assert theirs.generate(**inputs, max_new_tokens=12)[0, len(prompt) :].tolist() == written.tokens

    import_model(str(tmp_path / "out"), tmp_path / "back")
    export_run(tmp_path / "back", tmp_path / "again", shard_bytes=200_000)
    same_files(tmp_path / "out", tmp_path / "again")
    assert config.load(tmp_path / "back/config.json").model == shape


def test_padded_texts_are_continued_as_each_alone(tmp_path):
    """In the modelling file; in native models that is up to transformers."""
    write_run(tmp_path / "run", run_of(OWN["C-Abstractor, sparse"]))
    export_run(tmp_path / "run", tmp_path / "out")
    theirs = opened(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    texts = ["a red circle", "the painter stood on a hill above the town"]
    both = tokenizer(texts, return_tensors="pt", padding=True)
    assert not both["attention_mask"].all()
    written = theirs.generate(**both, max_new_tokens=8)[:, -8:].tolist()
    alone = [tokenizer([text], return_tensors="pt") for text in texts]
    assert written == [theirs.generate(**inputs, max_new_tokens=8)[0, -8:].tolist() for inputs in alone]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({}, "LlamaForCausalLM"),
        ({"qk_norm": True, "tie_embeddings": False}, "Qwen3ForCausalLM"),
        ({"sparse": SparseConfig(experts=4)}, "MixtralForCausalLM"),
        (STRETCHED, "MM1ForCausalLM"),
    ],
)
def test_a_language_model_is_exported_as_one(change, kind, tmp_path):
    """A run without images; its checkpoint has an encoder that nothing trained."""
    shape = ModelConfig(vision=VISION, decoder=DECODER.model_copy(update=change))
    ours = write_run(tmp_path / "run", run_of(shape, max_images=0))
    export_run(tmp_path / "run", tmp_path / "out")
    theirs = opened(tmp_path / "out", "AutoModelForCausalLM")
    assert type(theirs).__name__ == kind
    tokens_BT = torch.randint(0, 4096, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = ours.decoder.logits(ours.decoder(ours.decoder.embed(tokens_BT), torch.arange(30).expand(2, -1)))
        torch.testing.assert_close(theirs(tokens_BT).logits, logits, atol=1e-5, rtol=1e-5)
    import_model(str(tmp_path / "out"), tmp_path / "back")
    export_run(tmp_path / "back", tmp_path / "again")
    same_files(tmp_path / "out", tmp_path / "again")


@pytest.mark.parametrize(
    ("vision", "kind"),
    [(CLIP, "CLIP"), (SIGLIP, "Siglip"), (DINO, "Dinov2WithRegisters"), (DINOV3, "DINOv3ViT"), (AIMV2, "Aimv2")],
)
def test_an_encoder_is_exported_alone(vision, kind, tmp_path):
    """The encoder of a contrastive run, without its text tower."""
    vision = vision.model_copy(
        update={"norm_epsilon": 1e-6 if kind in ("Siglip", "Dinov2WithRegisters") else 1e-5, "feature_layer": -1}
    )
    run = run_of(ModelConfig(vision=vision, decoder=DECODER), tokenizer="sample")
    run.objective = "contrastive"
    ours = write_run(tmp_path / "run", run)
    export_run(tmp_path / "run", tmp_path / "out")
    theirs = opened(tmp_path / "out", "AutoModel")
    assert type(theirs).__name__ == f"{kind}{'' if kind[0] == 'D' else 'Vision'}Model"
    pixels = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")(Picture.open(io.BytesIO(picture())))
    pixels_NCYX = torch.from_numpy(image.load(picture(), 24))[None]
    with torch.no_grad():
        features = theirs(torch.tensor(pixels["pixel_values"][0])[None]).last_hidden_state[:, -16:]
        features = theirs.post_layernorm(features) if kind == "CLIP" else features
        torch.testing.assert_close(features, ours.vision(pixels_NCYX), atol=1e-5, rtol=1e-5)
    import_model(str(tmp_path / "out"), tmp_path / "back")
    export_run(tmp_path / "back", tmp_path / "again")
    same_files(tmp_path / "out", tmp_path / "again")


def test_the_code_of_an_export_needs_nothing_of_ours():
    sources, imported = code(pictures=True), set()
    for source in sources.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level:
                assert f"{node.module}.py" in sources
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module))
    known = {"torch", "transformers", "numpy", "PIL"} | sys.stdlib_module_names
    assert {name.partition(".")[0] for name in imported} <= known


TALK = (Text("What is it?", train=False), Text("A cat."), Text("And its colour?", train=False), Text("Grey."))


def test_a_chat_is_written_as_it_was_learned(tmp_path, monkeypatch):
    talk = Document((Image(picture()), *TALK), metadata={"form": "chat"})
    write_store([talk], tmp_path / "talk.lance")
    sources = {"talk": SourceConfig(store=str(tmp_path / "talk.lance"))}
    write_run(tmp_path / "run", run_of(OWN["mlp of fewer tokens"], sources=sources))
    export_run(tmp_path / "run", tmp_path / "out")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True)
    seen = {"type": "image", "image": Picture.open(io.BytesIO(picture()))}
    texts = [{"type": "text", "text": piece.text} for piece in TALK]
    turns = [[seen, texts[0]], [texts[1]], [texts[2]], [texts[3]]]
    messages = [{"role": "assistant" if index % 2 else "user", "content": turn} for index, turn in enumerate(turns)]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    learned = encode(talk, load_tokenizer("sample"), tile=TileSpec(16, 4)).tokens.tolist()
    assert inputs["input_ids"].tolist() == [learned]
    text = processor.apply_chat_template(messages[:1], add_generation_prompt=True)
    assert text == "<|begin|><|user|><|image|>What is it?<|assistant|>"
    fetched = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, *, allow_patterns: fetched.append(allow_patterns) or str(tmp_path / "out"),
    )
    import_model("someone/talk", tmp_path / "back")
    assert fetched[-1] == ["*.json", "*.safetensors", "chat_template.jinja"]
    export_run(tmp_path / "back", tmp_path / "again")
    same_files(tmp_path / "out", tmp_path / "again")


def test_the_manuals_lines_run_on_an_export(tmp_path, monkeypatch, capsys):
    """The examples of docs/weights.md, on the command line."""
    write_run(tmp_path / "runs/demo/tiny_sft", run_of(OWN["C-Abstractor, sparse"]))
    monkeypatch.chdir(tmp_path)
    export, back = (
        ["mm1", *line.split()]
        for line in (
            "export runs/demo/tiny_sft --to published/tiny_sft",
            "import published/tiny_sft --to runs/tiny_again",
        )
    )
    page = (Path(__file__).parents[1] / "docs/weights.md").read_text()
    for words in (export, back):
        assert " ".join(words) in page
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
    exec(page.split("```py\n")[1].split("```")[0], {})
    output = capsys.readouterr().out
    assert "exported: published/tiny_sft (MM1ForConditionalGeneration, which needs trust_remote_code=True)" in output
    assert "imported: runs/tiny_again" in output
    assert "a red" in output.splitlines()[-1]


def test_one_tensor_at_a_time_is_in_memory(tmp_path, monkeypatch):
    """When a tensor is read, the ones before it are freed; only those of an encoder's block are read together."""
    write_run(tmp_path / "run", run_of(OWN["C-Abstractor, sparse"]))
    alive: list[tuple[str, weakref.ref]] = []
    read = checkpoint.Weights.read

    def counted(self, name):
        held = [before for before, tensor in alive if tensor() is not None]
        block = name.split(".")[:3] if name.startswith("vision.blocks.") else None
        assert all(before.split(".")[:3] == block for before in held), f"{held} beside {name}"
        tensor = read(self, name)
        alive.append((name, weakref.ref(tensor)))
        return tensor

    monkeypatch.setattr(checkpoint.Weights, "read", counted)
    export_run(tmp_path / "run", tmp_path / "out")
    assert len(alive) == len(checkpoint.Weights(tmp_path / "run").shapes)


def test_files_keep_to_their_size_and_the_index_names_them(tmp_path):
    ours = write_run(tmp_path / "run", run_of(NATIVE["CLIP, Llama"]))
    export_run(tmp_path / "run", tmp_path / "out", dtype="bf16", shard_bytes=60_000)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    files = {name: load_file(tmp_path / "out" / name) for name in set(index["weight_map"].values())}
    assert {name: file for file, held in files.items() for name in held} == index["weight_map"]
    sizes = {file: sum(x.nbytes for x in held.values()) for file, held in files.items()}
    assert all(size <= 60_000 or len(files[file]) == 1 for file, size in sizes.items())
    assert sum(sizes.values()) == index["metadata"]["total_size"] == 2 * sum(p.numel() for p in ours.parameters())
    theirs = opened(tmp_path / "out")
    assert theirs.dtype == torch.bfloat16
    assert torch.equal(theirs.model.language_model.norm.weight, ours.decoder.norm.weight.bfloat16())


def test_a_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    write_run(tmp_path / "run", run_of(NATIVE["CLIP, Llama"]))
    export_run(tmp_path / "run", tmp_path / "out")
    before = (tmp_path / "out/model.safetensors").read_bytes()

    def fails(self, name):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Weights, "read", fails)
        for to in ("out", "new"):
            with pytest.raises(OSError, match="disk full"):
                export_run(tmp_path / "run", tmp_path / to)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    assert (tmp_path / "out/model.safetensors").read_bytes() == before
    export_run(tmp_path / "run", tmp_path / "out", dtype="fp16")
    assert (tmp_path / "out/model.safetensors").read_bytes() != before


def test_what_stands_in_the_way_is_named_and_kept(tmp_path):
    write_run(tmp_path / "run", run_of(NATIVE["CLIP, Llama"]))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    with pytest.raises(ConfigError, match=r"mine holds notes\.txt"):
        export_run(tmp_path / "run", tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"run holds chat.json"):
        export_run(tmp_path / "run", tmp_path / "run")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match=r"theirs holds config\.json"):
        export_run(tmp_path / "run", tmp_path / "theirs")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        export_run(tmp_path / "run", tmp_path / "file")


def test_what_cannot_be_exported_says_why(tmp_path):
    with pytest.raises(ConfigError, match="no run"):
        export_run(tmp_path / "nowhere", tmp_path / "out")
    config.save(run_of(NATIVE["CLIP, Llama"]), tmp_path / "empty/config.json")
    with pytest.raises(checkpoint.CheckpointError, match="no whole checkpoint"):
        export_run(tmp_path / "empty", tmp_path / "out")
    shape = model(VISION, "mlp", 16, sparse=SparseConfig(experts=4, capacity=1.5))
    write_run(tmp_path / "capacity", run_of(shape))
    with pytest.raises(ValueError, match=r"capacity 1\.5 drop tokens"):
        export_run(tmp_path / "capacity", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5 mb", 1_500_000), ("800B", 800)])
def test_sizes_are_decimal(text, size):
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["5", "GB", "0GB", "-1GB", "5GiB"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match="5GB or 200MB"):
        bytes_of(text)
