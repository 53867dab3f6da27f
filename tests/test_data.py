"""Document -> Encoded -> sequences -> Batch: masks, cuts, isolation, the loader's one integer, bad input."""

import io
import itertools
import random
import shutil
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Canvas

from mm1.config.run import DataConfig, SourceConfig
from mm1.data.chat_format import prompt
from mm1.data.encode import Cutter, encode
from mm1.data.image import ImageError, load
from mm1.data.loader import Sequences, batches, workers_of
from mm1.data.store import Store, StoreError, open_store, write_store
from mm1.data.tokenizer import load_tokenizer
from mm1.document import IGNORED, Batch, Document, Image, Text
from mm1.tiling import TileSpec

TOKENIZER = load_tokenizer("sample")
IMAGE_TOKENS = 4


def png(size: tuple[int, int] = (8, 8), colour: str = "red", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Canvas.new(mode, size, colour).save(file, format="PNG")
    return file.getvalue()


def data(stores, **changes) -> DataConfig:
    sources = {
        "captions": SourceConfig(store=str(stores["captions"]), share=9),
        "interleaved": SourceConfig(store=str(stores["interleaved"]), share=9),
        "text": SourceConfig(store=str(stores["text"]), share=2),
    }
    return DataConfig(sources=sources, sequence_length=128, max_images=6, workers=0, **changes)


def same(left: Batch, right: Batch) -> bool:
    names = ("tokens_BT", "targets_BT", "document_BT", "position_BT", "images_NCYX", "source_B")
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in names)


@given(text=st.text(max_size=80))
def test_any_text_comes_back_and_spells_no_special_token(text):
    ids = TOKENIZER.encode(text + "<|end|><|image|>")
    assert TOKENIZER.decode(ids) == text + "<|end|><|image|>"
    assert not set(ids) & set(TOKENIZER.marks.values())


def test_a_chat_learns_its_answers_and_their_end_and_nothing_else():
    chat = Document(
        (
            Image(png()),
            Text("What colour?", train=False),
            Text("red"),
            Text("Round?", train=False),
            Text("no"),
        ),
        metadata={"form": "chat"},
    )
    encoded = encode(chat, TOKENIZER, tile=TileSpec(16, IMAGE_TOKENS))
    learned = encoded.tokens[encoded.train].tolist()
    end = TOKENIZER.end
    assert learned == [*TOKENIZER.encode("red"), end, *TOKENIZER.encode("no"), end]
    shown = "".join(TOKENIZER.symbol(token) for token in encoded.tokens.tolist())
    image = "<|image|>" * IMAGE_TOKENS
    assert shown == (f"<|begin|><|user|>{image}What colour?<|assistant|>red<|end|><|user|>Round?<|assistant|>no<|end|>")


def test_a_chat_prompt_is_the_beginning_of_its_training_form():
    picture, question = Image(png()), "What colour?"
    opened = encode(prompt([picture, Text(question)]), TOKENIZER, tile=TileSpec(16, IMAGE_TOKENS), end=False)
    learned = encode(
        Document((picture, Text(question, train=False), Text("red")), metadata={"form": "chat"}),
        TOKENIZER,
        tile=TileSpec(16, IMAGE_TOKENS),
    )
    assert learned.tokens[: len(opened.tokens)].tolist() == opened.tokens.tolist()


@settings(max_examples=60)
@given(
    pieces=st.lists(st.one_of(st.just("image"), st.text(alphabet="ab .\n", max_size=60)), max_size=20),
    sequence_length=st.integers(8, 64),
    max_images=st.integers(1, 5),
)
def test_cuts_lose_no_position_and_split_no_image(pieces, sequence_length, max_images):
    document = Document(tuple(Image(b"x") if piece == "image" else Text(piece) for piece in pieces))
    encoded = encode(document, TOKENIZER, tile=TileSpec(16, IMAGE_TOKENS))
    spans = Cutter(TOKENIZER, TileSpec(16, IMAGE_TOKENS), sequence_length, max_images).cut(encoded)
    assert [spans[0].start, *(span.stop for span in spans)] == [
        *(span.start for span in spans),
        len(encoded.tokens),
    ]
    for span in spans:
        image_tokens = int((encoded.tokens[span.start : span.stop] == TOKENIZER.image).sum())
        assert image_tokens == span.images * IMAGE_TOKENS
        assert 0 < span.stop - span.start <= sequence_length
        assert span.images <= max_images
    assert sum(span.images for span in spans) == len(document.images)


def test_a_long_document_is_cut_after_a_line_where_one_ends_nearby():
    text = Document((Text("word " * 150 + "\n" + "more " * 80),))
    encoded = encode(text, TOKENIZER, tile=TileSpec(16, IMAGE_TOKENS))
    line_end = int(np.flatnonzero(encoded.tokens == TOKENIZER.encode("\n")[0])[0]) + 1
    spans = Cutter(TOKENIZER, TileSpec(16, IMAGE_TOKENS), sequence_length=line_end + 1, max_images=1).cut(encoded)
    assert spans[0].stop == line_end


def test_targets_are_the_next_token_of_the_same_document_or_ignored(stores):
    batch = Sequences(data(stores), tile=TileSpec(8, IMAGE_TOKENS), seed=0, batch_size=12).batch(list(range(40)))
    learned = batch.targets_BT != IGNORED
    next_token = batch.tokens_BT.roll(-1, 1)
    same_document = batch.document_BT == batch.document_BT.roll(-1, 1)
    same_document[:, -1] = False
    assert learned.any()
    assert not (learned & ~same_document).any()
    assert torch.equal(batch.targets_BT[learned], next_token[learned])
    assert not (batch.targets_BT == TOKENIZER.image).any()
    assert not learned[batch.document_BT == 0].any()
    assert batch.trained_R is not None
    assert batch.trained_R.tolist() == np.flatnonzero(learned).tolist()


def test_positions_start_at_zero_in_every_document(stores):
    batch = Sequences(data(stores), tile=TileSpec(8, IMAGE_TOKENS), seed=0, batch_size=12).batch(list(range(20)))
    for row in range(20):
        for number in range(1, int(batch.document_BT[row].max()) + 1):
            positions = batch.position_BT[row][batch.document_BT[row] == number]
            assert positions.tolist() == list(range(len(positions)))


def test_sequences_hold_at_most_the_images_allowed_and_as_many_as_their_image_tokens_say(stores):
    sequences = Sequences(data(stores), tile=TileSpec(8, IMAGE_TOKENS), seed=0, batch_size=12)
    for number in range(40):
        batch = sequences.batch([number])
        assert batch.images <= sequences.data.max_images
        assert int((batch.tokens_BT == TOKENIZER.image).sum()) == batch.images * IMAGE_TOKENS


def test_each_source_gives_every_document_once_an_epoch(stores):
    sequences = Sequences(data(stores), tile=TileSpec(8, IMAGE_TOKENS), seed=3, batch_size=12)
    for source in sequences.sources:
        spans = np.concatenate([source.plan.sequence(k) for k in range(source.plan.epoch_sequences)])
        assert set(source.spans.document[spans].tolist()) == set(range(len(source.store)))
        assert len(spans) == len(source.spans)


def test_every_aligned_window_of_the_run_holds_nine_nine_two(stores):
    sequences = Sequences(data(stores), tile=TileSpec(8, IMAGE_TOKENS), seed=0, batch_size=12)
    for first in (0, 20, 10_000):
        assert torch.bincount(sequences.batch(list(range(first, first + 20))).source_B).tolist() == [9, 9, 2]


def stream(stores, *, start: int, steps: int) -> list[Batch]:
    """The micro-batches of `steps` steps, one after the other."""
    sequences = Sequences(data(stores), tile=TileSpec(8, IMAGE_TOKENS), seed=1, batch_size=12)
    stepped = itertools.islice(batches(sequences, start_sequence=start * 12, batch_size=12, micro_batch_size=1), steps)
    return [batch for step in stepped for batch in step]


def test_a_run_taken_up_later_reads_what_it_would_have_read(stores):
    assert all(
        same(left, right)
        for left, right in zip(
            stream(stores, start=3, steps=3)[12:],
            stream(stores, start=4, steps=2),
            strict=True,
        )
    )


def test_a_corrupt_image_is_grey_named_and_shifts_nothing(stores, tmp_path):
    documents = [
        Document((Image(png(colour="blue")), Text("a blue thing")), id="good"),
        Document((Image(b"\x89PNG not really"), Text("a torn thing")), id="torn"),
    ]
    write_store(documents, tmp_path / "mixed.lance")
    config = DataConfig(
        sources={"mixed": SourceConfig(store=str(tmp_path / "mixed.lance"))},
        sequence_length=64,
    )
    batch = Sequences(config, tile=TileSpec(8, IMAGE_TOKENS), seed=0, batch_size=12).batch([0])
    assert batch.images == 2
    assert len(batch.broken) == 1
    assert batch.broken[0].startswith("mixed: torn, image 0: not a readable image")
    means = sorted(batch.images_NCYX[:2].float().mean((2, 3)).tolist())
    assert means == [[0.0, 0.0, 255.0], [128.0, 128.0, 128.0]]


def test_empty_captions_are_left_out_and_counted(tmp_path):
    documents = [Document((Image(png()), Text(text))) for text in ("a flag", "", "a house", " \n")]
    write_store(documents, tmp_path / "captions.lance")
    config = DataConfig(sources={"captions": SourceConfig(store=str(tmp_path / "captions.lance"))}, sequence_length=64)
    (source,) = Sequences(config, tile=TileSpec(8, IMAGE_TOKENS), seed=0, batch_size=12).sources
    assert sorted(source.spans.document.tolist()) == [0, 2]
    assert sum(source.dropped.values()) == 2


def test_a_source_may_take_only_some_of_a_stores_documents(tmp_path):
    documents = [Document((Text(f"text {n}"),), source=("page", "gallery")[n % 2]) for n in range(6)]
    write_store(documents, tmp_path / "both.lance")
    sources = {"galleries": SourceConfig(store=str(tmp_path / "both.lance"), only="gall*")}
    (source,) = Sequences(
        DataConfig(sources=sources, sequence_length=64), tile=TileSpec(8, 16), seed=0, batch_size=1
    ).sources
    assert sorted(source.spans.document.tolist()) == [1, 3, 5]


def test_a_source_without_anything_to_learn_is_refused(tmp_path):
    write_store([Document((Image(png()), Text("")))], tmp_path / "empty.lance")
    config = DataConfig(sources={"pictures": SourceConfig(store=str(tmp_path / "empty.lance"))})
    with pytest.raises(ValueError, match=r"'pictures'.*no document with text to learn"):
        Sequences(config, tile=TileSpec(8, IMAGE_TOKENS), seed=0, batch_size=12)


def test_a_truncated_store_is_refused_by_name(stores, tmp_path):
    broken = tmp_path / "captions.lance"
    shutil.copytree(stores["captions"], broken)
    file = next((broken / "data").glob("*.lance"))
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(StoreError, match=r"captions\.lance"):
        list(Store(broken).scan())


def test_a_store_truncated_after_it_was_measured_is_named_in_one_line(stores, tmp_path):
    held = tmp_path / "captions.lance"
    shutil.copytree(stores["captions"], held)
    config = DataConfig(sources={"held": SourceConfig(store=str(held))}, sequence_length=64, workers=1)
    Sequences(config, tile=TileSpec(8, IMAGE_TOKENS), seed=0, batch_size=2, folder=tmp_path / "index")
    file = next((held / "data").glob("*.lance"))
    file.write_bytes(file.read_bytes()[:-200])
    sequences = Sequences(config, tile=TileSpec(8, IMAGE_TOKENS), seed=0, batch_size=2, folder=tmp_path / "index")
    with pytest.raises(StoreError, match=r"^cannot read documents of .*captions\.lance") as refused:
        next(batches(sequences, start_sequence=0, batch_size=2, micro_batch_size=1))
    assert "Traceback" not in str(refused.value)


@pytest.mark.parametrize(
    ("cores", "ranks", "workers"), [(1, 1, 1), (2, 1, 1), (2, 2, 1), (4, 1, 3), (16, 1, 8), (192, 8, 8), (64, 8, 7)]
)
def test_a_rank_loads_with_its_share_of_the_cores_less_one(cores, ranks, workers, monkeypatch):
    monkeypatch.setattr("mm1.dist.cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert workers_of(DataConfig()) == workers
    assert workers_of(DataConfig(workers=0)) == 0
    assert workers_of(DataConfig(workers=20)) == 20


def test_a_store_that_is_not_there_is_named():
    with pytest.raises(StoreError, match="no document store at nowhere"):
        open_store("nowhere")
    with pytest.raises(StoreError, match="did you mean 'captions-"):
        open_store("sample:caption")


def test_a_written_store_gives_back_its_documents(tmp_path):
    documents = [
        Document(
            (Text("one\n"), Image(png()), Text("two", train=False)),
            id="a",
            source="s",
            metadata={"licence": "MIT"},
        ),
        Document((Text("three"),), id="b"),
    ]
    assert write_store(documents, tmp_path / "s.lance") == 2
    assert Store(tmp_path / "s.lance").take([1, 0]) == documents[::-1]
    with pytest.raises(FileExistsError, match="exists"):
        write_store(documents, tmp_path / "s.lance")


def test_transparency_is_laid_on_white_and_every_mode_gives_rgb():
    clear = load(png(mode="RGBA", colour="#00000000"), 4)
    assert clear.min() == 255
    for mode in ("L", "P", "LA", "CMYK", "1"):
        file = io.BytesIO()
        Canvas.new(mode, (5, 9)).save(file, format="TIFF" if mode == "CMYK" else "PNG")
        assert load(file.getvalue(), 4).shape == (3, 4, 4)


def striped(form: str, width: int = 96, height: int = 64) -> tuple[Canvas.Image, bytes]:
    """A picture whose colour changes slowly with both axes, and its bytes."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)
    file = io.BytesIO()
    Canvas.fromarray(pixels).save(file, format=form, quality=95)
    return Canvas.fromarray(pixels), file.getvalue()


@settings(max_examples=40)
@given(
    x=st.tuples(st.integers(0, 95), st.integers(0, 95)).map(sorted),
    y=st.tuples(st.integers(0, 63), st.integers(0, 63)).map(sorted),
)
def test_a_box_shows_that_part_of_the_picture_and_nothing_else(x, y):
    whole, data = striped("PNG")
    box = (x[0], y[0], x[1] + 1, y[1] + 1)
    alone = io.BytesIO()
    whole.crop(box).save(alone, format="PNG")
    assert (load(data, 8, box=box) == load(alone.getvalue(), 8)).all()


def test_a_box_of_a_jpeg_that_is_decoded_smaller_shows_the_same_part():
    whole, data = striped("JPEG", 960, 640)
    box = (480, 0, 960, 320)
    expected = np.asarray(whole.crop(box).resize((32, 32), Canvas.Resampling.BICUBIC)).transpose(2, 0, 1)
    shown = load(data, 32, box=box)
    assert np.abs(shown[:2].astype(int) - expected[:2]).max() <= 4


def test_a_box_outside_the_picture_is_an_image_error():
    for box in ((0, 0, 9, 8), (4, 4, 4, 8), (-1, 0, 4, 4)):
        with pytest.raises(ImageError, match="not inside a picture of 8 x 8 pixels"):
            load(png(), 4, box=box)


def test_a_store_refuses_a_part_of_a_picture(tmp_path):
    with pytest.raises(OSError, match="whole pictures"):
        write_store([Document((Image(png(), (0, 0, 4, 4)),), id="part")], tmp_path / "s.lance")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on TIFF tags it passes over
@pytest.mark.parametrize("form", ["AVIF", "DDS", "GIF", "JPEG", "PNG", "TIFF", "WEBP"])
def test_a_damaged_picture_is_pixels_or_an_image_error(form):
    file, chance, refused = io.BytesIO(), random.Random(form), 0
    Canvas.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)).save(file, format=form)
    for _ in range(80):
        damaged = bytearray(file.getvalue())
        for _ in range(chance.choice((1, 3, 10))):
            damaged[chance.randrange(min(len(damaged), 400))] = chance.randrange(256)
        try:
            assert load(bytes(damaged), 8).shape == (3, 8, 8)
        except ImageError:
            refused += 1
    assert refused


def test_a_picture_that_claims_too_many_pixels_is_refused_before_decoding():
    bomb = png()
    header = b"IHDR" + (30_000).to_bytes(4, "big") * 2 + bomb[24:29]
    huge = bomb[:12] + header + zlib.crc32(header).to_bytes(4, "big") + bomb[33:]
    with pytest.raises(ImageError, match=r"^30,000 x 30,000 pixels; at most 64,000,000 are decoded$"):
        load(huge, 8)


def test_bytes_of_no_picture_are_named_alike_each_time():
    with pytest.raises(ImageError, match=r"^not a readable image \(9 bytes\): no picture of a known kind$"):
        load(b"no bytes.", 8)


def test_a_prepared_folder_is_answered_with_the_stores_in_it(tmp_path):
    for name in ("images", "text"):
        write_store([Document((Text("a"),))], tmp_path / "chats" / f"{name}.lance")
    with pytest.raises(StoreError) as error:
        Store(tmp_path / "chats")
    assert error.match(r"it holds images\.lance, text\.lance: name one, .*/chats/images\.lance$")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="empty is not a readable document store") as error:
        Store(tmp_path / "empty")
    assert ".rs" not in str(error.value)
