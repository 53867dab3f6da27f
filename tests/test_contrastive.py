"""The contrastive objective on packed sequences equals its formula on documents one by one."""

import pytest
import small
import torch
import torch.nn.functional as F
from small import IMAGE, ROWS, doc, pack

from mm1.objectives.contrastive import LARGEST_SCALE, ContrastiveModel


def build(**vision) -> ContrastiveModel:
    config = small.config()
    config.vision = config.vision.model_copy(update=vision)
    model = ContrastiveModel(config)
    model.initialise(0)
    return model


def by_formula(model: ContrastiveModel, documents) -> torch.Tensor:
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
        total = total + torch.logsumexp(scores[i, rivals], 0) / 2 + torch.logsumexp(scores[rivals, i], 0) / 2
        total = total - scores[i, i]
    return total


@pytest.mark.parametrize("class_token", [False, True])
def test_packed_loss_equals_the_formula(class_token):
    """Documents without an image or with two are in the sequences, but not in the loss."""
    model = build(class_token=class_token)
    loss = model(pack(ROWS, length=60, padding_images=3))
    pairs = [d for row in ROWS for d in row if len(d.images) == 1]
    assert loss.pairs == len(pairs) == 4
    torch.testing.assert_close(loss.loss, by_formula(model, pairs), atol=1e-4, rtol=1e-5)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(loss.loss, parameters)
    expected = torch.autograd.grad(by_formula(model, pairs), parameters)
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
    pairs = model.pairs(batch)
    same_NN = pairs.caption_N[:, None] == pairs.caption_N
    expected_NN = torch.eye(6, dtype=torch.bool)
    for i in (0, 1, 5):
        expected_NN[i, [0, 1, 5]] = True
    assert torch.equal(same_NN, expected_NN)
    torch.testing.assert_close(model.loss(pairs).loss, by_formula(model, documents), atol=1e-4, rtol=1e-5)


def test_the_text_tower_sees_no_pixels():
    model, batch = build(), pack(ROWS)
    before = model.pairs(batch)
    batch.images_NCYX = 255 - batch.images_NCYX
    after = model.pairs(batch)
    assert torch.equal(before.text_ND, after.text_ND)
    assert not torch.isclose(before.image_ND, after.image_ND).all(-1).any()


@pytest.mark.parametrize("padding_images", [0, 2])
def test_without_pairs_the_loss_and_all_gradients_are_zero(padding_images):
    model = build()
    loss = model(pack([[doc(5), doc("image", 2, "image", seed=2)]], padding_images=padding_images))
    loss.loss.backward()
    assert (float(loss.loss.detach()), int(loss.pairs), int(loss.retrieved)) == (0.0, 0, 0)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    text_only = model(pack([[doc(5)]], padding_images=padding_images))
    assert (float(text_only.loss.detach()), int(text_only.pairs)) == (0.0, 0)


def test_every_parameter_learns():
    model = build(class_token=True, input_norm=True)
    model(pack(ROWS)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_retrieved_counts_images_that_find_their_caption():
    model, pairs = build(), build().pairs(pack(ROWS))
    real = pairs.real_N
    pairs.image_ND.data[real] = pairs.text_ND[real].detach()
    assert model.loss(pairs).retrieved == real.sum()
    order = real.nonzero().flatten()
    pairs.image_ND.data[order[0]] = pairs.text_ND[order[1]].detach()
    assert model.loss(pairs).retrieved == real.sum() - 1


def test_the_temperature_is_clamped():
    model, pairs = build(), build().pairs(pack(ROWS))
    assert model.log_scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-5)
    with torch.no_grad():
        model.log_scale.fill_(torch.tensor(LARGEST_SCALE).log())
        at_limit = model.loss(pairs).loss
        model.log_scale.fill_(9.0)
    beyond = model.loss(pairs).loss
    assert torch.isclose(beyond, at_limit, rtol=1e-4)
    assert torch.autograd.grad(beyond, model.log_scale)[0].any()  # it can come back


def test_towers_learn_to_find_pairs():
    """A few steps on four pairs: every image finds its caption."""
    model = build()
    batch = pack([[doc("image", 4, seed=seed) for seed in range(2 * b, 2 * b + 2)] for b in range(2)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(15):
        optimizer.zero_grad()
        loss = model(batch)
        loss.loss.backward()
        optimizer.step()
    assert int(loss.retrieved) == int(loss.pairs) == 4
