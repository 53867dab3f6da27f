"""Pictures and texts as a model of mm1 with tiles takes them, for `transformers`; an export has this file for tiles.

With `tiling_mm1.py` beside it, it needs torch, Pillow and transformers, but not mm1.
"""

# mypy: ignore-errors

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from transformers import BatchFeature, ProcessorMixin

from mm1.tiling import TileSpec, Tiling, blocks, shows_tiles, tiles


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

    def __call__(self, images=None, text=None, *, return_tensors=None, add_special_tokens=True, **kwargs):
        """Token ids, padded on the side of the tokenizer, and the pixels of all tiles in the order of their texts.

        `feature_BT` numbers the feature of each image token, if the tokens of a tile don't stand together.
        """
        texts = [text] if isinstance(text, str) else text
        rest = _flat([] if images is None else self.image_processor.fetch_images(images))
        ids_BT, feature_BT, pixels_NCYX = [], [], []
        for ids in self.tokenizer(texts, add_special_tokens=add_special_tokens)["input_ids"]:
            count = ids.count(self.image_token_id)
            if count > len(rest):
                raise ValueError(f"{count} marks {self.image_token} in a text, but only {len(rest)} images are left")
            pictures, rest = [_upright(image) for image in rest[:count]], rest[count:]
            row, features = self._row(ids, pictures, pixels_NCYX)
            ids_BT.append(row)
            feature_BT.append(features)
        if rest:
            raise ValueError(f"{len(rest)} images more than marks {self.image_token} in the texts")
        inputs = {"input_ids": ids_BT, "attention_mask": [[1] * len(row) for row in ids_BT]}
        if pixels_NCYX and not self.spec.in_order:
            inputs["feature_BT"] = feature_BT
        if return_tensors is not None or kwargs.get("padding"):
            padding = {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 0, "feature_BT": 0}
            inputs = {name: self._padded(rows, padding[name]) for name, rows in inputs.items()}
        if pixels_NCYX:
            inputs["pixel_values"] = self._normalised(torch.stack(pixels_NCYX))
        return BatchFeature(inputs, tensor_type=return_tensors)

    def _row(self, ids, pictures, pixels_NCYX):
        """The ids of a text with those of its pictures' tiles, and their features; pixels of the tiles are added."""
        spec, row, features, number = self.spec, [], [], 0
        for token in ids:
            if token != self.image_token_id:
                row.append(token)
                continue
            picture = pictures[number]
            full = shows_tiles(number, images=len(pictures), tiling=spec.tiling)
            cuts = tiles(*picture.size, spec, full=full)
            parts, ending = blocks(cuts, picture.size, spec, number=number)
            for part in parts:
                row += self._indicator(part.text)
                features += [0] * (len(row) - len(features))
                features += [len(pixels_NCYX) * spec.features + feature for feature in part.features]
                row += [token] * len(part.features)
            row += self._indicator(ending)
            pixels_NCYX += _pixels(picture, cuts, spec.size)
            number += 1
        return row, features + [0] * (len(row) - len(features))

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
