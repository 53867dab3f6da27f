"""Models with tiles, in and out: tiny random ones of `transformers` say the same as ours of pictures of any shape."""

import io
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Canvas
from test_export import SHAPE, model, opened, run_of, same_files, write_run
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from mm1.checkpoint import load_for_use
from mm1.config.model import TilingConfig, VisionConfig
from mm1.data.encode import encode
from mm1.data.image import load_tiles
from mm1.data.tiles import tile_spec
from mm1.data.tokenizer import load_tokenizer
from mm1.document import Document, Image, Text
from mm1.eval.hf_model import HfModel
from mm1.eval.model import Request
from mm1.eval.models import Ours
from mm1.exchange.export import export_run
from mm1.exchange.importing import import_model
from mm1.generate.sampling import Decoding
from mm1.generate.writer import Writer
from mm1.hf.llava import llava_next_config_from_hf
from mm1.model.vision import normalise
from mm1.tiling import SHAPES

transformers = pytest.importorskip("transformers")

SIZE, IMAGE, VOCABULARY = 24, 258, 300
TEXT = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "pad_token_id": 259}
TEXT |= {"head_dim": 32}  # vLLM takes no thinner ones (tests/families.py)
VISION = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION |= {"image_size": SIZE, "patch_size": 6}
ODD = VISION | {"image_size": SIZE + 2}  # patches don't fill the picture
MARKS = ["<s>", "</s>", "<image>", "<pad>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
MARKS += [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
PICTURES = {"tall": (31, 90), "wide": (100, 20), "small": (9, 7), "odd": (53, 47)}


@dataclass(frozen=True)
class Published:
    """A model of theirs: the class of its processor, and what its config and processor say."""

    kind: str
    vision: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    processor: str = "Idefics3"
    images: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)


def anyres(size: int, *, grids: int = 5, **text) -> dict[str, Any]:
    pinpoints = [[rows * size, columns * size] for rows, columns in SHAPES][:grids]
    images = {"image_grid_pinpoints": pinpoints, "size": {"shortest_edge": size}}
    images["crop_size"] = {"height": size, "width": size}
    return {
        "config": {"image_grid_pinpoints": pinpoints, "image_token_index": IMAGE},
        "processor": "LlavaNext",
        "images": images,
        "text": {"patch_size": 6, **text},
    }


def splits(size: int, side: int = 4) -> dict[str, Any]:
    return {
        "config": {"image_token_id": IMAGE, "scale_factor": 2, "pad_token_id": 259},
        "images": {"size": {"longest_edge": side * size}, "max_image_size": {"longest_edge": size}, "resample": 3},
        "text": {"image_seq_len": 4},
    }


CLIP, SIGLIP = {"model_type": "clip_vision_model"}, {"model_type": "siglip_vision_model", "vision_use_head": False}
DEFAULT = {"num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
MODELS = {
    "LLaVA-NeXT": Published("LlavaNext", VISION | CLIP, **anyres(SIZE, **DEFAULT)),
    "LLaVA-NeXT, three grids, SigLIP": Published(
        "LlavaNext", ODD | SIGLIP, **anyres(SIZE + 2, grids=2, vision_feature_select_strategy="full")
    ),
    "Idefics3": Published("Idefics3", VISION, **splits(SIZE)),
    "SmolVLM, patches that don't fill": Published("SmolVLM", ODD, **splits(SIZE + 2, side=3)),
}


def publish(model: Published, folder: Path):
    """The model in `folder`, as save_pretrained writes it with its processor; both."""
    torch.manual_seed(0)
    text = {"model_type": "llama", **TEXT}
    settings = model.config | {k: v for k, v in model.text.items() if k == "vision_feature_select_strategy"}
    whole = getattr(transformers, f"{model.kind}Config")(vision_config=model.vision, text_config=text, **settings)
    theirs = getattr(transformers, f"{model.kind}ForConditionalGeneration")(whole).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"idefics3_vision"', '"idefics3"'))  # as in the first published files
    letters = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = HFTokenizer(BPE(letters, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(MARKS)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", extra_special_tokens={"image_token": "<image>"}
    )
    name = {"LlavaNext": "llava_next", "Idefics3": "idefics3"}[model.processor]
    module = import_module(f"transformers.models.{name}.image_processing_pil_{name}")
    images = getattr(module, f"{model.processor}ImageProcessorPil")(**model.images)
    processor = getattr(transformers, f"{model.processor}Processor")(images, fast, **model.text)
    processor.save_pretrained(folder)
    return theirs, processor


def picture(width: int, height: int) -> Canvas.Image:
    coarse = np.random.default_rng((width, height)).integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), np.uint8)
    return Canvas.fromarray(coarse).resize((width, height), Canvas.Resampling.BICUBIC)


def png(canvas: Canvas.Image) -> bytes:
    file = io.BytesIO()
    canvas.save(file, format="PNG")
    return file.getvalue()


def with_our_pixels(inputs, document: Document, loaded):
    """Their inputs with our pixels, which are theirs up to what resizing rounds."""
    tile, config = tile_spec(loaded.model.config, use=True), loaded.model.config.vision
    encoded = encode(document, loaded.tokenizer, tile=tile, end=False)
    assert inputs["input_ids"].tolist() == [encoded.tokens.tolist()]
    cuts = [one.cut for one in encoded.images]
    pixels_NCYX = torch.from_numpy(np.stack(load_tiles(encoded.images[0].image, cuts, size=tile.size)))
    pixels = normalise(pixels_NCYX, config)[None]
    assert inputs["pixel_values"].shape == pixels.shape
    assert (inputs["pixel_values"] - pixels).abs().mean() * 255 * min(config.std) < 1
    return dict(inputs) | {"pixel_values": pixels}, pixels_NCYX, encoded


def our_logits(loaded, pixels_NCYX: torch.Tensor, encoded) -> torch.Tensor:
    model = loaded.model
    tokens_BT = torch.from_numpy(encoded.tokens).long()[None]
    feature_BT = None if encoded.features is None else torch.from_numpy(encoded.features).long()[None]
    with torch.no_grad():
        x_BTD = model.embed(tokens_BT, model.encode_images(pixels_NCYX), feature_BT)
        return model.decoder.logits(model.decoder(x_BTD, torch.arange(tokens_BT.shape[1])[None]))[..., :VOCABULARY]


def assert_same_text(writer: Writer, encoded, theirs, inputs) -> None:
    """Our greedy text after a prompt is theirs."""
    (written,) = writer.engine.generate([writer._prompts.prompt(encoded)], Decoding(max_tokens=8))
    options = {"do_sample": False, "eos_token_id": None, "suppress_tokens": [IMAGE]}
    said = theirs.generate(**inputs, max_new_tokens=8, **options)[0, len(encoded.tokens) :]
    assert written.tokens == said.tolist()


def assert_second_export_is_the_first(folder: Path) -> None:
    """Import the export in `folder`/out and export it again: the same files."""
    import_model(str(folder / "out"), folder / "back")
    export_run(folder / "back", folder / "again")
    same_files(folder / "out", folder / "again")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_tiles_says_what_it_said_and_goes_back(name, tmp_path):
    theirs, processor = publish(MODELS[name], tmp_path / "theirs")
    imported = import_model(str(tmp_path / "theirs"), tmp_path / "ours")
    loaded = load_for_use(imported.folder)
    export_run(tmp_path / "ours", tmp_path / "out")
    exported = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    assert type(exported).__name__.startswith(MODELS[name].processor)
    their_processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    writer = Writer(loaded.model, loaded.tokenizer, rows=2)
    for width, height in PICTURES.values():
        canvas = picture(width, height)
        document = Document((Image(png(canvas)), Text("what is it?")))
        inputs = processor(images=canvas, text="<image>what is it?", return_tensors="pt")
        again = their_processor(images=canvas, text="<image>what is it?", return_tensors="pt")
        assert torch.equal(again["input_ids"], inputs["input_ids"])
        torch.testing.assert_close(again["pixel_values"], inputs["pixel_values"])
        inputs, pixels_NCYX, encoded = with_our_pixels(inputs, document, loaded)
        ours = our_logits(loaded, pixels_NCYX, encoded)
        with torch.no_grad():
            torch.testing.assert_close(ours, theirs(**inputs).logits, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(ours, exported(**inputs).logits[..., :VOCABULARY], atol=1e-5, rtol=1e-5)
        assert_same_text(writer, encoded, theirs, inputs)
    assert_second_export_is_the_first(tmp_path)


OWN = {
    "mm1": {},
    "mm1_5": {"max_tiles": 4, "use_max_tiles": 6},
    "llava_next": {"full_images": 1},
    "internvl": {},
    "idefics3": {"indicators": "index"},
}


def our_run(folder: Path, kind: str):
    shape = model(VisionConfig(image_size=SIZE, **SHAPE), "c_abstractor", 4)
    shape.tiling = TilingConfig.model_validate({"kind": kind} | OWN[kind])
    run = run_of(shape)
    run.data.sequence_length = 1024
    return write_run(folder, run)


@pytest.mark.parametrize("kind", OWN)
def test_an_exported_run_cuts_pictures_as_the_run_did(kind, tmp_path):
    """Same ids, pixels, logits and greedy text for two pictures of any shapes in a text, alone and padded."""
    ours, tokenizer = our_run(tmp_path / "run", kind), load_tokenizer("sample")
    export_run(tmp_path / "run", tmp_path / "out")
    theirs = opened(tmp_path / "out")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True)
    writer, tile = Writer(ours, tokenizer, rows=2), tile_spec(ours.config, use=True)
    said = {}
    for first, second in [("tall", "wide"), ("small", "odd")]:
        canvases = [picture(*PICTURES[name]) for name in (first, second)]
        text = "<|image|>a red circle<|image|> and a hill"
        one, two = (Image(png(canvas)) for canvas in canvases)
        document = Document((one, Text("a red circle"), two, Text(" and a hill")))
        inputs = processor(images=canvases, text=text, return_tensors="pt")
        encoded = encode(document, tokenizer, tile=tile, end=False)
        assert inputs["input_ids"].tolist() == [encoded.tokens.tolist()]
        pixels_NCYX = torch.from_numpy(np.stack([load_tiles(t.image, [t.cut], size=SIZE)[0] for t in encoded.images]))
        torch.testing.assert_close(inputs["pixel_values"], normalise(pixels_NCYX, ours.config.vision))
        feature_BT = None if encoded.features is None else torch.from_numpy(encoded.features).long()[None]
        tokens_BT = torch.from_numpy(encoded.tokens).long()[None]
        with torch.no_grad():
            x_BTD = ours.embed(tokens_BT, ours.encode_images(pixels_NCYX), feature_BT)
            logits = ours.decoder.logits(ours.decoder(x_BTD, torch.arange(tokens_BT.shape[1])[None]))
            torch.testing.assert_close(theirs(**inputs).logits, logits, atol=1e-5, rtol=1e-5)
        (written,) = writer.engine.generate([writer._prompts.prompt(encoded)], Decoding(max_tokens=6))
        options = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 6}
        assert theirs.generate(**inputs, **options)[0, len(encoded.tokens) :].tolist() == written.tokens
        said[first] = canvases, text, written.tokens
    images, texts, tokens = zip(*said.values(), strict=True)
    both = processor(images=[*images], text=[*texts], return_tensors="pt")
    assert not both["attention_mask"].all()
    assert theirs.generate(**both, **options)[:, -6:].tolist() == [*tokens]
    beams = theirs.generate(**both, **options, num_beams=2)
    alone = theirs.generate(**processor(images=images[0], text=texts[0], return_tensors="pt"), **options, num_beams=2)
    assert beams[0, -6:].tolist() == alone[0, -6:].tolist()
    import_model(str(tmp_path / "out"), tmp_path / "back")
    export_run(tmp_path / "back", tmp_path / "again")
    same_files(tmp_path / "out", tmp_path / "again")


@pytest.mark.parametrize("kind", ["mm1", "llava_next"])
def test_evaluation_asks_an_exported_run_as_the_run_and_cuts_no_picture_twice(kind, tmp_path, caplog):
    ours, tokenizer = our_run(tmp_path / "run", kind), load_tokenizer("sample")
    export_run(tmp_path / "run", tmp_path / "out")
    theirs, run = HfModel(tmp_path / "out"), Ours(ours, tokenizer, name="")
    assert theirs.tiles
    assert run.tiles
    images = [Image(png(picture(*PICTURES[name])), in_tiles=True) for name in ("tall", "odd", "odd")]
    documents = [Document((Text("a red"), image, Text("circle and"))) for image in images]
    requests = [Request(document, max_tokens=5) for document in documents[: 2 if kind == "mm1" else 1]]
    assert theirs.generate(requests) == run.generate(requests)
    choices = [Request(documents[0], choices=("a hill", "red"))]
    np.testing.assert_allclose(theirs.loglikelihoods(choices), run.loglikelihoods(choices), atol=1e-4)
    overview = Request(Document((replace(images[0], in_tiles=False), Text("a red circle"))))
    with pytest.raises(ValueError, match="cuts every picture into tiles, so --subimage-shots can't show some as"):
        theirs.generate([overview])
    again = HfModel(tmp_path / "out")  # which tries whether it can batch
    with caplog.at_level("WARNING"), pytest.raises(ValueError, match="cuts every picture into tiles"):
        again.generate([overview, overview])
    assert "--subimage-shots" not in caplog.text


def test_an_exported_processor_counts_pictures_and_their_marks(tmp_path):
    our_run(tmp_path / "run", "mm1")
    export_run(tmp_path / "run", tmp_path / "out")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True)
    with pytest.raises(ValueError, match=r"2 marks <\|image\|> in a text, but only 1 images are left"):
        processor(images=picture(9, 9), text="<|image|><|image|>")
    with pytest.raises(ValueError, match=r"1 images more than marks <\|image\|>"):
        processor(images=picture(9, 9), text="a text")


def test_what_has_other_grids_or_parts_is_refused_by_name():
    config = {"vision_config": VISION | CLIP, "text_config": {"model_type": "llama"} | TEXT}
    with pytest.raises(ValueError, match=r"only LLaVA-NeXT's own can be read, for this encoder \[\[24, 48\]"):
        llava_next_config_from_hf(config | {"image_grid_pinpoints": [[24, 72]]}, Path())
