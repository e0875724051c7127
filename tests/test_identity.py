"""The identity network: its loss, its people, its training on a tiny scale, ID retrieval, and what is shipped."""

import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from hrlib import retrieval, weights
from hrlib.errors import InvalidValue, LayoutMismatch, ShapeError, StoreError
from hrlib.nets.identity import Identity
from hrlib.training import checkpoints, identity, identity_set, loop
from hrlib.training.updates import one_cycle
from hrlib.worlds import portraits

NET = {"edge": 16, "channels": [16, 16], "blocks": [1, 2], "dim": 8}
TINY = identity.IdentityRecipe(
    config=NET, identities=16, views=2, resolution=16, cycles=((3, 2e-3), (3, 1e-3)), batch=16
)
SET = {"identities": TINY.identities, "views": TINY.views, "resolution": TINY.resolution}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    assert list(identity_set.render_views(folder, **SET, seed=TINY.data_seed))[-1] == 32
    return folder


@pytest.fixture(scope="module")
def shipped():
    return weights.load_identity("identity_thin")


# --- the network ------------------------------------------------------------------------------------------------------


def test_embeddings_are_unit_vectors_of_pictures_of_any_size():
    net = Identity(**NET).eval()
    for size in ((16, 16), (9, 40), (128, 96)):
        vectors = net.embed(torch.rand(2, 3, *size) * 2 - 1)
        assert vectors.shape == (2, 8)
        assert torch.allclose(vectors.norm(dim=1), torch.ones(2))


def test_the_whole_picture_is_resized_with_antialiasing():
    net = Identity(**NET).eval()
    x = torch.rand(1, 3, 70, 41) * 2 - 1
    by_pillow = [
        np.asarray(Image.fromarray(c.numpy()).resize((16, 16), Image.Resampling.BILINEAR)) for c in x[0]
    ]  # Pillow's filters grow with the reduction: they are antialiased
    assert torch.allclose(net.embed(x), net.embed(torch.from_numpy(np.stack(by_pillow))[None]), atol=1e-4)


@pytest.mark.parametrize(
    "x", [torch.zeros(3, 16, 16), torch.zeros(1, 1, 16, 16), torch.zeros(1, 3, 16, 16, dtype=torch.uint8)]
)
def test_what_is_no_picture_is_refused(x):
    with pytest.raises(ShapeError, match="N, 3, H, W"):
        Identity(**NET).eval().embed(x)


@pytest.mark.parametrize("wrong", [{"edge": 20}, {"blocks": [1]}, {"blocks": [1, 0]}, {"edge": 0}])
def test_impossible_networks_are_refused(wrong):
    with pytest.raises(InvalidValue, match="divisible"):
        Identity(**NET | wrong)


def test_saved_in_half_precision_and_loaded(tmp_path):
    net = Identity(**NET)
    net(torch.rand(4, 3, 16, 16))  # moves the running statistics
    file = weights.save_network(net.eval(), tmp_path / "net.safetensors", half=True)
    loaded, x = weights.load_identity(file), torch.rand(4, 3, 16, 16)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert (loaded.embed(x) * net.embed(x)).sum(1).min() > 0.9999
    with pytest.raises(LayoutMismatch, match="identity"):
        weights.load_generator(file)
    with pytest.raises(LayoutMismatch, match="style_inr"):
        weights.load_identity("portraits_inr128")


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_arcface_is_its_equation():
    torch.manual_seed(0)
    head, label = identity.ArcFace(5, 8, scale=7.0), torch.tensor([0, 3, 4])
    vectors = F.normalize(torch.randn(3, 8), dim=1)
    loss, logits = head(vectors, label, 0.3)
    w = head.weight.detach().numpy().astype(float)
    theta = np.arccos(vectors.numpy() @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T)
    expected = []
    for i, y in enumerate(label):
        own = math.exp(7 * math.cos(theta[i, y] + 0.3))
        others = sum(math.exp(7 * math.cos(theta[i, j])) for j in range(5) if j != y)
        expected.append(-math.log(own / (own + others)))
    assert loss.item() == pytest.approx(np.mean(expected), abs=1e-5)
    assert np.allclose(logits, 7 * np.cos(theta), atol=1e-5)  # accuracy is measured without the margin


def test_arcface_rises_with_the_angle_all_the_way_and_has_finite_gradients():
    head = identity.ArcFace(2, 3, scale=4.0)
    head.weight.data = torch.eye(3)[:2]
    angle = torch.linspace(0, math.pi, 50)
    vectors = torch.stack([angle.cos(), 0 * angle, angle.sin()], 1).requires_grad_()  # at right angles to the other
    losses = torch.stack([head(v[None], torch.tensor([0]), 0.5)[0] for v in vectors])
    assert (losses.diff() > 0).all()
    toward = torch.autograd.grad(losses.sum(), vectors)[0]
    assert toward.isfinite().all() and (toward[1:-1, 0] < 0).all()


# --- the people -------------------------------------------------------------------------------------------------------


def test_lookalikes_share_everything_but_proportions():
    who = identity_set.lookalikes(10, seed=5)
    family = who[4:8]
    same = (family == family[:1]).all(0)
    names = {n for n, equal in zip(portraits.IDENTITY_NAMES, same.tolist(), strict=True) if not equal}
    assert names == set(identity_set.SHAPE_NAMES)
    assert who.shape == (10, len(portraits.IDENTITY_NAMES)) and torch.equal(who, identity_set.lookalikes(10, seed=5))
    assert not torch.equal(who[3], who[4])


def test_views_show_the_same_people_otherwise():
    who = identity_set.half_lookalikes(6, seed=1)
    a, b = identity_set.view(who, seed=2), identity_set.view(who, seed=3)
    assert torch.equal(a.identity, who) and torch.equal(b.identity, who)
    for group in ("pose", "expression", "light", "background", "detail_seed"):
        assert not torch.equal(getattr(a, group), getattr(b, group))


def test_rendering_resumes_and_rows_show_person_i_modulo_n(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(identity_set, "CHUNK", 5)  # does not divide the number of people
    rendering = identity_set.render_views(tmp_path, **SET, seed=TINY.data_seed)
    assert [next(rendering) for _ in range(4)] == [5, 10, 15, 16]
    rendering.close()  # the process dies
    with pytest.raises(StoreError, match="hrlab train identity"):
        identity_set.load_views(tmp_path)
    assert [*identity_set.render_views(tmp_path, **SET, seed=TINY.data_seed)][:2] == [21, 26]
    images = identity_set.load_views(tmp_path)
    assert np.array_equal(images, identity_set.load_views(folder))
    who = identity_set.half_lookalikes(16, seed=TINY.data_seed)[3:4]
    for v, rays in ((0, 2), (1, 1)):
        one = identity_set.view(torch.cat([who] * 4), seed=TINY.data_seed + 3 + v)[3:]
        drawn = portraits.render(one, 16, rays)[0]
        assert np.abs(images[3 + 16 * v] - (drawn.numpy() + 1) * 127.5).max() < 0.51


def test_half_of_a_batch_are_whole_families():
    rows, label = identity.draw(TINY, torch.Generator().manual_seed(0))
    assert (rows % TINY.identities == label).all() and rows.max() < TINY.identities * TINY.views
    assert (label[:8] < 8).all() and (label[8:] >= 8).all()
    assert all(set(f.tolist()) == set(range(f.min(), f.min() + 4)) for f in label[8:].view(2, 4))


def test_augmented_pictures_are_a_function_of_the_draws():
    x = torch.rand(16, 3, 24, 24) * 2 - 1
    a, b, c = (identity.augment(x, 16, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert a.shape == (16, 3, 16, 16) and a.abs().max() <= 1
    assert torch.equal(a, b) and not torch.equal(a, c)


# --- training ---------------------------------------------------------------------------------------------------------


def follow(recipe, views, folder, tell=lambda text: None):
    state = identity.State(recipe)
    steps = identity.train(recipe, views, state)
    last = loop.follow(folder, "identity network", recipe, state, steps, data={}, every=2 * recipe.batch, tell=tell)
    return state, last


def test_training_resumes_bitwise(folder, tmp_path, monkeypatch):
    recipe = dataclasses.replace(TINY, seed=1)
    straight, last = follow(recipe, folder, tmp_path / "whole")
    draw, drawn = identity.draw, []

    def killed(*args):
        drawn.append(args)
        if len(drawn) == 4:  # step 3 is lost: the checkpoint is of step 2
            raise KeyboardInterrupt
        return draw(*args)

    monkeypatch.setattr(identity, "draw", killed)
    with pytest.raises(KeyboardInterrupt):
        follow(recipe, folder, tmp_path / "broken")
    torch.manual_seed(99)
    told = []
    resumed, again = follow(recipe, folder, tmp_path / "broken", tell=told.append)
    assert told[0].endswith("from step 2") and len(told) == 3  # and the rows of steps 4 and 6
    assert all(again[k] == v for k, v in last.items() if k != "seconds")
    a, b = (checkpoints.gather(state.parts) for state in (straight, resumed))
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name
    finished, row = follow(recipe, folder, tmp_path / "broken", tell=told.append)
    assert finished.step == 6 and row == again and len(told) == 4


def test_a_checkpoint_of_another_training_or_a_damaged_one_is_refused(folder, tmp_path):
    recipe, file = dataclasses.replace(TINY, cycles=((2, 2e-3),)), tmp_path / "run" / loop.CHECKPOINT
    follow(recipe, folder, tmp_path / "run")
    for wrong in ({"margin": 0.2}, {"seed": 1}):
        with pytest.raises(StoreError, match=f"identity network with {next(iter(wrong))} = "):
            follow(dataclasses.replace(recipe, **wrong), folder, tmp_path / "run")
    for content in (b"precious", b"", file.read_bytes()[:1000]):
        file.write_bytes(content)
        with pytest.raises(StoreError, match="is damaged"):
            follow(recipe, folder, tmp_path / "run")
        assert file.read_bytes() == content
    with pytest.raises(StoreError, match="cannot be written"):
        follow(recipe, folder, file / "run")


@pytest.mark.parametrize(
    "wrong",
    [{"batch": 12}, {"identities": 4}, {"cycles": ((0, 1e-3),)}, {"cycles": ((3, -1.0),)}, {"margin": 4}, {"seed": -1}],
)
def test_recipes_of_senseless_numbers_cannot_be_made(wrong):
    with pytest.raises(InvalidValue):
        dataclasses.replace(TINY, **wrong)


@pytest.mark.parametrize("steps", [2, 3, 10, 11, 4000])
def test_a_cycle_of_any_length_is_pytorchs(steps):
    adam = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    rise = max(0.1, 1.1 / steps)  # PyTorch divides by the length of the rise less one step
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 1e-2, total_steps=steps, pct_start=rise)
    rates = [one_cycle(step, steps, 1e-2)[0] for step in range(steps)]
    for step in range(steps):
        group = adam.param_groups[0]
        assert (group["lr"], group["betas"][0]) == one_cycle(step, steps, 1e-2)  # to the last bit
        adam.step()
        if step + 1 < steps:
            schedule.step()
    assert min(rates) > 0 and rates[-1] == min(rates) and rates[0] < 1e-2
    if steps > 11:
        assert max(rates) == pytest.approx(1e-2, rel=0.02)


def test_training_learns_its_people(folder):
    recipe = dataclasses.replace(TINY, cycles=((150, 1e-2),))
    rows = list(identity.train(recipe, folder, identity.State(recipe)))
    assert np.mean([row["accuracy"] for row in rows[-50:]]) > 3 / 16  # three times chance, on augmented pictures


def test_a_run_writes_its_log_its_network_and_its_rates(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "measure", lambda net, **_: {"photo": [1.0, 0.5]})
    file, run = tmp_path / "net.safetensors", tmp_path / "run"
    shutil.copytree(folder, run / "views")
    with pytest.raises(StoreError, match="is not empty"):
        identity.run(run, file, recipe=TINY)
    shutil.move(run / "views", tmp_path / "views")
    monkeypatch.setattr(identity, "render_views", lambda to, **_: [shutil.copytree(tmp_path / "views", to) and 32])
    rates = identity.run(run, tmp_path / "net", recipe=TINY)
    assert rates == {"photo": [1.0, 0.5]}
    assert (run / "log.csv").read_text().splitlines()[-1].startswith("6,")
    assert weights.load_identity(file).config == Identity(**NET).config
    assert "| photo | 75.0%" in (tmp_path / "net.md").read_text()
    monkeypatch.setattr(identity, "render_views", None)  # nothing is rendered before a refusal
    with pytest.raises(StoreError, match=r"net.safetensors is there already"):
        identity.run(run, file, recipe=TINY)
    with pytest.raises(StoreError, match="with seed = 0"):
        identity.run(run, tmp_path / "other", recipe=dataclasses.replace(TINY, seed=1))
    with pytest.raises(InvalidValue, match="threads"):
        identity.run(run, tmp_path / "other", recipe=TINY, threads=0)
    assert "| photo | 75.0% | 35.4% | 50.0% | 2 | 0.5% |" in identity.table(rates, 200)


# --- ID retrieval -----------------------------------------------------------------------------------------------------


def test_id_retrieval_against_brute_force():
    g = np.random.default_rng(0)
    content, labels = g.normal(size=(7, 4)), g.integers(0, 7, 40)
    stylised = content[labels] + g.normal(size=(40, 4)) * 0.8
    result = retrieval.id_retrieval(content, torch.from_numpy(stylised), labels)
    squared = np.array([[sum((a - b) ** 2) for a in content] for b in stylised])
    assert np.array_equal(result.nearest, squared.argmin(1)) and np.allclose(result.distance, squared.min(1))
    assert result.rate == np.mean(squared.argmin(1) == labels) and 0.2 < result.rate < 1
    assert result.chance == 1 / 7
    strict = retrieval.id_retrieval(content, stylised, labels, threshold=1.5)
    assert strict.rate == np.mean((squared.argmin(1) == labels) & (squared.min(1) < 1.5)) < result.rate


def test_id_retrieval_at_equal_distances_takes_the_first_content():
    same = np.ones((3, 2))
    assert retrieval.id_retrieval(same, same, [0, 1, 2]).nearest.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("content", "stylised", "labels", "error", "message"),
    [
        (np.zeros((2, 3)), np.zeros((4, 2)), [0] * 4, ShapeError, "M, D"),
        (np.zeros((2, 3)), np.zeros((4, 3)), [0] * 3, ShapeError, "M, D"),
        (np.zeros((2, 3)), np.zeros((0, 3)), [], ShapeError, "none of them empty"),
        (np.zeros((2, 3)), np.zeros((1, 3)), [2], InvalidValue, "from 0 to 1"),
        (np.zeros((2, 3)), np.zeros((1, 3)), [0.5], ShapeError, "whole numbers"),
        (np.full((2, 3), np.nan), np.zeros((1, 3)), [0], InvalidValue, "finite"),
    ],
)
def test_id_retrieval_refuses(content, stylised, labels, error, message):
    with pytest.raises(error, match=message):
        retrieval.id_retrieval(content, stylised, labels)


# --- what is shipped --------------------------------------------------------------------------------------------------


def test_the_shipped_network_is_small_and_knows_people_it_has_never_seen(shipped):
    assert weights.path("identity_thin").stat().st_size < 4e6
    who = portraits.sample(40, seed=777).identity
    a, b = (identity.embed(shipped, identity_set.view(who, seed=s)) for s in (778, 779))
    result = retrieval.id_retrieval(a, b, range(40))
    assert result.rate >= 0.95
    assert np.median(result.distance) < 1.0 < np.median(torch.cdist(a, b).square())  # and others are far


def test_the_shipped_network_does_not_go_by_colours_alone(shipped):
    who = identity_set.lookalikes(48, seed=780)
    a, b = (identity.embed(shipped, identity_set.view(who, seed=s)) for s in (781, 782))
    within = [retrieval.id_retrieval(a[i : i + 4], b[i : i + 4], range(4)).rate for i in range(0, 48, 4)]
    assert np.mean(within) > 0.4  # chance is 0.25, with a standard deviation of 0.06
