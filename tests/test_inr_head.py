"""The INR head on a StyleGAN2: what is shared, where it starts, that it learns, that a killed run goes on the same."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from hrlib import store, weights
from hrlib.errors import InvalidValue, LayoutMismatch, StoreError
from hrlib.nets import Generator, StyleINR
from hrlib.training import inr_head, loop
from hrlib.training.cli import app

NVLABS = Path(__file__).parent / "fixtures/01_stylegan2_ada/network-snapshot-res32.pkl"
ROSINALITY = Path(__file__).parent / "fixtures/02_rosinality/rosinality-64.pt"
TINY = inr_head.InrHeadRecipe(steps=6, batch=2, points=100, updates=2, hidden=8, seed=4)


def tiny(clamp=None):
    torch.manual_seed(2)
    G = Generator(
        z_dim=6, w_dim=7, resolution=32, channels={4: 8, 8: 8, 16: 8, 32: 6}, mapping_layers=2, conv_clamp=clamp
    )
    for p in G.parameters():  # biases, affine layers and noise strengths that are not at their initial values
        p.data += 0.1 * torch.randn_like(p)
    G.mapping.w_avg.normal_()
    return G.eval().requires_grad_(False)


def test_everything_but_the_head_is_the_generators_own_and_frozen():
    G = tiny()
    before = store.fingerprint(G.state_dict())
    S = inr_head.attach(G, hidden=8)
    own, theirs = S.state_dict(), G.state_dict()
    shared = [k for k in own if not k.startswith("synthesis.inr.")]
    assert sorted(shared) == sorted(k for k in theirs if ".torgb." not in k)
    assert all(torch.equal(own[k], theirs[k]) for k in shared)
    trained = {k for k, p in S.named_parameters() if p.requires_grad}
    assert trained == {k for k in own if k.startswith("synthesis.inr.")}
    state = inr_head.State(TINY, G)
    for _ in inr_head.train(TINY, G, state):
        pass
    trained_to = state.S.state_dict()
    assert all(torch.equal(trained_to[k], theirs[k]) for k in shared)
    assert store.fingerprint(G.state_dict()) == before


def test_a_head_starts_as_the_last_torgb():
    G = tiny()
    S = inr_head.attach(G, hidden=9)
    x, w, picture = inr_head.drawn(G, 3, torch.Generator().manual_seed(0))
    last = G.synthesis.b32.torgb(x, w)
    torch.testing.assert_close(S.synthesis.inr(x, w, None), last, atol=1e-5, rtol=1e-5)
    assert (picture - last).abs().mean() > 0.1  # so there is something left to learn
    ws = torch.randn(2, G.num_ws, G.w_dim, generator=torch.Generator().manual_seed(1))
    *_, (_, x, _) = G.synthesis.blocks(ws, "const")
    torch.testing.assert_close(S.synthesis(ws), G.synthesis.b32.torgb(x, ws[:, -1]), atol=1e-5, rtol=1e-5)


def test_samples_are_the_generators_pictures_at_any_canvas():
    G = tiny()
    rng = torch.Generator().manual_seed(3)
    z = torch.randn(2, G.z_dim, generator=torch.Generator().manual_seed(3))
    _, w, picture = inr_head.drawn(G, 2, rng)
    torch.testing.assert_close(w, G.mapping.w(z))
    g = torch.Generator().manual_seed(3)
    torch.randn(z.shape, generator=g), torch.rand(2, 1, generator=g), torch.rand([], generator=g)  # z, psi, mixing
    noise = {k: torch.randn(2, *m.shape, generator=g) for k, m in G.noise_maps().items()}
    torch.testing.assert_close(picture, G.synthesis(G.mapping(z), noise=noise))
    x, _, picture = inr_head.drawn(G, 2, rng, size=(40, 27))
    assert x.shape[2:] == picture.shape[2:] == (40, 27)


def test_training_draws_are_mixed_and_truncated():
    G = tiny()
    same = lambda **more: inr_head.drawn(G, 2, torch.Generator().manual_seed(3), **more)[1]
    torch.testing.assert_close(same(mixing_prob=1.0), same().flip(0))  # the last code is the other sample's
    pulled = same(psi_min=0.0)
    share = (pulled - G.w_avg) / (same() - G.w_avg)
    torch.testing.assert_close(share, share[:, :1].expand_as(share), atol=1e-3, rtol=1e-3)
    assert (share[:, 0] > 0).all() and (share[:, 0] < 1).all()


def test_the_head_learns_what_earlier_blocks_drew():
    G = tiny()
    recipe = replace(TINY, steps=60, batch=4, points=300, hidden=32, canvas_prob=0.0)
    state = inr_head.State(recipe, G)
    before = inr_head.measure(G, state.S, n=16)
    rows = list(inr_head.train(recipe, G, state))
    after = inr_head.measure(G, state.S, n=16)
    assert rows[-1]["mse"] < 0.5 * rows[0]["mse"]
    assert after["psnr"] > before["psnr"] + 2
    assert after["psnr_low"] <= after["psnr"]
    assert after["frechet"] < before["frechet"] and after["frechet_floor"] == before["frechet_floor"]


@pytest.mark.parametrize("source", [NVLABS, ROSINALITY], ids=["nvlabs", "rosinality"])
def test_foreign_checkpoints_get_a_head_and_a_card(source, tmp_path):
    recipe = replace(TINY, steps=2)
    found = inr_head.run(str(source), tmp_path / "net.safetensors", tmp_path, recipe, n=8, tell=lambda _: None)
    S, G = weights.load_generator(tmp_path / "net.safetensors"), weights.load_generator(source)
    assert type(S) is StyleINR and S.any_size
    assert torch.equal(S.mapping.fc0.weight, G.mapping.fc0.weight)
    assert S.synthesis(S.w_avg.repeat(1, S.num_ws, 1), size=(24, 50)).shape == (1, 3, 24, 50)
    text = (tmp_path / "net.md").read_text()
    assert f"{found['psnr']:.1f} dB" in text and source.name in text


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    source = tmp_path / "G.safetensors"
    weights.save_network(tiny(), source)
    quiet = {"n": 2, "every": 2, "tell": lambda _: None}

    def stop(line):
        if "step 4" in line:
            raise KeyboardInterrupt  # the checkpoint of step 4 is on the disk

    inr_head.run(str(source), tmp_path / "a.safetensors", tmp_path / "a", TINY, **quiet)
    with pytest.raises(KeyboardInterrupt):
        inr_head.run(str(source), tmp_path / "b.safetensors", tmp_path / "b", TINY, **quiet | {"tell": stop})
    assert not (tmp_path / "b.safetensors").exists()
    inr_head.run(str(source), tmp_path / "b.safetensors", tmp_path / "b", TINY, **quiet)
    a, b = (load_file(tmp_path / name / loop.CHECKPOINT) for name in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert any(k.startswith("opt/") for k in a)
    steps = [line.split(",")[0] for line in (tmp_path / "b" / loop.LOG).read_text().splitlines()]
    assert steps == ["step", "2", "4", "6"]
    other = tiny()
    other.synthesis.b4.const += 1
    weights.save_network(other, source, force=True)
    with pytest.raises(StoreError, match="with start = "):
        inr_head.run(str(source), tmp_path / "c.safetensors", tmp_path / "b", TINY, **quiet)
    weights.save_network(tiny(), source, force=True)
    with pytest.raises(StoreError, match=r"with lr = 0\.01"):
        inr_head.run(str(source), tmp_path / "c.safetensors", tmp_path / "b", replace(TINY, lr=0.5), **quiet)


def test_a_head_goes_where_it_was_told_and_replaces_nothing(tmp_path, monkeypatch):
    source = tmp_path / "G.safetensors"
    weights.save_network(tiny(), source)
    monkeypatch.chdir(tmp_path)
    fixed = f"style-inr --from {source} --steps 1 --n 2 --hidden 6 --threads 1 --device cpu"
    command = lambda words: CliRunner().invoke(app, [*fixed.split(), *words.split()])
    assert command("--out nets/lr_0.1").exit_code == 0
    assert sorted(f.name for f in (tmp_path / "nets").iterdir()) == ["lr_0.1.md", "lr_0.1.safetensors"]
    assert (tmp_path / "build/training/lr_0.1" / loop.CHECKPOINT).exists()
    text = (tmp_path / "nets/lr_0.1.md").read_text()
    assert text.startswith("# lr_0.1\n") and "--out lr_0.1.safetensors " in text

    def never(*_):
        pytest.fail("no step is taken from here on")
        yield

    monkeypatch.setattr(inr_head, "train", never)
    whole = (tmp_path / "nets/lr_0.1.safetensors").read_bytes()
    (tmp_path / "card.md").write_text("precious")
    refused = {
        "--out nets/lr_0.1": "is there already",
        "--out card.safetensors": "card.md is there already",
        "--out card.md/net": "cannot be written",
        f"--out {source} --force": "is the source itself",
        "--out new --folder nets": r"not empty",
    }
    for words, message in refused.items():
        done = command(words)
        assert isinstance(done.exception, StoreError) and message in str(done.exception), words
    for words in ("--out new --steps -1", "--out new --n 1", "--out new --hidden 5", "--out new --seed -1"):
        assert isinstance(command(words).exception, InvalidValue), words
    assert (tmp_path / "card.md").read_text() == "precious" and not (tmp_path / "new.safetensors").exists()
    assert (tmp_path / "nets/lr_0.1.safetensors").read_bytes() == whole


def test_what_cannot_have_a_head():
    with pytest.raises(LayoutMismatch, match="StyleINR"):
        inr_head.attach(inr_head.attach(tiny(), hidden=8))
    with pytest.raises(InvalidValue, match="at least 6"):
        inr_head.attach(tiny(), hidden=4)
