"""Pictures of many tiles: which ones, how they are packed, and that a run trains on them."""

import hashlib
import io
import json
import pickle
import shutil
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import lance
import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Canvas
from tokenizers import Tokenizer as HFTokenizer

from mm1.config.run import DataConfig, SourceConfig
from mm1.config.run import load as load_run
from mm1.data import loader
from mm1.data.encode import Cutter, encode
from mm1.data.image import load_tiles
from mm1.data.index import open_source
from mm1.data.loader import Sequences
from mm1.data.plan import pack_windows
from mm1.data.store import Store, open_store, write_store
from mm1.data.tiles import quarters, tile_spec, tiled
from mm1.data.tokenized import tokenize_store
from mm1.data.tokenizer import Tokenizer, load_tokenizer
from mm1.document import Batch, Document, Image, Text
from mm1.generate.writer import Writer
from mm1.model.mllm import MLLM
from mm1.report.sequence import checks, run_sequence_page
from mm1.tiling import AROUND, KINDS, Cut, TileSpec, tiles
from mm1.train.log import read_metrics
from mm1.train.run import train_run

TOKENIZER = load_tokenizer("sample")
MM1 = TileSpec(16, 4, KINDS["mm1"])
SIZES = [(40, 24), (8, 8), (16, 16), (17, 9), (120, 30)]


def png(width: int, height: int, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Canvas.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture
def captions(tmp_path) -> Path:
    documents = [
        Document((Image(png(*SIZES[n % 5], seed=n)), Text(f"caption number {n}\n")), id=str(n)) for n in range(20)
    ]
    pages = [
        Document(
            (Image(png(33, 20, seed=1)), Image(b"torn"), Text("some words. " * 9), Image(png(9, 50, seed=2))), id="page"
        )
    ]
    write_store(documents + pages, tmp_path / "captions.lance")
    return tmp_path / "captions.lance"


def sequences(store: Path, *, tile: TileSpec = MM1, folder: Path | None = None, **limits: int) -> Sequences:
    data = DataConfig(
        sources={"captions": SourceConfig(store=str(store))},
        workers=0,
        **{"sequence_length": 96, "max_images": 12} | limits,
    )
    return Sequences(data, tile=tile, seed=0, batch_size=4, folder=folder)


def test_the_tiles_are_the_picture_and_its_quarters_in_reading_order():
    whole, *parts = tiles(40, 24, MM1)
    assert whole == Cut(((16, 16),))
    assert [part.corner for part in parts] == [(0, 0), (16, 0), (0, 16), (16, 16)]
    assert [part.cell for part in parts] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert {part.sizes for part in parts} == {((32, 32),)}
    assert tiles(3, 17, MM1) == tiles(40, 24, MM1)
    assert tiles(16, 16, MM1) == tiles(1, 3, MM1) == tiles(4000, 3000, TileSpec(16, 4)) == (whole,)


@given(width=st.integers(1, 3000), height=st.integers(1, 3000))
def test_quarters_are_equally_large_inside_the_picture_and_cover_it(width, height):
    boxes = quarters(width, height)
    assert len({(right - left, bottom - top) for left, top, right, bottom in boxes}) == 1
    columns, rows = np.zeros(width, bool), np.zeros(height, bool)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        columns[left:right] = rows[top:bottom] = True
    assert columns.all()
    assert rows.all()


def test_a_part_of_a_picture_and_an_unreadable_one_are_one_tile():
    images = (Image(png(40, 40), (0, 0, 30, 30)), Image(b"torn"), Image(b"torn", size=(40, 40)))
    pictures = tiled(Document(images), MM1)
    assert [len(one.tiles) for one in pictures] == [1, 1, 5]  # a size that is known is not read again
    assert [one.tiles[0].image for one in pictures] == [*images]


@settings(max_examples=60)
@given(
    pieces=st.lists(
        st.one_of(st.sampled_from([(8, 8), (40, 24)]), st.text(alphabet="ab .\n", max_size=60)), max_size=12
    ),
    sequence_length=st.integers(22, 64),
    max_images=st.integers(5, 9),
)
def test_cuts_fall_between_pictures_that_fit_a_sequence(pieces, sequence_length, max_images):
    document = Document(tuple(Text(piece) if isinstance(piece, str) else Image(b"", size=piece) for piece in pieces))
    encoded = encode(document, TOKENIZER, tile=MM1)
    spans = Cutter(TOKENIZER, MM1, sequence_length, max_images).cut(encoded)
    assert spans[-1].stop == len(encoded.tokens)
    assert sum(span.images for span in spans) == len(encoded.images)
    ends = np.cumsum([span.images for span in spans])[:-1].tolist()
    for span in spans:
        assert 0 < span.stop - span.start <= sequence_length
        assert span.images <= max_images
    for end in ends:
        assert end in (0, len(encoded.pictures)) or encoded.pictures[end - 1] != encoded.pictures[end]


PICTURE_SIZES = st.tuples(*[st.one_of(st.integers(1, 400), st.sampled_from([1, 16, 17, 10_000]))] * 2)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(sizes=st.lists(PICTURE_SIZES, max_size=5), words=st.integers(0, 200), slack=st.integers(2, 90))
def test_no_picture_of_any_size_is_cut_and_every_feature_has_its_position(kind, sizes, words, slack):
    """In the shortest sequences that hold each picture, with every preset."""
    tile = TileSpec(16, 4, KINDS[kind])
    pieces = [piece for size in sizes for piece in (Image(b"", size=size), Text("word " * words))]
    encoded = encode(Document((*pieces, Text("end"))), TOKENIZER, tile=tile)
    longest = max((stop - start for start, stop in encoded.extents), default=0)
    most = max((encoded.pictures.count(number) for number in encoded.pictures), default=1)
    spans = Cutter(TOKENIZER, tile, longest + slack, most).cut(encoded)
    assert [0, *(span.stop for span in spans)] == [*(span.start for span in spans), len(encoded.tokens)]
    for start, stop in encoded.extents:
        assert sum(span.start <= start and stop <= span.stop for span in spans) == 1
    for span in spans:
        part = encoded.part(span.start, span.stop, features=tile.features)
        assert span.stop - span.start <= longest + slack
        assert len(part.images) == span.images <= most
        at_image = part.tokens == TOKENIZER.image
        if part.features is None:
            assert at_image.sum() == 4 * span.images
        elif span.images:
            shown = part.features[at_image]
            ends = shown % tile.features == tile.tokens
            assert 0 <= shown.min() <= shown.max() < span.images * tile.features
            assert len(set(shown[~ends].tolist())) == (~ends).sum()  # each at most once; ends are one feature


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_pages_and_chats_of_the_sample_are_packed_to_98_percent(kind, tmp_path):
    """In sequences of 8192, with tokens for the names of tiles, as models that have them."""
    inner = HFTokenizer.from_file(str(TOKENIZER.path))
    cells = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    inner.add_special_tokens([AROUND, "<global-img>", *cells])
    inner.save(str(tmp_path / "tokenizer.json"))
    cutter = Cutter(Tokenizer(tmp_path), TileSpec(96, 16, KINDS[kind]), 8192, max_images=512)
    for name in ("interleaved", "vqa"):
        spans = open_source(name, open_store(f"sample:{name}-train"), cutter=cutter, seed=(0,)).spans
        packed = pack_windows(spans, sequence_length=8192, max_images=512)
        filled = spans.length.sum() / (8192 * sum(int(part.sequences[0]) for part in packed))
        assert filled >= 0.98, f"{name}: {filled:.2%}"


@settings(max_examples=30)
@given(max_images=st.integers(1, 4), pictures=st.integers(1, 4), words=st.integers(0, 9))
def test_a_picture_of_more_tiles_than_a_sequence_takes_is_cut_between_tiles(max_images, pictures, words):
    document = Document((*(Image(b"", size=(40, 24)) for _ in range(pictures)), Text("word " * words)))
    encoded = encode(document, TOKENIZER, tile=MM1)
    spans = Cutter(TOKENIZER, MM1, sequence_length=24, max_images=max_images).cut(encoded)
    assert [0, *(span.stop for span in spans)] == [*(span.start for span in spans), len(encoded.tokens)]
    for span in spans:
        assert int((encoded.tokens[span.start : span.stop] == TOKENIZER.image).sum()) == 4 * span.images
        assert span.images <= max_images


def test_every_sequence_has_the_positions_and_the_pixels_of_its_tiles(captions):
    opened = sequences(captions)
    documents = Store(captions).take(range(21))
    shown: dict[int, int] = {}
    for number in range(opened.sources[0].plan.epoch_sequences):
        batch = opened.batch([number])
        assert int((batch.tokens_BT == TOKENIZER.image).sum()) == 4 * batch.images
        assert batch.images == opened.images(number) <= 12
        assert all(check.passed for check in checks(batch, TOKENIZER.image))
        pixels = iter(batch.images_NCYX.numpy())
        for span in opened.sources[0].plan.sequence(number):
            position = int(opened.sources[0].spans.document[span])
            shown[position] = shown.get(position, 0) + int(opened.sources[0].spans.images[span])
            if position < 20:
                (image,) = documents[position].images
                for tile in load_tiles(image, tiles(*SIZES[position % 5], MM1), size=16):
                    assert (next(pixels) == tile).all()
            else:
                for _ in range(int(opened.sources[0].spans.images[span])):
                    next(pixels)
    assert shown == {n: len(tiles(*SIZES[n % 5], MM1)) for n in range(20)} | {20: 5 + 1 + 5}


def test_a_picture_of_many_tiles_is_decoded_once(captions, monkeypatch):
    opened = sequences(captions)
    calls: list[int] = []

    def counted(image, cuts, **more):
        calls.append(len(cuts))
        return load_tiles(image, cuts, **more)

    monkeypatch.setattr("mm1.data.loader.load_tiles", counted)
    batch = opened.batch([*range(opened.sources[0].plan.epoch_sequences)])
    assert sorted(calls) == sorted([5] * 14 + [1] * 9)  # 12 large and 8 small captions; 2 large and 1 torn on the page
    assert len(batch.broken) == 1
    assert "page, image 1: not a readable image" in batch.broken[0]


def test_a_prompt_decodes_a_picture_of_many_tiles_once(monkeypatch):
    config = small.config()
    config.tiling.kind, config.decoder.vocabulary, config.image_token_id = "mm1", TOKENIZER.vocabulary, TOKENIZER.image
    model = MLLM(config)
    model.initialise(0)
    calls: list[int] = []

    def counted(image, cuts, *, size):
        calls.append(len(cuts))
        return load_tiles(image, cuts, size=size)

    monkeypatch.setattr("mm1.generate.document_prompt.load_tiles", counted)
    documents = [Document((Image(png(90, 50, seed=n)), Text(" a picture"))) for n in range(3)]
    writer = Writer(model, TOKENIZER, rows=3)
    together = writer.losses(documents)
    assert calls == [5, 5, 5]
    assert writer.prompt_tokens(documents[0]) > 5 * 4
    alone = [float(Writer(model, TOKENIZER, rows=1).losses([document])[0]) for document in documents]
    assert together.tolist() == pytest.approx(alone, abs=1e-5)
    assert writer.features([document.images[0] for document in documents]).shape == (3, config.decoder.width)
    assert calls[6:] == [1, 1, 1] or calls[6:] == []  # overviews that are encoded already


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_sequences_of_every_tiling_are_the_same_for_any_ranks_workers_and_start(captions, kind, tmp_path):
    tile = TileSpec(16, 4, replace(KINDS[kind], max_tiles=min(9, KINDS[kind].max_tiles)))
    opened = sequences(captions, tile=tile, folder=tmp_path, sequence_length=1024, max_images=24)

    def of_steps(*, start: int, world: int, workers: int) -> list[list[str]]:
        opened.data = opened.data.model_copy(update={"workers": workers})
        digests: list[list[str]] = [[] for _ in range(2)]
        for rank in range(world):
            stream = loader.batches(
                opened, start_sequence=4 * start, batch_size=4, micro_batch_size=1, rank=rank, world=world
            )
            for step, parts in enumerate(islice(stream, 2)):
                digests[step] += [digest(batch) for batch in parts]
        return [sorted(step) for step in digests]

    alone = of_steps(start=0, world=1, workers=0), of_steps(start=1, world=1, workers=0)
    assert alone[0][1] == alone[1][0]
    for world in (2, 4):
        assert of_steps(start=1, world=world, workers=0) == alone[1]
    if kind == "mm1_5":
        assert of_steps(start=1, world=1, workers=2) == alone[1]
    for number in range(opened.sources[0].plan.epoch_sequences):
        batch = opened.batch([number])
        assert batch.images == opened.images(number)
        assert all(check.passed for check in checks(batch, TOKENIZER.image))


def digest(batch: Batch) -> str:
    tensors = [batch.tokens_BT, batch.targets_BT, batch.document_BT, batch.position_BT, batch.images_NCYX]
    tensors += [] if batch.feature_BT is None else [batch.feature_BT]
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def test_a_column_of_sizes_gives_the_same_sequences_without_reading_images(captions, monkeypatch):
    plain = Path(shutil.copytree(captions, captions.with_name("plain.lance")))
    tokenize_store(Store(captions), TOKENIZER, name="sample", progress=lambda count: None)
    before = sequences(plain)
    with monkeypatch.context() as patch:
        patch.setattr("mm1.data.tiles.size_of", lambda data: None if data in (b"", b"torn") else 1 / 0)
        after = sequences(captions)
    numbers = [*range(before.sources[0].plan.epoch_sequences)]
    left, right = before.batch(numbers), after.batch(numbers)
    assert left.tokens_BT.tolist() == right.tokens_BT.tolist()
    assert (left.images_NCYX == right.images_NCYX).all()


def test_documents_appended_to_a_tokenized_store_have_their_tiles_too(captions):
    tokenize_store(Store(captions), TOKENIZER, name="sample", progress=lambda count: None)
    write_store([Document((Image(png(50, 50)), Text("later")))], captions.with_name("more.lance"))
    lance.write_dataset(lance.dataset(str(captions.with_name("more.lance"))).to_table(), str(captions), mode="append")
    assert not Store(captions, sizes=True).sized
    spans = sequences(captions).sources[0].spans
    assert spans.images[spans.document == 21].tolist() == [5]


def test_the_index_of_another_tiling_is_kept_beside_and_workers_find_the_same_tiles(captions, tmp_path):
    whole = sequences(captions, tile=TileSpec(16, 4), folder=tmp_path / "index")
    cut = sequences(captions, folder=tmp_path / "index")
    assert int(whole.sources[0].spans.images.sum()) == 23
    assert int(cut.sources[0].spans.images.sum()) == 14 * 5 + 9
    keys = [json.loads(path.read_text())["key"] for path in (tmp_path / "index").glob("captions/*/about.json")]
    (plain,) = [key for key in keys if "tiling" not in key]
    assert [key for key in keys if "tiling" in key] == [plain | {"tiling": asdict(KINDS["mm1"]), "tile_size": 16}]
    sent = pickle.loads(pickle.dumps(cut))
    assert (sent.batch([0, 1]).images_NCYX == cut.batch([0, 1]).images_NCYX).all()


def test_pictures_that_no_sequence_can_hold_are_refused_with_the_numbers(captions):
    with pytest.raises(ValueError, match=r"pictures of 5 tiles, but data\.max_images is 4; set it to 5"):
        sequences(captions, max_images=4)
    with pytest.raises(ValueError, match=r"5 tiles, 20 positions each .* but data\.sequence_length is 21"):
        sequences(captions, sequence_length=21)


@pytest.mark.parametrize("kind", ["mm1_5", "llava_next"])
def test_a_packed_document_has_the_loss_it_has_alone(captions, kind):
    """Tiles whose tokens don't stand together too: the batch and the engine number the same features."""
    config = small.config()
    config.image_token_id, config.decoder.vocabulary = TOKENIZER.image, TOKENIZER.vocabulary
    config.tiling.kind, config.tiling.max_tiles = kind, 4
    model = MLLM(config)
    model.initialise(0)
    opened = sequences(captions, tile=tile_spec(config), sequence_length=512, max_images=64)
    losses = []
    for number in range(opened.sources[0].plan.epoch_sequences):
        batch = opened.batch([number])
        with torch.no_grad():
            logits_TV = model.decoder.logits(model.hidden(batch)[0])
        losses_T = torch.nn.functional.cross_entropy(logits_TV, batch.targets_BT[0], reduction="none")
        document_T = batch.document_BT[0]
        trained_T = batch.targets_BT[0] >= 0
        losses += [float(losses_T[(document_T == n) & trained_T].mean()) for n in range(1, int(document_T.max()) + 1)]
    documents = [document for document in Store(captions).take(range(21)) if document.id != "page"]
    writer = Writer(model, TOKENIZER, rows=4)
    writer._prompts.tile = tile_spec(config)  # in use a preset may have more tiles
    alone = writer.losses(documents).tolist()
    assert len({round(loss, 4) for loss in alone}) > 15
    for loss in alone:
        assert min(abs(loss - packed) for packed in losses) < 1e-5


def test_a_run_trains_on_tiles_and_shows_them(captions, tmp_path):
    run = small.run({"captions": captions, "text": captions})
    run.data.sources.pop("text")
    run.data.validation = {"captions": str(captions)}
    run.model.tiling.kind = "mm1"
    run.steps = 2
    train_run(run, tmp_path / "run")
    records = [record for record in read_metrics(tmp_path / "run") if "loss" in record]
    assert [np.isfinite(record["loss"]) for record in records] == [True, True]
    assert max(record["images/captions"] for record in records) > 4  # of four sequences
    page = run_sequence_page(tmp_path / "run", 0)
    opened = loader.sequences_of(load_run(tmp_path / "run" / "config.json"), tmp_path / "run")
    assert opened.tile == MM1
    assert page.count("4 positions from") == opened.images(0) > 4
