"""The contrastive objective on packed sequences equals its formula on documents one by one."""

import pytest
import small
import torch
import torch.nn.functional as F
import transformers
from small import IMAGE, ROWS, doc, pack

from mm1.dist import DataRanks
from mm1.objectives.contrast import LARGEST_SCALE, LOSSES, Features, Similarity
from mm1.objectives.contrastive import Contrastive, ContrastiveModel, ContrastiveSigmoid
from mm1.objectives.loss import Loss

KINDS = {"softmax": Contrastive, "sigmoid": ContrastiveSigmoid}


def build(loss: str = "softmax", **vision) -> ContrastiveModel:
    config = small.config()
    config.vision = config.vision.model_copy(update=vision)
    model = ContrastiveModel(config, loss)
    model.initialise(0)
    return model


def loss_of(model: ContrastiveModel, batch, kind: str = "softmax") -> Loss:
    return KINDS[kind](model, []).loss(batch)


def by_formula(model: ContrastiveModel, documents, kind: str = "softmax") -> torch.Tensor:
    """The summed loss from a loop over documents of one image each."""
    images, texts = [], []
    for d in documents:
        tokens = torch.tensor(d.tokens)[None]
        hidden = model.decoder(model.decoder.embed(tokens), torch.arange(len(d.tokens))[None])
        texts.append(model.text_projection(hidden[0, -1]))
        images.append(model.image_projection(model.vision.summary(d.images[0][None])[0]))
    captions = [[token for token in d.tokens if token != IMAGE] for d in documents]
    scores = F.normalize(torch.stack(images), dim=-1) @ F.normalize(torch.stack(texts), dim=-1).T
    scores = scores * model.log_scale.exp()
    total = torch.zeros(())
    for i in range(len(documents)):
        rivals = [j for j in range(len(documents)) if j == i or captions[j] != captions[i]]
        if kind == "sigmoid":
            assert model.bias is not None
            for j in rivals:
                total = total - F.logsigmoid((1 if i == j else -1) * (scores[i, j] + model.bias[0]))
            continue
        total = total + torch.logsumexp(scores[i, rivals], 0) / 2 + torch.logsumexp(scores[rivals, i], 0) / 2
        total = total - scores[i, i]
    return total


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_loss_equals_the_formula(kind, class_token):
    """Documents without an image or with two are in the sequences, but not in the loss."""
    model, batch = build(kind, class_token=class_token), pack(ROWS, length=60, padding_images=3)
    loss = loss_of(model, batch, kind)
    pairs = [d for row in ROWS for d in row if len(d.images) == 1]
    assert loss.weight == KINDS[kind](model, []).weight(batch) == len(pairs) == 4
    torch.testing.assert_close(loss.total, by_formula(model, pairs, kind), atol=1e-4, rtol=1e-5)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(loss.total, parameters)
    expected = torch.autograd.grad(by_formula(model, pairs, kind), parameters)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_equal_captions_are_no_negatives():
    """Captions that differ in a token, in order or in length are negatives; equal ones of other images are not."""
    model = build()
    caption = doc(6, seed=1).tokens
    variants = [caption, caption, [*caption[:-1], caption[-1] ^ 1], caption[::-1], caption[:-1]]
    images = [doc("image", seed=seed) for seed in range(5)]
    documents = [small.Doc(d.tokens + text, d.images) for d, text in zip(images, variants, strict=True)]
    documents.append(small.Doc(caption + images[0].tokens, [small.image(77)]))  # image last: the same caption
    batch = pack([documents[:3], documents[3:]])
    pairs = model(batch)
    same_NN = pairs.caption_N[:, None] == pairs.caption_N
    expected_NN = torch.eye(6, dtype=torch.bool)
    for i in (0, 1, 5):
        expected_NN[i, [0, 1, 5]] = True
    assert torch.equal(same_NN, expected_NN)
    torch.testing.assert_close(loss_of(model, batch).total, by_formula(model, documents), atol=1e-4, rtol=1e-5)


def test_the_text_tower_sees_no_pixels():
    model, batch = build(), pack(ROWS)
    before = model(batch)
    batch.images_NCYX = 255 - batch.images_NCYX
    after = model(batch)
    assert torch.equal(before.text_ND, after.text_ND)
    assert not torch.isclose(before.image_ND, after.image_ND).all(-1).any()


@pytest.mark.parametrize("padding_images", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_without_pairs_the_loss_and_all_gradients_are_zero(kind, padding_images):
    model = build(kind)
    loss = loss_of(model, pack([[doc(5), doc("image", 2, "image", seed=2)]], padding_images=padding_images), kind)
    loss.total.backward()
    assert (float(loss.total.detach()), loss.weight, loss.extra["retrieval"]) == (0.0, 0, 0)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    text_only = loss_of(model, pack([[doc(5)]], padding_images=padding_images), kind)
    assert (float(text_only.total.detach()), text_only.weight) == (0.0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind):
    model = build(kind, class_token=True, input_norm=True)
    loss_of(model, pack(ROWS), kind).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def features(model: ContrastiveModel) -> tuple[Features, Similarity]:
    pairs = model(pack(ROWS))
    index = pairs.real_N.nonzero()[:, 0]
    own = Features(*(x.detach()[index] for x in (pairs.image_ND, pairs.text_ND, pairs.caption_N)))
    return own, Similarity(pairs.log_scale.detach(), pairs.bias.detach())


@pytest.mark.parametrize("kind", KINDS)
def test_retrieved_counts_images_that_find_their_caption(kind):
    own, similarity = features(build(kind))
    own.image_ND.copy_(own.text_ND)
    assert LOSSES[kind](own, similarity, DataRanks()).retrieved_N.all()
    own.image_ND[0] = own.text_ND[1]
    assert LOSSES[kind](own, similarity, DataRanks()).retrieved_N.tolist() == [False, True, True, True]
    own.text_ND[:] = own.text_ND[0]  # equal features of other captions: none is found
    assert not LOSSES[kind](own, similarity, DataRanks()).retrieved_N.any()


def test_the_temperature_is_clamped():
    model = build()
    assert model.log_scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-5)
    with torch.no_grad():
        model.log_scale.fill_(torch.tensor(LARGEST_SCALE).log())
        at_limit = loss_of(model, pack(ROWS)).total
        model.log_scale.fill_(9.0)
    beyond = loss_of(model, pack(ROWS)).total
    assert torch.isclose(beyond, at_limit, rtol=1e-4)
    assert torch.autograd.grad(beyond, model.log_scale)[0].any()  # it can come back


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_published_model(kind):
    """The loss that transformers gives for its own features, and the gradients of its temperature and bias."""
    config = transformers.CLIPConfig if kind == "softmax" else transformers.SiglipConfig
    cls = transformers.CLIPModel if kind == "softmax" else transformers.SiglipModel
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    theirs = cls(
        config(
            text_config=shape | {"vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 49},
            vision_config=shape | {"image_size": 8, "patch_size": 4},
            **({"projection_dim": 16} if kind == "softmax" else {}),
        )
    ).eval()
    out = theirs(input_ids=torch.randint(2, 49, (6, 8)), pixel_values=torch.randn(6, 3, 8, 8), return_loss=True)
    out.loss.backward()
    bias = theirs.logit_bias if kind == "sigmoid" else torch.zeros(1)
    own = Features(out.image_embeds.detach(), out.text_embeds.detach(), torch.arange(6))
    similarity = Similarity(theirs.logit_scale.detach().reshape(()), bias.detach().reshape(()))
    ours = LOSSES[kind](own, similarity, DataRanks())
    torch.testing.assert_close(ours.loss_N.mean(), out.loss.detach())
    torch.testing.assert_close(ours.log_scale_N.mean(), theirs.logit_scale.grad.reshape(()), atol=1e-5, rtol=1e-4)
    if kind == "sigmoid":
        torch.testing.assert_close(ours.bias_N.mean(), bias.grad.reshape(()))


def test_towers_learn_to_find_pairs():
    """A few steps on four pairs: every image finds its caption."""
    model = build()
    batch = pack([[doc("image", 4, seed=seed) for seed in range(2 * b, 2 * b + 2)] for b in range(2)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(15):
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.total.backward()
        optimizer.step()
    assert loss.extra["retrieval"] == loss.weight == 4
