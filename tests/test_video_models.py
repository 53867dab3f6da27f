"""InternVL and LLaVA-OneVision in, and out with mm1's modelling file: tiny random ones say the same as ours.

Their processors need torchvision, for videos. So here their image processors make pixels, and their own methods say
what text takes the place of a picture.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_tiled_models import (
    IMAGE,
    ODD,
    PICTURES,
    SIGLIP,
    TEXT,
    VISION,
    VOCABULARY,
    assert_same_text,
    assert_second_export_is_the_first,
    our_logits,
    picture,
    png,
    with_our_pixels,
)
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from mm1.checkpoint import load_for_use
from mm1.config.model import TilingConfig
from mm1.document import Document, Image, Text
from mm1.exchange.export import export_run
from mm1.exchange.importing import import_model
from mm1.generate.writer import Writer
from mm1.tiling import SHAPES_OF_36, TileSpec, tiles

transformers = pytest.importorskip("transformers")

TOKENS = 4
MARKS = ["<s>", "</s>", "<IMG_CONTEXT>", "<pad>", "<img>", "</img>"]


@dataclass
class Processor:
    """The pixels of their image processor, and their text."""

    images: Any
    tokenizer: Any

    def __call__(self, images, text: str, return_tensors: str) -> dict[str, torch.Tensor]:
        pixels = self.images(images, return_tensors=return_tensors)
        ids = self.tokenizer(text.replace("<image>", self.shown(pixels)), return_tensors=return_tensors)["input_ids"]
        return {"input_ids": ids} | {name: pixels[name] for name in ("pixel_values", "image_sizes") if name in pixels}


class InternVL(Processor):
    def shown(self, pixels) -> str:
        from transformers.models.internvl.processing_internvl import InternVLProcessor

        own = SimpleNamespace(start_image_token="<img>", end_image_token="</img>", image_token="<IMG_CONTEXT>")
        own.image_seq_length = TOKENS
        return InternVLProcessor.replace_image_token(own, {"num_patches": pixels["num_patches"].tolist()}, 0)


class OneVision(Processor):
    def shown(self, pixels) -> str:
        from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor as Theirs

        own = SimpleNamespace(image_processor=self.images, num_image_tokens=16, vision_aspect_ratio="anyres_max_9")
        own._get_unpadded_features = partial(Theirs._get_unpadded_features, own)
        height, width = pixels["image_sizes"][0].tolist()
        side = self.images.size["height"]
        return "<IMG_CONTEXT>" * Theirs._get_number_of_features(own, height, width, side, side)


def _publish(folder: Path, kind: str, vision, images, **settings):
    """A tiny random model in `folder`, as save_pretrained writes it, with tokenizer and image processor; the model."""
    torch.manual_seed(0)
    text = {"model_type": "qwen2", **TEXT}
    config = getattr(transformers, f"{kind}Config")(vision_config=vision, text_config=text, **settings)
    theirs = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(folder)
    tokenizer = HFTokenizer(BPE({letter: n for n, letter in enumerate(sorted(ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(MARKS)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")
    fast.save_pretrained(folder)
    images.save_pretrained(folder)
    return theirs, fast


def internvl(folder: Path, *, biased: bool = True, **limits):
    """A tiny random InternVL in `folder`; the model and its processor."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    side = VISION["image_size"]
    vision = VISION | {"image_size": [side, side], "patch_size": [6, 6], "attention_bias": biased}
    images = GotOcr2ImageProcessorPil(size={"height": side, "width": side}, crop_to_patches=True, **limits)
    settings = {"image_token_id": IMAGE, "image_seq_length": TOKENS, "tie_word_embeddings": False}
    theirs, tokenizer = _publish(folder, "InternVL", transformers.InternVLVisionConfig(**vision), images, **settings)
    return theirs, InternVL(images, tokenizer)


def onevision(folder: Path, *, vision=VISION, **settings):
    """A tiny random LLaVA-OneVision in `folder`; the model and its processor."""
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    side = vision["image_size"]
    grids = [[shape.rows * side, shape.columns * side] for shape in SHAPES_OF_36]
    images = LlavaOnevisionImageProcessorPil(size={"height": side, "width": side}, image_grid_pinpoints=grids)
    settings = {"image_token_index": IMAGE, "image_grid_pinpoints": grids} | settings
    theirs, tokenizer = _publish(folder, "LlavaOnevision", vision | SIGLIP, images, **settings)
    return theirs, OneVision(images, tokenizer)


PUBLISHED = {
    "InternVL3": internvl,
    "InternVL3, 2 to 4 tiles, no bias": partial(internvl, biased=False, min_patches=2, max_patches=4),
    "LLaVA-OneVision": onevision,
    "LLaVA-OneVision, patches that don't fill": partial(onevision, vision=ODD),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_says_what_it_said_and_its_export_says_it_too(name, tmp_path):
    theirs, processor = PUBLISHED[name](tmp_path / "theirs")
    imported = import_model(str(tmp_path / "theirs"), tmp_path / "ours")
    assert "videos" in imported.left_out
    loaded = load_for_use(imported.folder)
    export_run(tmp_path / "ours", tmp_path / "out")
    auto = transformers.AutoModelForImageTextToText
    exported = auto.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    their_processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True)
    writer = Writer(loaded.model, loaded.tokenizer, rows=2)
    for width, height in PICTURES.values():
        canvas = picture(width, height)
        inputs = processor(images=canvas, text="<image>what is it?", return_tensors="pt")
        again = their_processor(images=canvas, text="<IMG_CONTEXT>what is it?", return_tensors="pt")
        assert torch.equal(again["input_ids"], inputs["input_ids"])
        is_flat = inputs["pixel_values"].ndim == 4
        if is_flat:
            inputs["pixel_values"] = inputs["pixel_values"][None]
        document = Document((Image(png(canvas)), Text("what is it?")))
        inputs, pixels_NCYX, encoded = with_our_pixels(inputs, document, loaded)
        flat_NCYX = inputs["pixel_values"][0]
        torch.testing.assert_close(again["pixel_values"], flat_NCYX)
        if is_flat:
            inputs["pixel_values"] = flat_NCYX
        ours = our_logits(loaded, pixels_NCYX, encoded)
        with torch.no_grad():
            torch.testing.assert_close(ours, theirs(**inputs).logits, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(ours, exported(**again).logits[..., :VOCABULARY], atol=1e-5, rtol=1e-5)
        assert_same_text(writer, encoded, theirs, inputs)
    assert_second_export_is_the_first(tmp_path)


def test_grids_of_onevision_are_those_of_its_processor_up_to_ten_tiles():
    from transformers.image_processing_utils import select_best_resolution

    spec = TileSpec(24, 16, TilingConfig(kind="llava_onevision").resolved)
    grids = [[shape.rows * 24, shape.columns * 24] for shape in SHAPES_OF_36]
    generator = torch.Generator().manual_seed(0)
    counted = 0
    for width, height in torch.randint(1, 160, (500, 2), generator=generator).tolist():
        rows, columns = (side // 24 for side in select_best_resolution((height, width), grids))
        if rows * columns <= 10:
            counted += 1
            assert tiles(width, height, spec)[-1].cell == (rows, columns), (width, height)
    assert counted > 100


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"vision_feature_layer": -2}, "vision_feature_layer is -2"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'"),
        ({"downsample_ratio": 0.75}, "downsample_ratio is 0.75"),
        ({"vision_config": {"use_qk_norm": True}}, "use_qk_norm is True"),
        ({"vision_config": {"norm_type": "rms_norm"}}, "norm_type is 'rms_norm'"),
        ({"vision_config": {"image_size": [24, 48]}}, r"image_size is \[24, 48\], but only squares"),
    ],
)
def test_an_internvl_that_ours_cannot_be_is_refused(change, word, tmp_path):
    internvl(tmp_path / "theirs")
    change_json(tmp_path / "theirs/config.json", change)
    with pytest.raises(ValueError, match=word):
        import_model(str(tmp_path / "theirs"), tmp_path / "ours")


def change_json(file: Path, change: dict[str, Any]) -> None:
    content = json.loads(file.read_text())
    for name, value in change.items():
        content[name] = content[name] | value if isinstance(value, dict) else value
    file.write_text(json.dumps(content))


def test_tiles_of_another_size_than_the_encoders_are_refused(tmp_path):
    internvl(tmp_path / "theirs")
    change_json(tmp_path / "theirs/preprocessor_config.json", {"size": {"height": 48, "width": 48}})
    with pytest.raises(ValueError, match="makes tiles of"):
        import_model(str(tmp_path / "theirs"), tmp_path / "ours")


def test_a_onevision_of_other_tiles_is_refused(tmp_path):
    onevision(tmp_path / "theirs")
    change_json(tmp_path / "theirs/config.json", {"image_grid_pinpoints": [[24, 24], [48, 48]]})
    with pytest.raises(ValueError, match="only anyres_max_9 with all 36 grids"):
        import_model(str(tmp_path / "theirs"), tmp_path / "ours")
