"""Fine-tuning in a model's own chat form: its template writes the chats of a store, and the answers are trained."""

import pickle
from dataclasses import replace

import pytest
import torch
from test_words import CHATML, imported, llava, picture  # noqa: F401, fixtures

from mm1.checkpoint import load_for_use
from mm1.config import run as config
from mm1.config.run import SourceConfig
from mm1.data.chat_format import prompt
from mm1.data.chat_template import ChatTemplate
from mm1.data.encode import encode
from mm1.data.loader import sequences_of
from mm1.data.recorded import recorded_text
from mm1.data.store import write_store
from mm1.data.tiles import tile_spec
from mm1.data.tokenizer import load_tokenizer
from mm1.document import Document, Mark, Text
from mm1.eval.hf_model import HfModel
from mm1.report.sequence import checks
from mm1.tiling import KINDS, TileSpec
from mm1.train.run import train_run

ANSWERS = ("a cat.", "It is grey.", "two of them")
TURNS = '{% for m in messages %}<{{ m["role"] }}>{% for c in m["content"] %}'
TURNS += '{{ "<image>" if c["type"] == "image" else c["text"] }}{% endfor %}</s>{% endfor %}'
SMOL = "{% set eos_token = '<|im_end|>' %}" + CHATML
CUTS = TURNS.replace("</s>", "</s>{% if loop.last %}!{% endif %}")


def chat(name: str = "chat") -> Document:
    pieces = []
    for turn, answer in enumerate(ANSWERS):
        pieces += [picture(turn)] if turn < 2 else []
        pieces += [Text(f"What is </s> number {turn}?", train=False), Text(answer)]
    return Document(tuple(pieces), id=name, metadata={"form": "chat"})


def messages() -> list[dict]:
    turns = []
    for turn, answer in enumerate(ANSWERS):
        shown = [{"type": "image"}] if turn < 2 else []
        text = {"type": "text", "text": f"What is <\u200b/s> number {turn}?"}
        turns.append({"role": "user", "content": [*shown, text]})
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return turns


def test_a_chat_of_a_llava_is_what_its_processor_makes_and_its_answers_are_trained(llava, imported):  # noqa: F811
    tokenizer = imported.tokenizer
    encoded = encode(chat(), tokenizer, tile=TileSpec(24, 16))
    text = HfModel(llava).processor.apply_chat_template(messages(), tokenize=False)
    theirs = HfModel(llava).processor.tokenizer(text.replace("<image>", "<image>" * 16))["input_ids"]
    ids = encoded.tokens.tolist()
    assert ids[: len(theirs)] == theirs
    assert ids[len(theirs) :] == [tokenizer.end]  # its template writes none, but a model must learn to end
    assert encoded.train[-1]
    trained = [token for token, train in zip(ids[:-1], encoded.train[:-1], strict=True) if train]
    assert tokenizer.decode(trained) == "".join(f" {answer} " for answer in ANSWERS)
    assert not encoded.train[encoded.tokens == tokenizer.image].any()
    assert not encode(chat(), tokenizer, tile=TileSpec(24, 16), end=False).train.any()


@pytest.mark.parametrize("kind", ["none", "mm1", "idefics3"])
def test_a_question_is_asked_with_the_tokens_it_was_trained_with(kind, imported):  # noqa: F811
    """Chat, evaluation in chat form and serving see what training saw, in tiles, and as overviews before the last."""
    tokenizer, tile = imported.tokenizer, TileSpec(16, 16, KINDS[kind])
    images = (replace(picture(0), in_tiles=False), replace(picture(1), in_tiles=True))
    turns = (images[0], Text("What?", train=False), Text("a cat."), images[1], Text("And?", train=False))
    trained = encode(Document((*turns, Text("a dog.")), metadata={"form": "chat"}), tokenizer, tile=tile)
    first, second = prompt([images[0], Text("What?")]), prompt([images[1], Text("And?")])
    asking = Document((*first.pieces, Text("a cat.", train=False), Mark("end"), *second.pieces))
    prompted = encode(asking, tokenizer, tile=tile, end=False)
    ids = prompted.tokens.tolist()
    assert trained.tokens[: len(ids)].tolist() == ids
    assert not trained.train[len(ids) - 1]
    assert trained.train[len(ids) :].all()
    assert trained.images[: len(prompted.images)] == prompted.images
    assert prompted.pictures.count(0) == 1


def test_what_ends_an_answer_is_trained_and_nothing_after_it():
    turns = [{"role": role, "content": [{"type": "text", "text": role[:1]}]} for role in ("user", "assistant") * 2]
    text, extents = ChatTemplate(SMOL).answered(turns)
    assert [text[start:stop] for start, stop in extents] == ["a<|im_end|>"] * 2
    assert text == ChatTemplate(SMOL)(turns, continued=False)


def test_a_template_that_changes_earlier_turns_or_pictures_is_refused_by_name(imported):  # noqa: F811
    tokenizer = pickle.loads(pickle.dumps(imported.tokenizer))
    assert tokenizer.template.source == imported.tokenizer.template.source
    tokenizer.template = ChatTemplate(CUTS)
    with pytest.raises(ValueError, match=r"chat 'odd': .* writes turn 2 of 6 in another way when later turns follow"):
        encode(chat("odd"), tokenizer, tile=TileSpec(24, 16))
    tokenizer.template = ChatTemplate(TURNS.replace("<image>", ""))
    with pytest.raises(ValueError, match="chat 'odd' has 2 pictures, but the model's chat template writes 0 image"):
        encode(chat("odd"), tokenizer, tile=TileSpec(24, 16))


SYSTEM = Text("Be brief.\n", train=False), Text("Be kind.\n", train=False)
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TURNS
FORGETS = TURNS.replace("messages %}", "messages if m['role'] != 'system' %}")


@pytest.mark.parametrize("template", [TURNS, SMOL, REFUSES, FORGETS], ids=["pieces", "texts", "refuses", "forgets"])
def test_the_system_has_a_turn_where_the_template_has_one_and_is_never_trained(template, imported):  # noqa: F811
    """Else its words stand before the question, as in mm1's own form."""
    tokenizer = pickle.loads(pickle.dumps(imported.tokenizer))
    tokenizer.template = ChatTemplate(template)
    pieces = (*SYSTEM, Text("Hello.", train=False), Text("Hi."))
    document = Document(pieces, metadata={"form": "chat", "system_pieces": "2"})
    encoded = encode(document, tokenizer, tile=TileSpec(24, 16))
    spoken = {"system": "Be brief.\nBe kind.", "user": "Hello.", "assistant": "Hi."}
    if template in (REFUSES, FORGETS):
        spoken = {"user": "Be brief.\nBe kind.\nHello.", "assistant": "Hi."}
    turns = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in spoken.items()]
    ids, trained = tokenizer.answered(turns)
    assert encoded.tokens[: len(ids)].tolist() == ids
    assert encoded.train[: len(ids)].tolist() == trained
    learned = tokenizer.decode([token for token, train in zip(ids, trained, strict=True) if train])
    assert "Hi." in learned
    assert "brief" not in learned


def test_the_date_of_a_trained_conversation_is_always_the_same():
    template = ChatTemplate('{{ strftime_now("%Y-%m-%d") }}' + TURNS)
    turns = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    assert template.answered(turns)[0].startswith("2024-07-26")
    assert not template(turns).startswith("2024-07-26")


def test_a_run_from_an_imported_model_learns_and_keeps_its_form(imported, tmp_path):  # noqa: F811
    write_store([chat(f"chat {number}") for number in range(4)], tmp_path / "chats.lance")
    run = config.load(imported.folder / "config.json")
    run.data.sources = {"chats": SourceConfig(store=str(tmp_path / "chats.lance"))}
    run.data.tokenizer, run.start_from = str(imported.folder), {"model": str(imported.folder)}
    settings = ["steps=1", "batch_size=1", "micro_batch_size=1", "data.workers=0", "model.tiling.kind=mm1"]
    run = config.override(run, settings)
    sequences = sequences_of(run, tmp_path / "tuned")
    batch = sequences.batch([0])
    assert all(check.passed for check in checks(batch, sequences.tokenizer.image))
    learned = encode(chat(), imported.tokenizer, tile=tile_spec(run.model))
    first = batch.tokens_BT[0, : len(learned.tokens)]
    assert torch.equal(first, torch.from_numpy(learned.tokens).long())
    folder = train_run(run, tmp_path / "tuned")
    assert recorded_text(folder).chat_format == "template"
    assert load_for_use(folder).tokenizer.template.source == imported.tokenizer.template.source
    assert load_tokenizer(str(folder)).template is not None


def test_a_language_models_template_is_left_where_pictures_are_learned(imported, tmp_path):  # noqa: F811
    write_store([chat()], tmp_path / "chats.lance")
    (tmp_path / "tokenizer.json").write_bytes((imported.folder / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text(SMOL)
    run = config.load(imported.folder / "config.json")
    run.data.sources = {"chats": SourceConfig(store=str(tmp_path / "chats.lance"))}
    run.data.tokenizer = str(tmp_path)
    assert not load_tokenizer(str(tmp_path)).template.takes_pictures
    assert sequences_of(run, tmp_path / "run").tokenizer.template is None
