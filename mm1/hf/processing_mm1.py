"""Pictures and texts as a model of mm1 takes them, for `transformers` and vLLM; an export with a modelling file has it.

With `tiling_mm1.py` beside it, it needs torch, Pillow and transformers, but not mm1.
"""

# mypy: ignore-errors

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from transformers import BatchFeature, ProcessorMixin

from mm1.tiling import TileSpec, Tiling, blocks, shows_tiles, tiles


class _Size(NamedTuple):
    """The size of a picture that isn't there, (width, height)."""

    size: tuple


class _Shown(NamedTuple):
    """How a picture is shown: its tiles, the text and the features of each part, and the text after them."""

    cuts: tuple
    parts: list
    ending: str

    @property
    def features(self):
        """The numbers of its image tokens' features, among those of its own tiles."""
        return [feature for part in self.parts for feature in part.features]

    def text(self, image_token):
        """Its parts as text."""
        return "".join(part.text + image_token * len(part.features) for part in self.parts) + self.ending


class MM1Processor(ProcessorMixin):
    """`tile` is the `TileSpec` of the model; mean and std of pixels are those of the image processor."""

    def __init__(self, image_processor, tokenizer, tile=None, image_token=None, chat_template=None):
        self.tile, self.image_token = tile, image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @property
    def spec(self):
        return TileSpec(self.tile["size"], self.tile["tokens"], Tiling(**self.tile["tiling"]))

    @property
    def model_input_names(self):
        return ["input_ids", "attention_mask", "pixel_values", "feature_BT"]

    def __call__(
        self,
        images=None,
        text=None,
        *,
        return_tensors=None,
        add_special_tokens=True,
        return_mm_token_type_ids=False,
        return_text_replacement_offsets=False,
        **kwargs,
    ):
        """Token ids, padded on the side of the tokenizer, and the pixels of all tiles in the order of their texts.

        `feature_BT` numbers the feature of each image token, if the tokens of a tile don't stand together. With
        `return_text_replacement_offsets`, for vLLM, there is for each picture the text that takes the place of its
        mark, and in place of `feature_BT` a `feature_index` for `get_image_features`.
        """
        texts = [text] if isinstance(text, str) else text
        rest = _flat([] if images is None else self.image_processor.fetch_images(images))
        ids_BT, shown, pixels_NCYX = [], [], []
        for ids in self.tokenizer(texts, add_special_tokens=add_special_tokens)["input_ids"]:
            count = ids.count(self.image_token_id)
            if count > len(rest):
                raise ValueError(f"{count} marks {self.image_token} in a text, but only {len(rest)} images are left")
            pictures, rest = [_upright(image) for image in rest[:count]], rest[count:]
            shown.append([self._shown(picture, number, count) for number, picture in enumerate(pictures)])
            ids_BT.append(self._row(ids, shown[-1]))
            pixels_NCYX += [
                x
                for picture, one in zip(pictures, shown[-1], strict=True)
                for x in _pixels(picture, one.cuts, self.spec.size)
            ]
        if rest:
            raise ValueError(f"{len(rest)} images more than marks {self.image_token} in the texts")
        inputs = {"input_ids": ids_BT, "attention_mask": [[1] * len(row) for row in ids_BT]}
        if return_mm_token_type_ids:
            inputs["mm_token_type_ids"] = [[int(token == self.image_token_id) for token in row] for row in ids_BT]
        if pixels_NCYX and not self.spec.in_order and not return_text_replacement_offsets:
            inputs["feature_BT"] = self._features(ids_BT, shown)
        if return_tensors is not None or kwargs.get("padding"):
            padding = {"input_ids": self.tokenizer.pad_token_id}
            inputs = {name: self._padded(rows, padding.get(name, 0)) for name, rows in inputs.items()}
        if pixels_NCYX:
            inputs["pixel_values"] = self._normalised(torch.stack(pixels_NCYX))
        if return_text_replacement_offsets:
            replaced = [[{"type": "image", "replacement": one.text(self.image_token)} for one in row] for row in shown]
            inputs["text_replacement_offsets"] = replaced
            if pixels_NCYX and not self.spec.in_order:
                inputs["feature_index"] = [torch.tensor([len(one.cuts), *one.features]) for row in shown for one in row]
        as_they_are = ["text_replacement_offsets", "feature_index"]
        return BatchFeature(inputs, tensor_type=return_tensors, skip_tensor_conversion=as_they_are)

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs):
        """How many tokens and tiles pictures of (height, width) become, as vLLM asks."""
        images = [_Size((width, height)) for height, width in image_sizes or []]
        shown = [self._shown(image, number, len(images)) for number, image in enumerate(images)]
        tokens = [
            len(self.tokenizer(one.text(self.image_token), add_special_tokens=False)["input_ids"]) for one in shown
        ]
        return {"num_image_tokens": tokens, "num_image_patches": [len(one.cuts) for one in shown]}

    def _shown(self, picture, number, images):
        """How picture `number` of a text with so many images is shown."""
        full = shows_tiles(number, images=images, tiling=self.spec.tiling)
        cuts = tiles(*picture.size, self.spec, full=full)
        parts, ending = blocks(cuts, picture.size, self.spec, number=number)
        return _Shown(cuts, parts, ending)

    def _row(self, ids, shown):
        """The ids of a text with those of its pictures' tiles."""
        row, rest = [], iter(shown)
        for token in ids:
            if token != self.image_token_id:
                row.append(token)
                continue
            one = next(rest)
            for part in one.parts:
                row += self._indicator(part.text) + [token] * len(part.features)
            row += self._indicator(one.ending)
        return row

    def _features(self, ids_BT, shown):
        """The number of each image token's feature among those of all tiles; 0 at other tokens."""
        feature_BT, first = [], 0
        for ids, row in zip(ids_BT, shown, strict=True):
            numbers = []
            for one in row:
                numbers += [first + feature for feature in one.features]
                first += len(one.cuts) * self.spec.features
            rest = iter(numbers)
            feature_BT.append([next(rest) if token == self.image_token_id else 0 for token in ids])
        return feature_BT

    def _indicator(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def _padded(self, rows, value):
        longest = max(map(len, rows))
        fillers = [[value] * (longest - len(row)) for row in rows]
        left = self.tokenizer.padding_side == "left"
        return [[*filler, *row] if left else [*row, *filler] for filler, row in zip(fillers, rows, strict=True)]

    def _normalised(self, pixels_NCYX):
        mean, std = (
            torch.tensor(x)[:, None, None] for x in (self.image_processor.image_mean, self.image_processor.image_std)
        )
        return (pixels_NCYX.float() / 255 - mean) / std


def _flat(images):
    return [one for image in images for one in _flat(image)] if isinstance(images, list | tuple) else [images]


def _upright(image):
    """The image in RGB, turned as its EXIF orientation says, transparent parts on white."""
    picture = ImageOps.exif_transpose(image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image)))
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return picture.convert("RGB")


def _pixels(picture, cuts, size):
    """The uint8 pixels of each tile, resized as in mm1; what lies outside of the picture is black."""
    resized = {(): torch.from_numpy(np.array(picture)).permute(2, 0, 1)}
    tiles_CYX = []
    for cut in cuts:
        for number, (width, height) in enumerate(cut.sizes, start=1):
            if cut.sizes[:number] not in resized:
                before_CYX = resized[cut.sizes[: number - 1]]
                if before_CYX.shape[1:] != (height, width):
                    options = {"size": (height, width), "mode": "bicubic", "antialias": True}
                    before_CYX = F.interpolate(before_CYX[None], **options)[0]
                resized[cut.sizes[:number]] = before_CYX
        canvas_CYX, (left, top) = resized[cut.sizes], cut.corner
        above, before = max(-top, 0), max(-left, 0)
        shown_CYX = canvas_CYX[:, max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)]
        below, after = size - above - shown_CYX.shape[1], size - before - shown_CYX.shape[2]
        tiles_CYX.append(F.pad(shown_CYX, (before, after, above, below)))
    return tiles_CYX
