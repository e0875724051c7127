"""Eq. (6) and (7): parity with the authors' mixing, both ends exact, layer swapping as a special case, refusals."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import FIXTURES, kept

from hrlib import mixing, weights
from hrlib.errors import HRLibError, InvalidValue, LayoutMismatch, ShapeError, UnknownName
from hrlib.nets import StyleINR
from hrlib.nets.stylegan2 import Generator

IO = np.load(FIXTURES / "07_mixing" / "mix64_io.npz")
LAM = {4: 0.2, 8: 0.2, 16: 0.2, 32: 0.7, 64: 0.7}
SMALL = dict(z_dim=6, w_dim=8, resolution=16, channels={4: 8, 8: 6, 16: 4}, mapping_layers=2)


@cache
def pair64():
    source = FIXTURES / "01_stylegan2_ada" / "network-snapshot-res64.pkl"
    target = FIXTURES / "07_mixing" / "network-snapshot-res64-target.pkl"
    return weights.load_generator(source), weights.load_generator(target)


@cache
def ours() -> dict[str, torch.Tensor]:
    """Our value of every recorded output."""
    G_s, G_t = pair64()
    w_s, w_t = (torch.from_numpy(IO[f"in/{name}"]) for name in ("w_s", "w_t"))
    G_m, w_m = mixing.lerp_generators(G_s, G_t, LAM), mixing.lerp_ws(w_s, w_t, LAM)
    swapped, w_mix = mixing.swap_layers(G_s, G_t, "b32"), mixing.lerp_ws(w_s, w_t, mixing.swap_lambdas(64, "b32"))
    out = {"img_s": G_s.synthesis(w_s), "img_t": G_t.synthesis(w_t), "lam/w_m": w_m, "swap/w_mix": w_mix}
    out |= {"lam/img_Gm_wm": G_m.synthesis(w_m), "lam/img_Gm_ws": G_m.synthesis(w_s)}
    out |= {"lam/img_Gs_wm": G_s.synthesis(w_m)}
    out |= {"swap/img_G_ws": swapped.synthesis(w_s), "swap/img_G_wmix": swapped.synthesis(w_mix)}
    return out | {f"lam/param/{name}": value for name, value in G_m.synthesis.state_dict().items()}


@pytest.mark.parametrize("name", [k.removeprefix("out/") for k in IO.files if k.startswith("out/")])
def test_parity_with_the_authors_mixing(name):
    expected = IO[f"out/{name}"]
    found = kept(ours()[name].detach(), expected).numpy()
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()


def generator(seed: int, kind: type = Generator, **changes):
    torch.manual_seed(seed)
    G = kind(**{**SMALL, **({"inr_hidden": 8} if kind is StyleINR else {}), **changes}).requires_grad_(False)
    for p in [*G.parameters(), G.mapping.w_avg]:  # biases and noise strengths start as zeros in every generator
        p += 0.1 * torch.randn_like(p)
    return G


def states_equal(a, b) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", [Generator, StyleINR])
def test_both_ends_are_source_and_target_bit_for_bit(kind):
    G_s, G_t, ws = generator(1, kind), generator(2, kind), torch.randn(2, 6, 8)
    for lam, end in ((0.0, G_s), (1.0, G_t), (dict.fromkeys([4, 8, 16], 1), G_t)):
        G_m = mixing.lerp_generators(G_s, G_t, lam)
        assert states_equal(G_m.synthesis, end.synthesis)
        assert torch.equal(G_m.synthesis(ws), end.synthesis(ws))
    w_s, w_t = torch.randn(2, 2, 6, 8)
    assert torch.equal(mixing.lerp_ws(w_s, w_t, 0.0), w_s) and torch.equal(mixing.lerp_ws(w_s, w_t, 1.0), w_t)


@pytest.mark.parametrize("kind", [Generator, StyleINR])
@pytest.mark.parametrize(("first", "kept"), [("b4", ()), ("b8", ("b4.",)), ("b16", ("b4.", "b8."))])
def test_swapping_is_interpolation_by_zeros_and_ones(kind, first, kept):
    G_s, G_t, ws = generator(1, kind), generator(2, kind), torch.randn(2, 6, 8)
    swapped = mixing.swap_layers(G_s, G_t, first)
    mixed = mixing.lerp_generators(G_s, G_t, {res: int(f"b{res}." not in kept) for res in (4, 8, 16)})
    assert states_equal(swapped, mixed) and torch.equal(swapped.synthesis(ws), mixed.synthesis(ws))
    for name, value in swapped.synthesis.state_dict().items():  # and by hand
        origin = G_s if name.startswith(kept) else G_t
        assert torch.equal(value, origin.synthesis.state_dict()[name]), name


def test_mixing_changes_neither_and_keeps_the_sources_mapping():
    G_s, G_t = generator(1), generator(2)
    before = [{k: v.clone() for k, v in G.state_dict().items()} for G in (G_s, G_t)]
    G_m = mixing.lerp_generators(G_s, G_t, 0.5)
    G_m.synthesis.b4.const += 1
    w_s, w_t = torch.zeros(1, 6, 8), torch.ones(1, 6, 8)
    mixing.lerp_ws(w_s, w_t, 0.5).add_(1)
    assert not w_s.any() and w_t.all()
    for G, old in zip((G_s, G_t), before, strict=True):
        assert all(torch.equal(v, old[k]) for k, v in G.state_dict().items())
    assert states_equal(G_m.mapping, G_s.mapping) and not torch.equal(G_m.w_avg, G_t.w_avg)


def test_the_head_of_a_style_inr_gan_belongs_to_the_last_block():
    G_s, G_t = generator(1, StyleINR), generator(2, StyleINR)
    G_m = mixing.lerp_generators(G_s, G_t, {4: 0, 8: 0, 16: 1})
    assert states_equal(G_m.synthesis.inr, G_t.synthesis.inr) and states_equal(G_m.synthesis.b8, G_s.synthesis.b8)


def test_codes_go_to_blocks_in_pairs():
    mixed = mixing.lerp_ws(torch.zeros(1, 6, 2), torch.ones(3, 6, 2), {4: 0.0, 8: 0.25, 16: 1.0})
    assert mixed.shape == (3, 6, 2)
    assert mixed[0, :, 0].tolist() == [0, 0, 0.25, 0.25, 1, 1]
    in_any_order = mixing.lerp_ws(torch.zeros(1, 6, 2), torch.ones(3, 6, 2), {16: 1.0, 4: 0.0, 8: 0.25})
    assert torch.equal(in_any_order, mixed)


@settings(deadline=None)
@given(lam=st.floats(0, 1), other=st.floats(0, 1))
def test_interpolation_of_codes_is_affine(lam, other):
    w_s, w_t = torch.randn(2, 1, 6, 4, generator=torch.Generator().manual_seed(0)).double()
    a, b = mixing.lerp_ws(w_s, w_t, lam), mixing.lerp_ws(w_s, w_t, other)
    assert torch.allclose((a + b) / 2, mixing.lerp_ws(w_s, w_t, (lam + other) / 2), atol=1e-9)


def test_the_papers_lambdas():
    assert mixing.paper_lambdas(1024) == {r: 0.2 if r <= 64 else 0.7 for r in (4, 8, 16, 32, 64, 128, 256, 512, 1024)}
    assert mixing.paper_lambdas(64) == LAM
    assert [r for r, v in mixing.paper_lambdas(128, 0.1, 0.9).items() if v == 0.1] == [4, 8, 16]


def test_logistic_blending():
    lam = mixing.logistic_lambdas(128, "b32", 0.7)
    values = list(lam.values())
    assert lam[32] == 0.5 and values == sorted(values) and lam[64] == pytest.approx(1 / (1 + math.exp(-1 / 0.7)))
    step = mixing.logistic_lambdas(1024, "b64", 1e-6)
    assert step == {r: 0.0 if r < 64 else 0.5 if r == 64 else 1.0 for r in step}
    with pytest.raises(InvalidValue, match="width"):
        mixing.logistic_lambdas(128, "b32", 0.0)


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"resolution": 32, "channels": {4: 8, 8: 6, 16: 4, 32: 4}}, Generator, "resolution 16 and 32"),
        ({"channels": {4: 8, 8: 5, 16: 4}}, Generator, "6 and 5 channels in block b8"),
        ({"w_dim": 10}, Generator, "w_dim 8 and 10"),
        ({}, StyleINR, "a Generator and a StyleINR"),
    ],
)
def test_generators_of_different_architectures_are_refused_with_the_difference(changes, kind, said):
    with pytest.raises(LayoutMismatch, match=said):
        mixing.lerp_generators(generator(1), generator(2, kind, **changes), 0.5)


def test_other_heads_are_refused_and_other_mappings_are_not():
    with pytest.raises(LayoutMismatch, match="inr_hidden 8 and 6"):
        mixing.swap_layers(generator(1, StyleINR), generator(2, StyleINR, inr_hidden=6), "b8")
    G_s = generator(1)
    G_m = mixing.lerp_generators(G_s, generator(2, mapping_layers=3, z_dim=4, conv_clamp=256), 0.5)
    assert G_m.config == G_s.config and states_equal(G_m.mapping, G_s.mapping)


@pytest.mark.parametrize("lam", [{4: 0.5, 8: 0.5}, {4: 0.5, 8: 0.5, 16: 0.5, 32: 0.5}, {}, 1.1, -0.1, math.nan])
def test_lambdas_that_do_not_fit(lam):
    with pytest.raises(HRLibError, match="lambdas"):
        mixing.lerp_generators(generator(1), generator(2), lam)
    with pytest.raises(HRLibError, match="lambdas"):
        mixing.lerp_ws(torch.zeros(1, 6, 2), torch.zeros(1, 6, 2), lam)


def test_unknown_blocks_and_codes_of_other_shapes():
    with pytest.raises(UnknownName, match="did you mean 'b16'"):
        mixing.swap_layers(generator(1), generator(2), "b61")
    with pytest.raises(UnknownName, match="block 'b256'"):
        mixing.logistic_lambdas(128, "b256")
    for a, b in (((1, 6, 2), (1, 8, 2)), ((2, 6, 2), (3, 6, 2)), ((6, 2), (6, 2))):
        with pytest.raises(ShapeError, match="codes"):
            mixing.lerp_ws(torch.zeros(a), torch.zeros(b), 0.5)
