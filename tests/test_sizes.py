"""The paper's sizes, built without memory: counts that meet their names and must not move."""

import pytest
import torch

from mm1.model import sizes
from mm1.model.decoder import Decoder
from mm1.model.mllm import MLLM
from mm1.scaling import law

NAMES = {
    "decoder_9m": 9e6,
    "decoder_85m": 85e6,
    "decoder_302m": 302e6,
    "decoder_1_2b": 1.2e9,
    "decoder_2_9b": 2.9e9,
    "decoder_3b": 3e9,
    "decoder_7b": 7e9,
    "decoder_30b": 30e9,
    "decoder_3b_moe": 64e9,
    "decoder_7b_moe": 47e9,
}
GOLDEN = {
    "decoder_9m": 9_051_904,
    "decoder_85m": 84_955_392,
    "decoder_302m": 308_334_592,
    "decoder_1_2b": 1_233_228_800,
    "decoder_2_9b": 2_944_570_880,
    "decoder_3b": 2_944_570_880,
    "decoder_7b": 7_180_922_880,
    "decoder_30b": 29_683_796_992,
    "decoder_3b_moe": 64_779_556_352,
    "decoder_7b_moe": 46_188_998_656,
}


def parameters(module: torch.nn.Module, *, without: tuple[str, ...] = ()) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if not name.startswith(without))


@pytest.mark.parametrize("name", NAMES)
def test_a_decoder_has_its_names_parameters_within_three_percent(name):
    with torch.device("meta"):
        decoder = Decoder(getattr(sizes, name)())
    count = parameters(decoder, without=("embedding.", "output."))
    assert count == GOLDEN[name]
    assert count == pytest.approx(NAMES[name], rel=0.03)


def test_the_ablations_model_has_the_parameters_it_had():
    with torch.device("meta"):
        assert parameters(MLLM(sizes.ablation_base())) == 1_626_558_976


def test_encoders_are_those_of_the_paper():
    for vision, grid, millions in ((sizes.vit_l_14_336(), 24, 304), (sizes.vit_h_14_378(), 27, 632)):
        config = sizes.tiny().model_copy(update={"vision": vision})
        with torch.device("meta"):
            count = parameters(MLLM(config).vision)
        assert vision.grid == (grid, grid)
        assert count / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(("dense", "sparse"), [("decoder_3b", "decoder_3b_moe"), ("decoder_7b", "decoder_7b_moe")])
def test_a_sparse_size_is_its_dense_one_with_experts(dense, sparse):
    """So it can be started from it, and learns at its rate (MM1, section 4)."""
    small, large = getattr(sizes, dense)(), getattr(sizes, sparse)()
    assert large.model_copy(update={"sparse": small.sparse}) == small
    assert law(sizes.non_embedding_parameters(large)) == law(sizes.non_embedding_parameters(small))
