"""Properties of the model: documents and images don't mix, padding changes nothing, every build is the same."""

import itertools

import pytest
import small
import torch
from small import IMAGE, IMAGE_TOKENS, ROWS, doc, pack
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from mm1.config.base import choices
from mm1.config.model import DecoderConfig, VisionConfig
from mm1.model import attention as kernels
from mm1.model import sizes
from mm1.model.attention import Causal, Groups, attention, dense_mask, document_mask
from mm1.model.attention_cpu import BLOCK
from mm1.model.connector import KINDS
from mm1.model.layers import ACTIVATIONS, resize_positions
from mm1.model.mllm import MLLM
from mm1.model.rotary import rotary_angles
from mm1.model.vision import Vision
from mm1.tiling import Grid


def documents_of(batch, hidden_BTD):
    """The hidden states of each document, in order."""
    rows = zip(batch.document_BT, hidden_BTD, strict=True)
    return [hidden[ids == number] for ids, hidden in rows for number in range(1, int(ids.max()) + 1)]


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def weighted(hidden):
    """A loss whose gradient differs at every position and channel."""
    return (hidden * torch.arange(1, hidden.numel() + 1).view_as(hidden).sin()).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_packed_equals_each_document_alone(kind):
    model = small.model(kind=kind)
    packed = documents_of(pack(ROWS), model.hidden(pack(ROWS)))
    sum(weighted(hidden) for hidden in packed).backward()
    together = gradients(model)
    model.zero_grad()
    alone = [model.hidden(pack([[d]]))[0] for row in ROWS for d in row]
    sum(weighted(hidden) for hidden in alone).backward()
    for a, b in zip(packed, alone, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(together[name], gradient, atol=2e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (4, None), (4, 0.3)])
def test_grouped_attention_equals_dense(seed, window, softcap):
    """Values and gradients, for random packings with padding, and with fewer key heads."""
    generator = torch.Generator().manual_seed(seed)
    document_BT = torch.randint(0, 5, (3, 50), generator=generator).bool().long().cumsum(1).clamp(max=40)
    lengths = torch.randint(1, 12, (3, 9), generator=generator)
    for b in range(3):
        ids = torch.repeat_interleave(torch.arange(1, 10), lengths[b])[:50]
        document_BT[b] = torch.cat((ids, torch.zeros(50 - len(ids), dtype=torch.int64)))
    mask = document_mask(document_BT, window=window)
    assert isinstance(mask, Groups)
    q, k, v = (torch.randn(3, 50, heads, 8, generator=generator, requires_grad=True) for heads in (4, 2, 2))
    real_BT11 = (document_BT > 0)[..., None, None]
    results = []
    for each in (mask, dense_mask(document_BT, window=window)):
        out = attention(q, k, v_BLKW=v, mask=each, softcap=softcap) * real_BT11
        results.append((out, *torch.autograd.grad(weighted(out), (q, k, v))))
    for grouped, dense in zip(*results, strict=True):
        torch.testing.assert_close(grouped, dense, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("window", [None, 1, 5, BLOCK, 100])
@pytest.mark.parametrize("length", [BLOCK, BLOCK + 1, 2 * BLOCK, 150])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_causal_attention_learns_as_the_dense_one(length, kv_heads, window):
    document_BT = torch.ones(2, length, dtype=torch.int64)
    q, k, v = (torch.randn(2, length, heads, 8, requires_grad=True) for heads in (4, kv_heads, kv_heads))
    results = []
    for mask in (Causal(window), dense_mask(document_BT, window=window)):
        out = attention(q, k, v_BLKW=v, mask=mask)
        results.append((out, *torch.autograd.grad(weighted(out), (q, k, v))))
    for causal, dense in zip(*results, strict=True):
        torch.testing.assert_close(causal, dense, atol=1e-5, rtol=1e-4)


def test_soft_capped_attention_is_the_formula(monkeypatch):
    """Query by query, and in blocks of any number of queries."""
    q, k, v = (torch.randn(2, 9, heads, 8) for heads in (4, 2, 2))
    expected = torch.zeros(2, 9, 4, 8)
    for b, t, head in itertools.product(range(2), range(9), range(4)):
        near = slice(max(0, t - 4), t + 1)
        scores = k[b, near, head // 2] @ q[b, t, head] / 8**0.5
        expected[b, t, head] = (0.3 * (scores / 0.3).tanh()).softmax(0) @ v[b, near, head // 2]
    for at_once in (1, 200, 10**6):
        monkeypatch.setattr("mm1.model.softcap.SCORES_AT_ONCE", at_once)
        torch.testing.assert_close(attention(q, k, v_BLKW=v, mask=Causal(5), softcap=0.3), expected)


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (20, None), (20, 0.3)])
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_block_mask_equals_dense(monkeypatch, window, softcap):
    """The mask of a GPU, here uncompiled."""
    monkeypatch.setattr(kernels, "_flex", lambda: flex_attention)
    monkeypatch.setattr(kernels, "_create_block_mask", lambda: create_block_mask)
    document_BT = torch.repeat_interleave(torch.tensor([[1, 2, 0], [1, 2, 3]]), 64, dim=1)
    document_BT[1, 64:70] = 1
    mask = kernels._block_mask(document_BT, window)
    q, k, v = (torch.randn(2, 192, heads, 16) for heads in (4, 2, 2))
    torch.testing.assert_close(
        attention(q, k, v_BLKW=v, mask=mask, softcap=softcap),
        attention(q, k, v_BLKW=v, mask=dense_mask(document_BT, window=window), softcap=softcap),
        atol=1e-5,
        rtol=1e-5,
    )


def test_rows_of_one_document_need_no_groups():
    document_BT = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]])
    assert document_mask(document_BT) == Causal()
    assert isinstance(document_mask(torch.tensor([[0, 1, 1]])), Groups)
    assert isinstance(document_mask(torch.tensor([[1, 2, 2]])), Groups)


def test_documents_of_neighbouring_sequences_stay_apart():
    """The last document of a sequence and the first of the next may have the same number."""
    document_BT = torch.tensor([[1, 2], [2, 2], [2, 3]])
    mask = document_mask(document_BT)
    assert document_mask(torch.tensor([[1, 2], [0, 0]])).shapes == ((2, 1),)
    q, k, v = (torch.randn(3, 2, 2, 8) for _ in range(3))
    torch.testing.assert_close(
        attention(q, k, v_BLKW=v, mask=mask), attention(q, k, v_BLKW=v, mask=dense_mask(document_BT))
    )


def test_an_image_changes_only_its_own_document():
    model = small.model()
    batch = pack(ROWS)
    before = documents_of(batch, model.hidden(batch))
    owners = [index for index, d in enumerate(d for row in ROWS for d in row) for _ in d.images]
    for n, owner in enumerate(owners):
        batch = pack(ROWS)
        batch.images_NCYX[n] = 255 - batch.images_NCYX[n]
        after = documents_of(batch, model.hidden(batch))
        changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if not torch.equal(a, b)]
        assert changed == [owner]


def test_positions_before_an_image_do_not_see_it():
    model = small.model()
    batch = pack([[doc(3, "image", 4, seed=1)]])
    before = model.hidden(batch)
    batch.images_NCYX[0] = 255 - batch.images_NCYX[0]
    after = model.hidden(batch)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.isclose(before[:, 3:], after[:, 3:]).all(-1).any()


def test_image_tokens_take_the_features_in_order():
    model = small.model()
    batch = pack(ROWS, padding_images=2)
    features_NSD = model.encode_images(batch.images_NCYX)
    x_BTD = model.embed(batch.tokens_BT, features_NSD)
    at_image_BT = batch.tokens_BT == IMAGE
    assert torch.equal(x_BTD[at_image_BT], features_NSD[: batch.images].flatten(0, 1))
    assert torch.equal(x_BTD[~at_image_BT], model.decoder.embed(batch.tokens_BT[~at_image_BT]))


@pytest.mark.parametrize("padding_images", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_without_images_the_encoder_gets_zero_gradients(kind, padding_images):
    model = small.model(kind=kind)
    encoded = []
    model.vision.register_forward_pre_hook(lambda _, inputs: encoded.append(len(inputs[0])))
    model.hidden(pack([[doc(5), doc(7)]], padding_images=padding_images)).square().sum().backward()
    assert encoded == [max(padding_images, 1)]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any() == name.startswith("decoder."), name


def test_padding_changes_nothing():
    model = small.model(kind="c_abstractor")
    results = []
    for batch in (pack(ROWS), pack([*ROWS, []], length=70, padding_images=3)):
        model.zero_grad()
        hidden = documents_of(batch, model.hidden(batch))
        sum(weighted(x) for x in hidden).backward()
        results.append((hidden, gradients(model)))
    (plain, plain_gradients), (padded, padded_gradients) = results
    for a, b in zip(plain, padded, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(gradient, padded_gradients[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_have_the_same_features_bit_for_bit_beside_any_padding(kind):
    model, images_NCYX = small.model(kind=kind), pack(ROWS).images_NCYX
    black_NCYX = torch.zeros(5, *images_NCYX.shape[1:], dtype=torch.uint8)
    alone = model.encode_images(images_NCYX)
    for count in (1, 2, 5):
        beside = model.encode_images(torch.cat((images_NCYX, black_NCYX[:count])))
        assert torch.equal(beside[: len(images_NCYX)], alone)


def test_the_backward_is_bitwise_repeatable():
    """A killed run must resume bit for bit; several threads, as in training."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runs = []
        for _ in range(3):
            model = small.model(kind="c_abstractor")
            model.hidden(pack(ROWS * 4)).square().sum().backward()
            runs.append(gradients(model))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(runs[0][name], run[name]) for run in runs for name in run)


def test_one_seed_builds_one_model():
    first, second, other = small.model(0), small.model(0), small.model(1)
    for name, x in first.state_dict().items():
        assert torch.equal(x, second.state_dict()[name])
        assert x.std() == 0 or not torch.equal(x, other.state_dict()[name]), name


def test_initial_weights_do_not_depend_on_sharding():
    from torch import distributed
    from torch.distributed.fsdp import fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    whole = small.model().state_dict()
    distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        sharded = MLLM(small.config())
        fully_shard(sharded, mesh=distributed.device_mesh.init_device_mesh("cpu", (2,)))
        sharded.initialise(0)
        for name, x in sharded.state_dict().items():
            local = x.to_local()
            assert torch.equal(local, whole[name].chunk(2)[1] if len(local) else local), name
    finally:
        distributed.destroy_process_group()


def test_residual_branches_start_small():
    """Depth must not make the residual stream grow: its variance after all layers stays near one layer's."""

    def spread(layers):
        from mm1.model.decoder import Decoder
        from mm1.model.layers import initialise

        decoder = Decoder(
            DecoderConfig(vocabulary=64, width=64, layers=layers, heads=2, kv_heads=2, head_width=32, mlp_width=128)
        )
        initialise(decoder, 0)
        captured = {}
        decoder.norm.register_forward_pre_hook(lambda _, inputs: captured.update(x=inputs[0]))
        decoder(torch.randn(4, 16, 64, generator=torch.Generator().manual_seed(0)), torch.arange(16).expand(4, -1))
        return float(captured["x"].detach().var())

    assert spread(16) < 1.3 * spread(2)


def test_parameters_behind_the_feature_layer_rest():
    config = small.config()
    config.vision.feature_layer = -2
    model = MLLM(config)
    model.initialise(0)
    model.hidden(pack(ROWS)).square().sum().backward()
    for name, parameter in model.named_parameters():
        rests = name.startswith(("vision.blocks.1.", "vision.norm."))
        assert parameter.requires_grad != rests, name
        assert (parameter.grad is None) == rests, name


@pytest.mark.parametrize("class_token", [False, True])
def test_vision_takes_images_of_another_size(class_token):
    vision = Vision(small.config().vision.model_copy(update={"class_token": class_token}))
    for size in (12, 24, 42):
        images_NCYX = torch.zeros(2, 3, size, size, dtype=torch.uint8)
        assert vision(images_NCYX).shape == (2, (size // 6) ** 2, 24)
        assert vision.summary(images_NCYX).shape == (2, 24)


def test_resized_positions_keep_a_constant_and_a_slope():
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    position_PE = torch.stack((torch.ones(8, 8), row, column), -1).flatten(0, 1)
    assert resize_positions(position_PE, Grid(8, 8), to=Grid(8, 8)) is position_PE
    resized_PE = resize_positions(position_PE, Grid(8, 8), to=Grid(16, 16))
    constant, rows, columns = resized_PE.unflatten(0, (16, 16)).unbind(-1)
    torch.testing.assert_close(constant, torch.ones(16, 16))
    for slope_YX in (rows, columns.T):
        assert (slope_YX.diff(dim=0) > 0).all()
        torch.testing.assert_close(slope_YX, slope_YX[:, :1].expand(16, 16))
        assert slope_YX.mean() == pytest.approx(3.5, abs=1e-4)


def test_pixels_are_normalised_inside():
    """An image of the mean colour is zero everywhere, one standard deviation above it is one."""
    vision = Vision(VisionConfig(image_size=12, patch_size=6, mean=(0.2, 0.4, 0.6), std=(0.2, 0.2, 0.4)))
    mean, above = torch.tensor([51, 102, 153]), torch.tensor([102, 153, 255])
    for colour, value in ((mean, 0.0), (above, 1.0)):
        images_NCYX = colour.byte()[None, :, None, None].expand(1, 3, 12, 12)
        torch.testing.assert_close(vision.patches(images_NCYX), torch.full((1, 4, 108), value), atol=1e-6, rtol=0)


def test_attention_depends_on_distance_only():
    """Rotary positions: shifting a document's positions changes no result."""
    decoder = small.model().decoder
    x_BTD, position_BT = torch.randn(2, 12, 32), torch.arange(12).expand(2, -1)
    torch.testing.assert_close(decoder(x_BTD, position_BT), decoder(x_BTD, position_BT + 100), atol=1e-4, rtol=1e-4)
    cosine, _ = rotary_angles(position_BT, decoder.config)
    assert cosine.shape == (2, 12, 1, 8)


def test_activations_are_those_the_config_names():
    named = {*choices(VisionConfig, "activation"), *choices(DecoderConfig, "activation")}
    assert set(ACTIVATIONS) == named


@pytest.mark.parametrize("function", [sizes.tiny, sizes.ablation_base, sizes.mm1_3b, sizes.mm1_30b])
def test_counted_parameters_are_those_built(function):
    config = function()
    config.decoder.qkv_bias = True
    with torch.device("meta"):
        model = MLLM(config)
    matrices = {"decoder.embedding.weight", "decoder.output.weight"}
    built = sum(
        p.numel() for name, p in model.named_parameters() if name.startswith("decoder.") and name not in matrices
    )
    assert built == sizes.non_embedding_parameters(config.decoder)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_is_near_fp32(kind):
    """With weights in bf16: FSDP's mixed precision, serving."""
    model = small.model(kind=kind)
    exact = model.hidden(pack(ROWS))
    rounded = model.bfloat16().hidden(pack(ROWS))
    assert rounded.dtype == torch.bfloat16
    real_BT = pack(ROWS).document_BT > 0
    assert (rounded.float() - exact)[real_BT].square().mean() < 1e-3
    rounded.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_an_image_takes_its_positions():
    assert small.model().encode_images(torch.zeros(2, 3, 24, 24, dtype=torch.uint8)).shape == (2, IMAGE_TOKENS, 32)
