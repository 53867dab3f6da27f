"""Other people's models under our harness: a folder of `transformers`, an OpenAI-compatible server; and lm-eval."""

import base64
import io
import json
from pathlib import Path

import jinja2
import layouts
import layouts_tuned
import pytest
import torch
from conftest import picture
from json_server import JsonHandler, RunningServer
from PIL import Image as Pillow
from test_export import NATIVE, OWN, run_of, write_run
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mm1.data.recorded import record_text
from mm1.data.tiles import quarters
from mm1.data.tokenizer import load_tokenizer
from mm1.document import Document, Image, Text
from mm1.eval import http_model
from mm1.eval.fewshot import draw_shots, prompt
from mm1.eval.harness import evaluate, load_task
from mm1.eval.hf_model import HfModel
from mm1.eval.http_model import HttpModel
from mm1.eval.model import Request
from mm1.eval.models import open_model
from mm1.eval.results import read_answers
from mm1.eval.shots import Protocol
from mm1.eval.task_evaluation import Settings
from mm1.exchange.export import export_run
from mm1.generate.writer import until
from mm1.hf.files import chat_template

transformers = pytest.importorskip("transformers")

CHAT = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' }}{% for c in m['content'] %}"
    "{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}{% endfor %}<assistant>"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of a few thousand parameters, saved as people publish theirs."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<end>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    library.train_from_iterator(["What is this? It is red."], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=library, pad_token="<pad>", eos_token="<end>", extra_special_tokens={"image_token": "<image>"}
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=CHAT,
        num_additional_image_tokens=1,
    )
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=16, patch_size=8, **vision),
        text_config=transformers.LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **text),
        image_token_id=2,
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("llava") / "tiny-llava"
    transformers.LlavaForConditionalGeneration(config).save_pretrained(path)
    processor.save_pretrained(path)
    return path


def test_a_transformers_model_is_asked_like_ours(folder: Path, tmp_path: Path):
    layouts.vqav2(tmp_path / "data")
    model = open_model(f"hf:{folder}")
    assert "tiny-llava, weights " in model.name
    for form in ("plain", "chat"):
        task = load_task("vqav2", limit=3, seed=0, data=str(tmp_path / "data"), form=form)
        score = evaluate(model, [task], settings=Settings(tmp_path / form), shots=(1,)).scores[0]
        assert len(read_answers(tmp_path / form, score)) == 3
        assert score.longest_prompt > 2 * 4
        document = prompt(task, task.queries[0], shots=draw_shots(task, 0, shots=1, seed=0))
        inputs = model._inputs(document)
        assert int((inputs["input_ids"] == 2).sum()) == 2 * 4  # two pictures of four tokens, none cut
        assert ("<user>" in model.processor.tokenizer.decode(inputs["input_ids"][0])) == (form == "chat")


def test_likelihoods_are_those_of_one_pass(folder: Path, tmp_path: Path):
    layouts_tuned.mmbench(tmp_path)
    model = HfModel(folder)
    task = load_task("mmbench", limit=1, seed=0, data=str(tmp_path), form="plain")
    document = prompt(task, task.queries[0], shots=[])
    request = Request(document, choices=("red", "blue green"))
    (likelihoods,) = model.loglikelihoods([request])
    for text, nats in zip(request.choices, likelihoods, strict=True):
        whole = Document((*document.pieces, Text(f" {text}", train=False)))
        inputs, before = model._inputs(whole), model._inputs(document)["input_ids"].shape[1]
        with torch.no_grad():
            likely = model.model(**inputs).logits[0].log_softmax(-1)
        tokens = inputs["input_ids"][0, before:]
        expected = likely[before - 1 : -1].gather(1, tokens[:, None]).mean()
        assert nats == pytest.approx(float(expected), abs=1e-5)


def test_prompts_side_by_side_are_answered_as_one_by_one(folder: Path, tmp_path: Path, caplog):
    layouts.vqav2(tmp_path / "data")
    task = load_task("vqav2", limit=6, seed=0, data=str(tmp_path / "data"), form="chat")
    drawn = [draw_shots(task, number, shots=number % 3, seed=0) for number in range(6)]
    prompts = [prompt(task, query, shots=shown) for query, shown in zip(task.queries, drawn, strict=True)]
    requests = [Request(one, stops=stops, max_tokens=9) for one in prompts for stops in ((), ("e",))]
    alone, together = HfModel(folder, rows=1), HfModel(folder, rows=4)
    assert together.model.dtype == torch.float32
    for model in (alone, together):  # random weights as small as these write the same after every prompt
        for name, weight in model.model.named_parameters():
            if "language_model" in name or "projector" in name:
                weight.data *= 6
    calls, finished = [], []
    generate = together.model.generate
    together.model.generate = lambda **how: calls.append(len(how["input_ids"])) or generate(**how)
    answers = together.generate(requests, done=lambda number, reply: finished.append(number))
    assert answers == alone.generate(requests)
    assert len({answer.text for answer in answers}) > 3
    assert sorted(finished) == list(range(12))
    assert calls == [2, 1, 1, 4, 2, 4, 2]  # the check, then the batches: 12 requests in four passes
    assert not caplog.records


def test_a_model_that_padding_changes_is_asked_one_by_one_with_a_note(folder: Path, tmp_path: Path, caplog):
    layouts.vqav2(tmp_path / "data")
    task = load_task("vqav2", limit=4, seed=0, data=str(tmp_path / "data"), form="chat")
    drawn = [draw_shots(task, number, shots=number % 3, seed=0) for number in range(4)]
    requests = [Request(prompt(task, *pair[:1], shots=pair[1])) for pair in zip(task.queries, drawn, strict=True)]
    expected = HfModel(folder, rows=1).generate(requests)
    blind_to_padding, no_padding = HfModel(folder), HfModel(folder)
    generate = blind_to_padding.model.generate

    def all_seen(**how):
        return generate(**how | {"attention_mask": torch.ones_like(how["attention_mask"])})

    blind_to_padding.model.generate = all_seen
    no_padding.processor.tokenizer.pad_token = no_padding.processor.tokenizer.eos_token = None
    for model, why in ((blind_to_padding, "logits differ"), (no_padding, "pad")):
        caplog.clear()
        assert model.generate(requests) == expected
        assert "one prompt at a time" in caplog.text
        assert why in caplog.text


def test_another_training_has_another_name(folder: Path, tmp_path: Path):
    first = HfModel(folder).name
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    other = tmp_path / folder.name
    model.save_pretrained(other)
    transformers.AutoProcessor.from_pretrained(folder).save_pretrained(other)
    assert HfModel(other).name != first
    with pytest.raises(ValueError, match=r"has no config.json"):
        open_model(f"hf:{tmp_path}")


@pytest.mark.parametrize("name", ["C-Abstractor, sparse", "CLIP, Llama"])
def test_one_model_has_one_score_by_transformers_and_by_our_engine(name, tmp_path: Path):
    """Each query with its own and with a wrong picture: `generate` of the export writes what we write.

    After eight shots greedily, after two with beams.
    """
    shape = (NATIVE | OWN)[name].model_copy(deep=True)
    shape.vision.image_size, shape.vision.patch_size = 96, 24
    write_run(tmp_path / "run", run_of(shape))
    tokenizer = load_tokenizer("sample")
    record_text(tmp_path / "run", tokenizer, template=chat_template(tokenizer))
    export_run(tmp_path / "run", tmp_path / "out")
    paths = {"ours": str(tmp_path / "run"), "theirs": f"hf:{tmp_path / 'out'}"}
    answers: dict[str, list] = {}
    for who, path in paths.items():
        model = open_model(path)
        tasks = [load_task(task, limit=4, seed=0) for task in ("captions", "easy_vqa")]  # plain, and a chat
        evaluate(model, tasks, settings=Settings(tmp_path / who), shots=(8,))
        with_beams = Settings(tmp_path / who, protocol=Protocol("same", beams=3))
        scores = evaluate(model, tasks[:1], settings=with_beams, shots=(2,)).scores
        assert len(scores) == 3
        answers[who] = [answer for score in scores for answer in read_answers(tmp_path / who, score)]
    assert answers["ours"] == answers["theirs"]
    assert len({text for answer in answers["ours"] for text in (answer.own.text, answer.blind.text)}) > 4


def test_a_model_without_a_chat_form_says_so(folder: Path, tmp_path: Path):
    model = HfModel(folder)
    model.processor.chat_template = None
    layouts.vqav2(tmp_path)
    task = load_task("vqav2", limit=1, seed=0, data=str(tmp_path), form="chat")
    with pytest.raises(ValueError, match="tiny-llava has no chat template, but task vqav2 asks in chat form"):
        model.prompt_tokens(prompt(task, task.queries[0], shots=[]))


@pytest.fixture
def server():
    """A server that answers `red.` to all, fails every third call once, and keeps what it was sent."""
    sent: list[dict] = []

    class Handler(JsonHandler):
        def do_GET(self):
            self.answer(200, {"data": [{"id": "served"}]})

        def do_POST(self):
            sent.append(json.loads(self.body()))
            if sent[-1]["model"] == "missing":
                self.answer(404, {"error": "no such model"})
            elif len(sent) % 3 == 0:
                self.answer(503, {"error": "busy"})
            else:
                self.answer(200, {"choices": [{"message": {"content": "red. It is"}}]})

    running = RunningServer(Handler)
    yield running.url, sent
    running.stop()


def test_a_server_is_asked_with_pictures_and_again_when_busy(server, tmp_path: Path):
    url, sent = server
    layouts.vqav2(tmp_path)
    task = load_task("vqav2", limit=4, seed=0, data=str(tmp_path), form="chat")
    model = HttpModel(url, retry_seconds=0.01)
    assert model.name == f"served at {url}"
    score = evaluate(model, [task], settings=Settings(tmp_path / "eval"), shots=(1,)).scores[0]
    assert score.score.mean == 0  # `red. It is` is no answer
    whole = [one for one in sent if [turn["role"] for turn in one["messages"]] == ["user", "assistant", "user"]]
    assert len(whole) == len(sent) >= 8
    first = sent[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert base64.b64decode(first.partition(",")[2]) in {one.image.data for one in task.pool.read(list(range(6)))}
    plain = load_task("vqav2", limit=4, seed=0, data=str(tmp_path), form="plain", rules="mm1")
    settings = Settings(tmp_path / "plain")
    assert evaluate(model, [plain], settings=settings, shots=(0,)).scores[0].score.mean == 100
    assert sent[-1]["stop"] == ["\n", ".", ",", "Question"]


def test_a_server_gets_each_sub_image_as_a_picture(server):
    url, sent = server
    data, _ = picture(5, 1)
    with Pillow.open(io.BytesIO(data)) as whole:
        box = quarters(whole.width, whole.height)[3]
        pixels = whole.convert("RGB").crop(box)
    HttpModel(url).answer([Request(Document((Image(data), Image(data, box), Text("What?"))))])
    whole_url, part_url = (piece["image_url"]["url"] for piece in sent[0]["messages"][0]["content"][:2])
    assert base64.b64decode(whole_url.partition(",")[2]) == data
    with Pillow.open(io.BytesIO(base64.b64decode(part_url.partition(",")[2]))) as part:
        assert part.convert("RGB").tobytes() == pixels.tobytes()


def test_a_server_that_refuses_is_named(server, monkeypatch):
    url, _ = server
    with pytest.raises(ValueError, match=r"answered 404: .*no such model"):
        HttpModel(url, model="missing").chat([], max_tokens=1)
    with pytest.raises(ValueError, match="a server gives no likelihoods"):
        HttpModel(url).answer([Request(Document((Text("a"),)), choices=("b", "c"))])
    monkeypatch.setattr(http_model.time, "sleep", lambda seconds: None)
    with pytest.raises(ValueError, match=r"does not answer .*; is the server running"):
        HttpModel("http://127.0.0.1:9/v1")


def test_text_ends_before_the_first_stop():
    assert until("a b. c, d", (",", ".")) == "a b"
    assert until("a b", (",",)) == "a b"
    assert isinstance(Image(b"x"), Image)


class Templated:
    """A processor with a chat template, as `HfModel` asks it."""

    def __init__(self, template: str, token: str):
        self.chat_template, self.image_token = template, token
        self.tokenizer = self
        self.bos_token = None

    def apply_chat_template(self, turns, **how) -> str:
        return jinja2.Template(self.chat_template).render(messages=turns)


@pytest.mark.parametrize(
    ("around", "token", "shown"),
    [
        ("<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>", "<|vision_start|><|image_pad|><|vision_end|>"),
        ("<image>\n", "<image>", "<image>"),
        ("[IMG]", "<image>", "<image>"),
    ],
)
def test_a_text_shows_pictures_with_the_models_own_marks(around: str, token: str, shown: str):
    template = (
        "{% for one in messages %}<|im_start|>{{ one.role }}\n{% for part in one.content %}"
        "{% if part.type == 'image' %}" + around + "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
    )
    model = HfModel.__new__(HfModel)
    model.processor = Templated(template, token)
    document = Document((Image(b""), Text(" Question: Which?", train=False)))
    assert model._text(document) == (f"{shown} Question: Which?", False)


def test_a_processor_that_lacks_a_package_says_so_in_one_line(tmp_path: Path, monkeypatch):
    def lacks(folder, **how):
        raise ImportError("\nQwen2VLVideoProcessor requires the Torchvision library\nbut it was not found.\n")

    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", lacks)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="requires the Torchvision library but it was not found") as raised:
        HfModel(tmp_path)
    assert "\n" not in str(raised.value)
