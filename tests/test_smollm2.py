"""The real SmolLM2-135M: in, trained on text as a user would, and out as the Llama that it was.

Training, and nine tasks by two programs, take minutes.
"""

import json
from pathlib import Path

import pytest
import torch
from text_data import command, scores_of_lm_eval, scores_of_mm1, write_answered_data
from weights import SMOLLM2, fetched

from mm1.checkpoint import load_for_use
from mm1.data.chat_format import prompt
from mm1.data.encode import encode
from mm1.document import Text
from mm1.eval.models import Ours
from mm1.hf.gguf import Gguf
from mm1.tiling import TileSpec

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.nightly

SHORT = ["steps=20", "optim.learning_rate=1e-5", "data.sequence_length=128", "batch_size=1", "micro_batch_size=1"]
SHORT += ["data.validation={}", "data.workers=0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the imported model, `smollm2`; a run of 20 steps of text from it, `run`; and its export, `out`."""
    folder = tmp_path_factory.mktemp("smollm2")
    command(folder, "mm1", "import", str(next(fetched(SMOLLM2).rglob("*.gguf"))), "--to", "smollm2")
    command(folder, "mm1", "train", "tiny_language", "start_from.decoder=smollm2", *SHORT, "--to", "run")
    command(folder, "mm1", "export", "run", "--to", "out", "--dtype", "fp32")
    return folder


def test_trained_on_text_it_leaves_with_its_own_class_context_and_chat_form(folder):
    gguf = Gguf(next(fetched(SMOLLM2).rglob("*.gguf")))
    described = json.loads((folder / "out/config.json").read_text())
    assert described["architectures"] == ["LlamaForCausalLM"]
    assert described["max_position_embeddings"] == gguf.config().max_positions == 8192
    exported = transformers.AutoModelForCausalLM.from_pretrained(folder / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "out")
    assert tokenizer.chat_template == gguf.words().template
    before, after = load_for_use(folder / "smollm2"), load_for_use(folder / "run", precision="fp32")
    question = prompt([Text("What is the capital of France?")])
    ids = tokenizer.apply_chat_template([{"role": "user", "content": question.text}], add_generation_prompt=True)
    for loaded in (before, after):
        ours = encode(question, loaded.tokenizer, tile=TileSpec(16, 4), end=False)
        assert ours.tokens.tolist() == ids["input_ids"]
    tokens_BT = torch.tensor([ids["input_ids"]])
    decoder, positions_BT = after.model.decoder, torch.arange(tokens_BT.shape[1])[None]
    with torch.no_grad():
        ours, untrained = (
            one.logits(one(one.embed(tokens_BT), positions_BT)) for one in (decoder, before.model.decoder)
        )
        torch.testing.assert_close(exported(tokens_BT).logits, ours, atol=1e-4, rtol=1e-5)
    assert (ours - untrained).abs().max() > 0.1


def test_lm_evals_own_command_scores_the_export_as_mm1_eval_scores_the_run(folder):
    pytest.importorskip("lm_eval")
    loaded = load_for_use(folder / "run", precision="fp32")
    write_answered_data(folder, Ours(loaded.model, loaded.tokenizer, name="run"))
    ours = scores_of_mm1(folder, folder / "run")
    theirs = scores_of_lm_eval(
        folder, "--model", "hf", "--model_args", "pretrained=out,dtype=float32", "--device", "cpu"
    )
    assert theirs == pytest.approx(ours)
    assert len(theirs) == 9
    assert len(set(theirs.values())) > 2
    assert theirs["triviaqa"] >= 50
