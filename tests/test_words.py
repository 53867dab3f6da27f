"""An imported model is asked in the format it was trained in, with its special tokens, as by `transformers`."""

import io
import json
import random
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image as Picture
from test_import_models import IMAGE, TEXT, VISION
from test_import_models import published as published_llava
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.decoders import ByteLevel as Bytes
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing

from mm1.__main__ import main
from mm1.checkpoint import Loaded, load_for_use
from mm1.data.chat_format import prompt
from mm1.data.chat_template import ChatTemplate
from mm1.data.encode import encode
from mm1.document import Document, Image, Mark, Piece, Text
from mm1.eval.hf_model import HfModel
from mm1.eval.model import Reply, Request
from mm1.eval.models import Ours, open_model
from mm1.exchange.export import export_run
from mm1.exchange.importing import import_model
from mm1.hf.vocabulary import words
from mm1.serve.chat import answer
from mm1.tiling import TileSpec

transformers = pytest.importorskip("transformers")

LLAVA = (  # as LLaVA-1.5's, https://huggingface.co/llava-hf/llava-1.5-7b-hf, writes a conversation
    "{% for turn in messages %}{{ turn['role'].upper() + ': ' }}"
    "{% for piece in turn['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for piece in turn['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% if turn['role'] == 'assistant' %}{% generation %}{{ piece['text'] + ' ' }}{% endgeneration %}"
    "{% else %}{{ piece['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML = (  # as SmolLM2's: contents are texts
    "{% for message in messages %}\n{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
REFUSES = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system turn') }}{% endif %}"


def letters(special: list[str], *, begins: bool) -> HFTokenizer:
    """A tokenizer of 256 letters and special tokens, of which the first begins every text."""
    tokenizer = HFTokenizer(BPE({letter: n for n, letter in enumerate(sorted(ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), Bytes()
    tokenizer.add_special_tokens(special)
    if begins:
        tokenizer.post_processor = TemplateProcessing(single=f"{special[0]} $A", special_tokens=[(special[0], 256)])
    return tokenizer


def publish_llava(folder: Path):
    """A tiny random LLaVA-1.5 in `folder` as it is published, with tokenizer, processor and chat template; the model
    and its processor."""
    vision, text = transformers.CLIPVisionConfig(**VISION), transformers.LlamaConfig(**TEXT | {"head_dim": 32})
    text.max_position_embeddings = 512
    theirs = published_llava(folder, "Llava", vision, text)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=letters(["<s>", "</s>", "<image>", "<pad>"], begins=True),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=24),
        tokenizer,
        patch_size=6,
        vision_feature_select_strategy="default",
        chat_template=LLAVA,
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(folder)
    return theirs, processor


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "llava"
    publish_llava(folder)
    return folder


@pytest.fixture(scope="module")
def imported(llava, tmp_path_factory) -> Loaded:
    folder = tmp_path_factory.mktemp("runs") / "llava"
    import_model(str(llava), folder)
    return load_for_use(folder)


def picture(seed: int) -> Image:
    """An image of the encoder's size: others are cropped by their processor and resized to a square by ours."""
    file = io.BytesIO()
    Picture.frombytes("RGB", (24, 24), random.Random(seed).randbytes(24 * 24 * 3)).save(file, format="PNG")
    return Image(file.getvalue())


def talk(*, turns: int) -> Document:
    """Questions about one image each, all but the last answered."""
    pieces: list[Piece] = []
    for turn in range(turns):
        pieces += prompt([picture(turn), Text(f"What is number {turn}?")]).pieces
        if turn < turns - 1:
            pieces += [Text("a cat.", train=False), Mark("end")]
    return Document(tuple(pieces))


@pytest.mark.parametrize("turns", [1, 3])
def test_a_llava_is_given_the_tokens_its_processor_gives_and_says_the_same(turns, llava, imported):
    theirs, ours = HfModel(llava), Ours(imported.model, imported.tokenizer, name="")
    messages = [
        {"role": "user", "content": [{"type": "image", "image": Picture.open(io.BytesIO(picture(turn).data))}]}
        for turn in range(turns)
    ]
    for turn, message in enumerate(messages):
        message["content"].append({"type": "text", "text": f"What is number {turn}?"})
    answered = {"role": "assistant", "content": _text("a cat.")}
    talked = [turn for message in messages for turn in (message, answered)][:-1]
    inputs = theirs.processor.apply_chat_template(
        talked, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    document = talk(turns=turns)
    encoded = encode(document, imported.tokenizer, tile=TileSpec(16, 16), end=False)
    assert (
        encoded.tokens.tolist() == inputs["input_ids"][0].tolist() == theirs._inputs(document)["input_ids"][0].tolist()
    )
    assert encoded.tokens.tolist()[:1] == [256]
    assert (encoded.tokens == IMAGE).sum() == 16 * turns
    whole = theirs.model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, len(encoded.tokens) :]
    request = Request(document, max_tokens=24)
    text = theirs.processor.tokenizer.decode(whole, skip_special_tokens=True)
    assert ours.answer([request]) == theirs.answer([request]) == [Reply(text)]


def _text(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def test_plain_prompts_begin_as_theirs_do(llava, imported):
    document = Document((picture(0), Text(" A photo of", train=False)))
    encoded = encode(document, imported.tokenizer, tile=TileSpec(16, 16), end=False)
    assert encoded.tokens.tolist() == HfModel(llava)._inputs(document)["input_ids"][0].tolist()


def test_mm1_chat_asks_an_imported_llava(llava, imported, tmp_path, monkeypatch, capsys):
    (tmp_path / "cat.png").write_bytes(picture(0).data)
    words = ["mm1", "chat", str(imported.folder), "--image", str(tmp_path / "cat.png"), "What is number 0?"]
    monkeypatch.setattr(sys, "argv", [*words, "--tokens", "24"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    (theirs,) = HfModel(llava).answer([Request(talk(turns=1), max_tokens=24)])
    assert capsys.readouterr().out.strip() == theirs.text.strip()


def test_an_imported_llava_is_exported_with_its_own_words(imported, llava, tmp_path):
    """So `transformers` asks the export the same; importing and exporting again gives the same files."""
    export_run(imported.folder, tmp_path / "out")
    again, document = HfModel(tmp_path / "out"), talk(turns=2)
    assert torch.equal(again._inputs(document)["input_ids"], HfModel(llava)._inputs(document)["input_ids"])
    assert again.processor.image_token == "<image>"
    assert again.model.generation_config.eos_token_id == 257
    import_model(str(tmp_path / "out"), tmp_path / "back")
    export_run(tmp_path / "back", tmp_path / "again")
    for file in (tmp_path / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_a_language_models_chat_is_what_its_tokenizer_makes(tmp_path):
    """SmolLM2's format: no token begins a text, several end an answer, and the padding is one of them."""
    tokenizer = letters(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], begins=False)
    special = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "chat_template": CHATML,
    }
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    torch.manual_seed(0)
    settings = transformers.LlamaConfig(**TEXT | {"max_position_embeddings": 512}, eos_token_id=[258, 256])
    transformers.LlamaForCausalLM(settings).save_pretrained(tmp_path / "theirs")
    theirs.save_pretrained(tmp_path / "theirs")
    import_model(str(tmp_path / "theirs"), tmp_path / "ours")
    loaded = load_for_use(tmp_path / "ours")
    assert loaded.tokenizer.begin == []
    assert loaded.tokenizer.ends == {258, 256}
    assert loaded.tokenizer.marks["pad"] > 258
    document = prompt([Text("Why?")])
    ids = theirs.apply_chat_template([{"role": "user", "content": "Why?"}], add_generation_prompt=True).input_ids
    assert encode(document, loaded.tokenizer, tile=TileSpec(16, 4), end=False).tokens.tolist() == ids
    plain = Document((Text("Why? Because", train=False),))
    assert (
        encode(plain, loaded.tokenizer, tile=TileSpec(16, 4), end=False).tokens.tolist()
        == theirs("Why? Because").input_ids
    )
    with pytest.raises(ValueError, match="takes no pictures"):
        encode(prompt([picture(0), Text("Why?")]), loaded.tokenizer, tile=TileSpec(16, 4), end=False)
    inputs = theirs.apply_chat_template([{"role": "user", "content": "Why?"}], add_generation_prompt=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    written = model.generate(torch.tensor([inputs.input_ids]), max_new_tokens=16, do_sample=False)[0, len(ids) :]
    assert answer(loaded, "Why?", images=[], tokens=16) == theirs.decode(written, skip_special_tokens=True).strip()
    with pytest.raises(ValueError, match="ours holds a language model, which takes no pictures; ask it without"):
        answer(loaded, "Why?", images=[tmp_path], tokens=1)
    with pytest.raises(ValueError, match="takes no pictures; --tasks text scores it"):
        open_model(str(tmp_path / "ours"))


def test_what_a_user_types_is_no_special_token(imported):
    document = prompt([Text("Is </s> or <image> or <s> a tag?")])
    tokens = encode(document, imported.tokenizer, tile=TileSpec(16, 16), end=False).tokens.tolist()
    assert [token for token in tokens if token >= 256] == [256]
    assert "Is <" in imported.tokenizer.decode(tokens)


def test_a_template_that_is_none_or_refuses_is_one_clear_line():
    with pytest.raises(ValueError, match="the chat template cannot be read"):
        ChatTemplate("{% for %}")
    with pytest.raises(ValueError, match="cannot write this conversation: no system turn"):
        ChatTemplate(REFUSES)([{"role": "user", "content": _text("hello")}])


def test_a_template_reaches_nothing_but_the_conversation():
    template = ChatTemplate("{{ messages.__class__.__mro__ }}")
    with pytest.raises(ValueError, match="cannot write this conversation"):
        template([{"role": "user", "content": _text("hello")}])


@pytest.mark.parametrize(
    ("settings", "begin", "end"),
    [
        ({"bos_token": "<s>", "eos_token": "</s>"}, [256], [257]),
        ({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False}, [], [257]),
        ({"bos_token": {"content": "</s>"}, "add_bos_token": True, "eos_token": None}, [257], [259]),
    ],
)
def test_a_text_begins_as_the_published_file_says(settings, begin, end):
    """Its tokenizer puts <s> before a text; a GGUF file may remove or change it."""
    imported = words(json.loads(letters(["<s>", "</s>"], begins=True).to_str()), settings, ends=[3, None])
    named = imported.tokenizer["post_processor"]["special_tokens"]
    assert named["<|begin|>"]["ids"] == begin
    assert named["<|end|>"]["ids"] == end  # the last is a new token
    again = HFTokenizer.from_str(json.dumps(imported.tokenizer))
    assert again.encode("a").ids[:-1] == begin
