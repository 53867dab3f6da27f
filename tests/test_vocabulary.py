"""New tokens leave what the model and its tokenizer did before."""

import json
import math

import pytest
import torch
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from mm1.config.model import DecoderConfig
from mm1.data.tokenizer import MARKS, Tokenizer
from mm1.hf.vocabulary import extended, with_marks
from mm1.model.decoder import Decoder
from mm1.model.layers import initialise


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_new_tokens_take_no_more_than_their_share_and_never_win(tie_embeddings):
    config = DecoderConfig(
        vocabulary=60,
        width=16,
        layers=2,
        heads=2,
        kv_heads=1,
        head_width=8,
        mlp_width=24,
        tie_embeddings=tie_embeddings,
    )
    old = Decoder(config)
    initialise(old, 0)
    with torch.no_grad():
        old.output_weight().mul_(20)  # logits as far apart as a trained model's
    new = Decoder(config.model_copy(update={"vocabulary": 66}))
    new.load_state_dict(extended(old.state_dict(), 66))
    tokens_BT = torch.randint(0, 60, (4, 12), generator=torch.Generator().manual_seed(1))
    position_BT = torch.arange(12).expand(4, -1)
    with torch.no_grad():
        before, after = (m.logits(m(m.embed(tokens_BT), position_BT)) for m in (old, new))
    torch.testing.assert_close(after[..., :60], before, atol=1e-5, rtol=1e-5)
    lost = before.log_softmax(-1) - after.log_softmax(-1)[..., :60]
    assert float(lost.max()) <= math.log(66 / 60) + 1e-5
    assert float(before.std()) > 1
    assert (after.argmax(-1) < 60).all()


def test_a_vocabulary_that_is_large_enough_stays_as_it_is():
    state = Decoder(DecoderConfig(vocabulary=60, width=16, layers=1, mlp_width=24)).state_dict()
    assert extended(state, 60)["embedding.weight"] is state["embedding.weight"]


def test_marks_come_behind_and_every_other_id_stays(tmp_path):
    plain = HFTokenizer(BPE({letter: number for number, letter in enumerate("abcdĠ")}, []))
    plain.pre_tokenizer = ByteLevel(add_prefix_space=False)
    plain.add_special_tokens(["<s>", "<|end|>"])  # ids 5 and 6
    marked = with_marks(json.loads(plain.to_str()), {"begin": [5]})
    assert [token["id"] for token in marked["added_tokens"]] == [*range(5, 5 + len(MARKS))]
    (tmp_path / "tokenizer.json").write_text(json.dumps(marked))
    loaded = Tokenizer(tmp_path)
    assert loaded.encode("abba d") == plain.encode("abba d", add_special_tokens=False).ids
    assert loaded.marks["end"] == 6
    others = [loaded.marks[name] for name in MARKS if name not in ("begin", "end")]
    assert others == [*range(7, 7 + len(others))]
    assert loaded.vocabulary == 7 + len(others)
    assert not set(loaded.encode("<|image|>abc")) & set(loaded.marks.values())  # text never spells one
