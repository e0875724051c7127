"""Training of the baselines: it learns, it resumes to the same, it says what is wrong, and what ships is measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from hrlib import weights
from hrlib.errors import InvalidValue, LayoutMismatch, NonFiniteLoss, StoreError, UnknownName
from hrlib.training import checkpoints, dualstylegan, loop, starganv2
from hrlib.training.picture_sets import load_set, render_set


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Sixteen people as photographs and as drawings, 128 px."""
    root = tmp_path_factory.mktemp("sets")
    for domain in ("photo", "anime"):
        for _ in render_set(root / domain, 64, world=f"portraits/{domain}", resolution=128, z_dim=64, count=16):
            pass
    return {domain: load_set(root / domain) for domain in ("photo", "anime")}


def star(**changes):
    config = dict(img_size=32, style_dim=8, latent_dim=4, num_domains=2, max_conv_dim=16, w_hpf=0, hidden=16, width=8)
    recipe = starganv2.StarGANv2Recipe(config={**config, "domains": ["photo", "anime"]}, total_images=32, batch=4)
    return dataclasses.replace(recipe, **changes)


def same(a, b):
    a, b = checkpoints.gather(a.parts), checkpoints.gather(b.parts)
    assert set(a) == set(b)
    return all(torch.equal(a[k], b[k]) for k in a)


class Stop(Exception):
    pass


def stopping(after):
    """A `tell` that ends the run at its n-th line, as a kill would: the first says where it begins."""
    left = [after]

    def tell(text):
        left[0] -= 1
        if not left[0]:
            raise Stop

    return tell


# --- StarGAN v2 -------------------------------------------------------------------------------------------------------


def test_a_stopped_starganv2_training_goes_on_to_the_same_end(sets, tmp_path):
    data = list(sets.values())
    whole = starganv2.run(data, tmp_path / "whole", recipe=star(), every=8, tell=str)
    with pytest.raises(Stop):
        starganv2.run(data, tmp_path / "parts", recipe=star(), every=8, tell=stopping(3))
    resumed = starganv2.run(data, tmp_path / "parts", recipe=star(), every=8, tell=str)
    assert resumed.step == whole.step == 8
    assert same(resumed, whole)
    logs = [pd.read_csv(tmp_path / name / loop.LOG) for name in ("whole", "parts")]
    assert logs[0].drop(columns="seconds").equals(logs[1].drop(columns="seconds"))
    assert list(logs[0]["images"]) == [8, 16, 24, 32]
    assert (tmp_path / "whole" / loop.SHEET).stat().st_size > 1000


def test_a_folder_of_another_recipe_is_refused(sets, tmp_path):
    data = list(sets.values())
    starganv2.run(data, tmp_path, recipe=star(total_images=8), every=8, tell=str)
    with pytest.raises(StoreError, match="lam_cyc"):
        starganv2.run(data, tmp_path, recipe=star(lam_cyc=2.0), every=8, tell=str)
    longer = starganv2.run(data, tmp_path, recipe=star(total_images=12), every=8, tell=str)
    assert longer.step == 3  # a training can be prolonged
    with pytest.raises(InvalidValue, match="total_images = 8"):
        starganv2.run(data, tmp_path, recipe=star(total_images=8), every=8, tell=str)
    with pytest.raises(StoreError, match=r'data\.photo\.world = "portraits/photo"\n  expected: .*anime"'):
        starganv2.run(data[::-1], tmp_path, recipe=star(total_images=16), every=8, tell=str)
    with pytest.raises(StoreError, match="holds a training of StarGAN v2"):
        dualstylegan.run(data[0], tmp_path, dualstylegan.DualStyleGANRecipe(total_images=8), tell=str)
    (tmp_path / loop.CHECKPOINT).unlink()
    with pytest.raises(StoreError, match=r"no .*checkpoint"):
        checkpoints.load(tmp_path / loop.CHECKPOINT, "step")


def test_a_loss_that_is_not_finite_keeps_the_checkpoint_before(sets, tmp_path):
    data = list(sets.values())
    steps = starganv2.train(star(), starganv2.reduced(data, 32), state := starganv2.State(star()))

    def spoilt():
        for row in steps:
            yield row | ({"cycle": float("nan")} if row["step"] == 4 else {})

    with pytest.raises(NonFiniteLoss, match="cycle"):
        how = dict(data={"folder": "pictures"}, every=8, sheet=lambda: torch.zeros(1, 3, 8, 8), tell=str)
        loop.follow(tmp_path, "StarGAN v2", star(), state, spoilt(), **how)
    assert checkpoints.load(tmp_path / loop.CHECKPOINT, "step")[1]["step"] == "2"
    (tmp_path / loop.LOG).write_text("step\nfour\n")
    with pytest.raises(StoreError, match=r"log.csv is damaged"):
        loop.follow(tmp_path, "StarGAN v2", star(), state, spoilt(), **how)


def test_starganv2_learns_to_reproduce(sets):
    pictures = starganv2.reduced(list(sets.values()), 32)
    assert pictures[0].shape == (16, 3, 32, 32) and pictures[0].dtype == torch.uint8
    one = sets["photo"].batch(torch.tensor([3]))[0]
    expected = torch.nn.functional.avg_pool2d(one, 4)[0]
    assert (pictures[0][3] / 127.5 - 1 - expected).abs().max() < 0.005
    recipe = star(total_images=240, lr=2e-3, lam_ds=0.0)
    rows = pd.DataFrame(starganv2.train(recipe, pictures, starganv2.State(recipe)))
    assert rows["cycle"][-10:].mean() < 0.8 * rows["cycle"][:5].mean()
    assert rows["R1"].notna().sum() == 15  # of 60 steps, every fourth


def test_the_average_follows_the_network(sets):
    state = starganv2.State(recipe := star())
    for _ in starganv2.train(recipe, starganv2.reduced(list(sets.values()), 32), state):
        pass
    moved = [(p - q).abs().max() for p, q in zip(state.ema.parameters(), state.nets.parameters(), strict=True)]
    fresh = starganv2.State(recipe)
    from_start = [(p - q).abs().max() for p, q in zip(state.ema.parameters(), fresh.ema.parameters(), strict=True)]
    assert max(moved) > 0 and max(from_start) > 0
    assert not any(p.requires_grad for p in state.ema.parameters())


# --- DualStyleGAN -----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(900)  # five minutes on a core without AVX-512
def test_the_stages_of_a_dualstylegan(sets, tmp_path):
    second = dualstylegan.DualStyleGANRecipe(stage="structure", total_images=16)
    begin = dualstylegan.run(sets["photo"], tmp_path / "structure", second, every=8, tell=str)
    source = weights.load_generator(dualstylegan.SOURCE).state_dict()
    recipe = dualstylegan.DualStyleGANRecipe(total_images=24)
    third = dualstylegan.run(sets["anime"], tmp_path / "anime", recipe, begin=begin, every=8, tell=str)
    frozen = third.net.generator.state_dict()
    assert all(torch.equal(frozen[k], v) for k, v in source.items())  # the face generator is as it was
    assert any(
        not torch.equal(p, q) for p, q in zip(third.net.res.parameters(), begin.ema.res.parameters(), strict=True)
    )
    log = pd.read_csv(tmp_path / "anime" / loop.LOG)
    assert {"perc", "cx", "fm", "id", "reg", "adversarial"} <= set(log)
    with pytest.raises(Stop):
        dualstylegan.run(sets["anime"], tmp_path / "parts", recipe, begin=begin, every=8, tell=stopping(2))
    with pytest.raises(StoreError, match="start = "):  # without the stage before, or after another one
        dualstylegan.run(sets["anime"], tmp_path / "parts", recipe, every=8, tell=str)
    assert same(dualstylegan.run(sets["anime"], tmp_path / "parts", recipe, begin=begin, every=8, tell=str), third)


def test_a_stage_has_a_name():
    with pytest.raises(UnknownName, match="did you mean 'structure'"):
        dualstylegan.DualStyleGANRecipe(stage="structur")


def test_contextual_loss_forgets_places():
    g = torch.Generator().manual_seed(0)
    b = torch.randn(2, 64, 6, 6, generator=g)
    shuffled = b.flatten(2)[:, :, torch.randperm(36, generator=g)].unflatten(2, (6, 6))
    other = torch.randn(2, 64, 6, 6, generator=g)
    same_, moved, apart = (float(dualstylegan.contextual(x, b)) for x in (b, shuffled, other))
    assert moved == pytest.approx(same_, abs=1e-5) == pytest.approx(0, abs=1e-3)
    assert apart > 1


def test_contextual_loss_by_hand():
    """Mechrez et al., Eqs. 2 to 4, position by position."""
    g = torch.Generator().manual_seed(1)
    a, b = (torch.randn(1, 5, 2, 2, generator=g, dtype=torch.float64) for _ in range(2))
    x, y = (f[0].flatten(1).T.numpy() - b[0].mean((1, 2)).numpy() for f in (a, b))
    d = np.array([[1 - xi @ yj / np.linalg.norm(xi) / np.linalg.norm(yj) for yj in y] for xi in x])
    w = np.array([np.exp((1 - row / (row.min() + 1e-5)) / 0.2) for row in d])
    cx = (w / w.sum(1, keepdims=True)).max(0).mean()
    assert float(dualstylegan.contextual(a, b)) == pytest.approx(-np.log(cx + 1e-5), rel=1e-6)


def test_paired_faces_do_not_give_their_colours_away():
    G = weights.load_generator(dualstylegan.SOURCE)
    w = G.mapping.w(torch.randn(4, 64, generator=torch.Generator().manual_seed(0)))[:, None].repeat(1, G.num_ws, 1)
    draw = lambda: torch.Generator().manual_seed(3)
    paired = dualstylegan._intrinsic(G, w, True, dualstylegan.DualStyleGANRecipe(), draw())
    assert torch.equal(paired[:, :8], w[:, :8]) and not torch.isclose(paired[:, 8:], w[:, 8:]).all(2).any()
    anybody = dualstylegan._intrinsic(G, w, False, dualstylegan.DualStyleGANRecipe(mixing_prob=0), draw())
    assert torch.equal(anybody, anybody[:, :1].expand_as(anybody)) and not torch.isclose(anybody, w).all(2).any()


def test_a_checkpoint_of_another_network_does_not_fit(tmp_path):
    state = starganv2.State(star())
    checkpoints.save(tmp_path / "c.safetensors", checkpoints.gather(state.parts), {"step": "1"})
    tensors, _ = checkpoints.load(tmp_path / "c.safetensors", "step")
    with pytest.raises(LayoutMismatch, match="checkpoint"):
        checkpoints.restore(starganv2.State(star(config={**star().config, "width": 4})).parts, tensors)
    with pytest.raises(StoreError, match="its seconds"):
        checkpoints.load(tmp_path / "c.safetensors", "step", "seconds")
    whole = (tmp_path / "c.safetensors").read_bytes()
    (tmp_path / "c.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="is damaged"):
        checkpoints.load(tmp_path / "c.safetensors", "step")


# --- what ships -------------------------------------------------------------------------------------------------------

SHIPPED = ["starganv2_portraits64", *(f"dualstylegan_{d}128" for d in ("cartoon", "caricature", "anime"))]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_baselines_have_cards_and_logs(name):
    net = weights.load_stylist(name)
    folder = Path(weights.path(name)).parent
    card = (folder / f"{name}.md").read_text()
    assert card.startswith(f"# {name}\n") and "- **Limits**" in card and "Frechet distance" in card
    log = pd.read_csv(folder / f"{name}.log.csv")
    assert f"{int(log['images'].iloc[-1]):,}" in card
    assert (folder / f"{name}.safetensors").stat().st_size < 5e6
    assert not net.training and not any(p.requires_grad for p in net.parameters())
