"""The tilings of published models: grids, order, pixels and text against their processors and their formulas."""

import io
import math
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Canvas

from mm1.config.base import choices
from mm1.config.model import ModelConfig, TilingConfig, VisionConfig
from mm1.data.encode import Cutter, encode
from mm1.data.image import load_tiles
from mm1.data.tiles import tile_spec, tiled
from mm1.data.tokenizer import load_tokenizer
from mm1.document import Document, Image, Text
from mm1.tiling import KINDS, SHAPES, Cut, TileSpec, blocks, tiles

TOKENIZER = load_tokenizer("sample")
NAMES = choices(TilingConfig, "kind")
SIDES = st.integers(1, 4000)
BICUBIC = Canvas.Resampling.BICUBIC


def spec(name: str, *, size: int = 336, tokens: int = 4) -> TileSpec:
    return TileSpec(size, tokens, KINDS[name])


def sizes(count: int) -> list[tuple[int, int]]:
    """Sizes of pictures, half of them of simple proportions, where formulas have ties."""
    draw = np.random.default_rng(0)
    drawn = draw.integers(1, 2500, (count // 2, 2)).tolist()
    simple = (draw.integers(1, 9, (count - count // 2, 2)) * draw.integers(20, 400, (count - count // 2, 1))).tolist()
    return [(width, height) for width, height in drawn + simple]


def grid_of(cuts: tuple[Cut, ...]) -> tuple[int, int]:
    """Rows and columns of the tiles beside the overview; 1 x 1 for an overview alone."""
    return max(1, max(cut.cell[0] for cut in cuts)), max(1, max(cut.cell[1] for cut in cuts))


def picture(width: int, height: int) -> np.ndarray:
    """Noise as coarse as a photograph's detail: in finer noise Pillow's own order of rows and columns shows."""
    coarse = np.random.default_rng((width, height)).integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), np.uint8)
    return np.array(Canvas.fromarray(coarse).resize((width, height), BICUBIC))


def png(pixels_YXC: np.ndarray) -> bytes:
    file = io.BytesIO()
    Canvas.fromarray(pixels_YXC).save(file, format="PNG")
    return file.getvalue()


def assert_same_pixels(ours: list[np.ndarray], theirs: np.ndarray) -> None:
    """Within one grey level; one pixel of a thousand may differ by more, where resizing overshoots black or white."""
    assert len(ours) == len(theirs)
    difference = np.abs(np.stack(ours).astype(float) - theirs)
    assert (difference > 1).mean() < 1e-3
    assert difference.max() <= 6


def raw(processor, **options):
    """Their processor with our resampling and without scaling of pixels."""
    return processor(resample=3, do_rescale=False, do_normalize=False, **options)


@pytest.fixture(scope="module")
def llava_next():
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    return raw(LlavaNextImageProcessorPil, size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})


@pytest.fixture(scope="module")
def idefics3():
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    return raw(Idefics3ImageProcessorPil, return_row_col_info=True)


@pytest.fixture(scope="module")
def internvl():
    """InternVL's processor in `transformers` is that of GOT-OCR2."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    return raw(GotOcr2ImageProcessorPil, size={"height": 448, "width": 448}, crop_to_patches=True)


def test_grids_of_llava_next_are_those_of_its_processor(llava_next):
    from transformers.image_processing_utils import select_best_resolution

    for width, height in sizes(500):
        rows, columns = select_best_resolution((height, width), llava_next.image_grid_pinpoints)
        cuts = tiles(width, height, spec("llava_next"))
        assert grid_of(cuts) == (rows // 336, columns // 336), (width, height)
        assert [cut.cell for cut in cuts[:2]] == [(0, 0), (1, 1)]


def test_rows_of_llava_next_are_those_of_its_model():
    """Every feature of every tile, and the ends of rows, in their order, for 500 sizes."""
    import torch
    from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

    size, side = 336, 6
    pinpoints = [[rows * size, columns * size] for rows, columns in SHAPES]
    vision = SimpleNamespace(image_size=size, patch_size=size // side)
    theirs = SimpleNamespace(config=SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints))
    tiling = spec("llava_next", size=size, tokens=side**2)
    for width, height in [*sizes(500), (1, 4000), (4000, 1), (1, 1)]:
        cuts = tiles(width, height, tiling)
        parts, ending = blocks(cuts, (width, height), tiling, number=0)
        numbers = torch.arange(len(cuts) * tiling.features).view(len(cuts), -1)
        end = numbers[0, -1:]
        (packed,), _ = LlavaNextModel.pack_image_features(
            theirs, [numbers[:, :-1, None]], torch.tensor([[height, width]]), "full", image_newline=end
        )
        assert [feature for part in parts for feature in part.features] == packed[:, 0].tolist(), (width, height)
        assert not ending
        assert not any(part.text for part in parts)


def test_grids_of_internvl_are_those_of_its_processor():
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    for width, height in sizes(500):
        columns, rows = get_optimal_tiled_canvas((height, width), (448, 448), 1, 12)
        cuts = tiles(width, height, spec("internvl", size=448))
        assert grid_of(cuts) == (rows, columns), (width, height)
        assert cuts[-1].cell == (0, 0)
        assert len(cuts) == rows * columns + (rows * columns > 1)


def test_grids_of_idefics3_are_those_of_its_processor():
    from transformers.models.idefics3 import image_processing_pil_idefics3 as theirs

    for size, longest in ((364, 1456), (512, 2048)):
        for width, height in sizes(500):
            down, across = theirs._resize_output_size_rescale_to_max_len(height, width, max_len=longest)
            aspect = across / down  # as in `resize_for_vision_encoder`
            if across >= down:
                across = math.ceil(across / size) * size
                down = math.ceil(int(across / aspect) / size) * size
            else:
                down = math.ceil(down / size) * size
                across = math.ceil(int(down * aspect) / size) * size
            cuts = tiles(width, height, spec("idefics3", size=size))
            expected = max(1, down // size), max(1, across // size)
            assert grid_of(cuts) == expected, (width, height)
            assert cuts[-1].cell == (0, 0)


def mm1_5_grids(width: int, height: int, *, r: int, least: int, most: int) -> set[tuple[int, int]]:
    """The grids that the formula of MM1.5 allows, for whole pixels; of equals those with the fewest tiles."""
    best: list[tuple[float, int, tuple[int, int]]] = []
    grids = [(n_h, n_w) for n_h in range(1, most + 1) for n_w in range(1, most + 1) if least <= n_h * n_w <= most]
    covering = [(n_h, n_w) for n_h, n_w in grids if n_h * r >= height and n_w * r >= width]
    for n_h, n_w in covering or grids:
        scale = min(Fraction(n_h * r, height), Fraction(n_w * r, width))
        h_g, w_g = math.ceil(height * scale), math.ceil(width * scale)
        cost = n_h * n_w * r**2 - h_g * w_g if covering else height * width - h_g * w_g
        best.append((cost, n_h * n_w, (n_h, n_w)))
    least_cost = min(best)[:2]
    return {grid for *cost, grid in best if tuple(cost) == least_cost}


@pytest.mark.parametrize(("use", "most"), [(False, 9), (True, 16)])
def test_grids_of_mm1_5_are_those_of_its_formula(use, most):
    vision = VisionConfig(image_size=672, patch_size=14)
    model = ModelConfig(vision=vision, tiling=TilingConfig(kind="mm1_5"))
    unclear = 0
    for width, height in sizes(500):
        expected = mm1_5_grids(width, height, r=672, least=4, most=most)
        unclear += len(expected) > 1
        cuts = tiles(width, height, tile_spec(model, use=use))
        assert grid_of(cuts) in expected, (width, height)
        assert cuts[-1].cell == (0, 0)
    assert unclear < 50


PICTURES = [(640, 480), (300, 900), (1300, 350), (50, 40), (1, 500), (336, 336), (701, 699)]


@pytest.mark.parametrize(("width", "height"), PICTURES)
def test_pixels_of_llava_next_are_those_of_its_processor(llava_next, width, height):
    pixels = picture(width, height)
    theirs = llava_next(Canvas.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    ours = load_tiles(Image(png(pixels)), tiles(width, height, spec("llava_next")), size=336)
    assert_same_pixels(ours, theirs)


@pytest.mark.parametrize(("width", "height"), PICTURES)
def test_pixels_of_internvl_are_those_of_its_processor(internvl, width, height):
    pixels = picture(width, height)
    theirs = internvl(Canvas.fromarray(pixels), return_tensors="np")["pixel_values"]
    ours = load_tiles(Image(png(pixels)), tiles(width, height, spec("internvl", size=448)), size=448)
    assert_same_pixels(ours, theirs)


@pytest.mark.parametrize(("width", "height"), [size for size in PICTURES if size != (1, 500)])  # theirs fails
def test_pixels_of_idefics3_are_those_of_its_processor(idefics3, width, height):
    pixels = picture(width, height)
    theirs = idefics3(Canvas.fromarray(pixels), return_tensors="np")
    cuts = tiles(width, height, spec("idefics3", size=364))
    assert grid_of(cuts) == (theirs["rows"][0][0], theirs["cols"][0][0])
    ours = load_tiles(Image(png(pixels)), cuts, size=364)
    assert_same_pixels(ours, theirs["pixel_values"][0])


def test_tiles_of_mm1_5_show_the_picture_in_the_middle_of_black():
    pixels = np.full((100, 300, 3), 200, np.uint8)
    cuts = tiles(300, 100, spec("mm1_5", size=100))
    pixels_NCYX = np.stack(load_tiles(Image(png(pixels)), cuts, size=100))
    assert grid_of(cuts) == (1, 4)
    shown_YX = np.concatenate(pixels_NCYX[:4], axis=2).min(axis=0)
    assert shown_YX[:, 50:350].min() == 200
    assert shown_YX[:, :50].max() == shown_YX[:, 350:].max() == 0
    overview_YX = pixels_NCYX[4].min(axis=0)
    assert overview_YX[33:67].min() == 200
    assert overview_YX[:33].max() == overview_YX[67:].max() == 0


@given(name=st.sampled_from(NAMES), width=SIDES, height=SIDES, size=st.sampled_from([14, 336]))
def test_tiles_of_any_tiling_cover_every_pixel_once_and_are_few(name, width, height, size):
    cuts = tiles(width, height, spec(name, size=size))
    parts = [cut for cut in cuts if cut.cell != (0, 0)]
    assert len(cuts) - len(parts) == 1
    assert len(parts) <= KINDS[name].max_tiles
    assert hash(cuts) == hash(tiles(width, height, spec(name, size=size)))
    for before, after in pairwise(parts):
        assert before.cell < after.cell
    if not parts:
        return
    across, down = parts[0].sizes[-1]
    for axis, length in ((0, across), (1, down)):
        corners = sorted({part.corner[axis] for part in parts})
        assert corners[0] <= 0
        assert corners[-1] + size >= length
        assert all(second - first == size for first, second in pairwise(corners))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 10_000), (10_000, 1), (20_000, 20_000)])
def test_pictures_of_odd_sizes_have_tiles(name, width, height):
    for full in (True, False):
        for cut in tiles(width, height, spec(name), full=full):
            assert all(side >= 1 for size in cut.sizes for side in size)
            assert max(side for size in cut.sizes for side in size) <= 16 * 336


def test_names_of_special_tokens_around_tiles_are_those_tokens():
    assert TOKENIZER.indicator("<|image|>\n")[0] == TOKENIZER.image
    assert TOKENIZER.image not in TOKENIZER.encode("<|image|>\n")
    assert TOKENIZER.indicator("") == []


@pytest.mark.parametrize(("width", "height"), [(640, 480), (300, 900), (50, 40)])
def test_text_around_tiles_of_idefics3_is_that_of_its_processor(width, height):
    from transformers.models.idefics3 import processing_idefics3 as theirs

    cuts = tiles(width, height, spec("idefics3", size=364))
    (one,) = tiled(Document((Image(b"", size=(width, height)),)), spec("idefics3", size=364))
    ours = "".join(f"{block.text}<image><image>" for block in one.blocks) + one.ending
    processor = theirs.Idefics3Processor.__new__(theirs.Idefics3Processor)
    processor.image_seq_len, processor.image_token = 2, "<image>"
    processor.fake_image_token, processor.global_image_tag = "<fake_token_around_image>", "<global-img>"
    rows, columns = grid_of(cuts)
    assert ours == processor.replace_image_token({"rows": [[rows]], "cols": [[columns]]}, 0)


def test_text_around_tiles_of_mm1_5_numbers_picture_row_and_column():
    document = Document((Image(b"", size=(10, 10)), Text("and"), Image(b"", size=(2000, 100))))
    first, second = tiled(document, spec("mm1_5"))
    texts = [block.text for block in first.blocks]
    assert texts == ["(0, 1, 1)", "(0, 1, 2)", "(0, 2, 1)", "(0, 2, 2)", "(0, 0, 0)"]
    assert second.blocks[0].text == "(1, 1, 1)"
    encoded = encode(document, TOKENIZER, tile=spec("mm1_5"))
    text = TOKENIZER.decode(encoded.tokens.tolist())
    assert text.startswith("(0, 1, 1)(0, 1, 2)(0, 2, 1)")
    assert not encoded.train[: encoded.extents[0][1]].any()
    assert text[text.index("and") :].startswith("and(1, 1, 1)")


def counts(config: TilingConfig, document: Document, *, use: bool = False) -> list[int]:
    model = ModelConfig(tiling=config)
    return [len(one.tiles) for one in tiled(document, tile_spec(model, use=use))]


def test_only_the_last_pictures_of_a_document_are_in_tiles():
    document = Document(tuple(Image(b"", size=(900, 900)) for _ in range(4)))
    assert counts(TilingConfig(kind="mm1"), document) == [5, 5, 5, 5]
    assert counts(TilingConfig(kind="mm1", full_images=2), document) == [1, 1, 5, 5]
    assert counts(TilingConfig(kind="mm1", full_images=0), document) == [1, 1, 1, 1]
    assert counts(TilingConfig(kind="mm1", max_document_images=3), document) == [1, 1, 1, 1]
    assert counts(TilingConfig(kind="mm1_5"), document) == [1, 1, 1, 1]  # off for three pictures and more
    assert counts(TilingConfig(kind="mm1_5"), Document(document.pieces[:2])) == [10, 10]
    marked = Document((Image(b"", size=(900, 900), in_tiles=True), Image(b"", size=(900, 900), in_tiles=False)))
    assert counts(TilingConfig(kind="mm1", full_images=1), marked) == [5, 1]


def test_a_limit_of_tiles_holds_in_use_too_unless_use_has_its_own():
    for kind, own, limit in (("idefics3", None, 9), ("mm1_5", None, 4), ("mm1_5", 6, 6), ("idefics3", 16, 16)):
        tiling = TilingConfig(kind=kind, max_tiles=9 if kind == "idefics3" else 4, use_max_tiles=own)
        assert tile_spec(ModelConfig(tiling=tiling), use=True).tiling.max_tiles == limit
    assert tile_spec(ModelConfig(tiling=TilingConfig(kind="mm1_5")), use=True).tiling.max_tiles == 16  # the preset's


def test_a_field_of_the_config_replaces_the_presets_and_use_takes_more_tiles():
    document = Document((Image(b"", size=(1300, 1300)),))
    assert counts(TilingConfig(kind="mm1_5"), document) == [10]  # 3 x 3 and the overview
    assert counts(TilingConfig(kind="mm1_5"), document, use=True) == [17]
    assert counts(TilingConfig(kind="mm1_5", max_tiles=4), document) == [5]
    assert counts(TilingConfig(kind="mm1", max_tiles=1), document) == [1]
    with pytest.raises(ValueError, match=r"min_tiles is 4 and model\.tiling\.max_tiles 3; lower the first"):
        tile_spec(ModelConfig(tiling=TilingConfig(kind="mm1_5", max_tiles=3)))


@settings(max_examples=60)
@given(
    name=st.sampled_from(["mm1_5", "idefics3", "llava_next"]),
    pieces=st.lists(
        st.one_of(st.sampled_from([(8, 8), (40, 24), (9, 90)]), st.text(alphabet="ab .\n", max_size=60)), max_size=12
    ),
    extra=st.integers(0, 900),
)
def test_no_picture_is_cut_at_the_end_of_a_sequence_nor_the_text_around_its_tiles(name, pieces, extra):
    tile = spec(name, size=16)
    document = Document(tuple(Text(piece) if isinstance(piece, str) else Image(b"", size=piece) for piece in pieces))
    encoded = encode(document, TOKENIZER, tile=tile)
    longest = max((stop - start for start, stop in encoded.extents), default=1)
    spans = Cutter(TOKENIZER, tile, longest + 2 + extra, max_images=17).cut(encoded)
    assert [0, *(span.stop for span in spans)] == [*(span.start for span in spans), len(encoded.tokens)]
    for span in spans:
        assert 0 < span.stop - span.start <= longest + 2 + extra
        assert span.images <= 17
        for start, stop in encoded.extents:
            assert not start < span.stop < stop


def test_no_cut_falls_after_a_line_that_ends_between_the_tiles_of_a_picture():
    tile = spec("idefics3", size=16)
    document = Document((Text("word " * 1500), Image(b"", size=(40, 24)), Text(" word" * 1500)))
    encoded = encode(document, TOKENIZER, tile=tile)
    ((start, stop),) = encoded.extents
    assert (TOKENIZER.breaks[encoded.tokens[stop - 40 : stop]] == 2).any()
    for length in range(stop, stop + 12):
        first = Cutter(TOKENIZER, tile, length, max_images=17).cut(encoded)[0]
        assert first.stop <= start or first.stop >= stop
