"""Our StyleGAN2, fed with converted foreign checkpoints, against every output that the reference code gave.

The reference is stylegan2-ada-pytorch (commit d72cc7d) and rosinality's stylegan2-pytorch (commit bef283a), with random
weights. Metric: rel_max = max |a - b| / max |reference|, per array, with the fixtures' own
tolerances. One test per recorded array.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from recorded import FIXTURES, arrays, kept

from hrlib import weights

NVLABS, ROSINALITY = FIXTURES / "01_stylegan2_ada", FIXTURES / "02_rosinality"
CASES = {  # io file -> (checkpoint, tolerance)
    NVLABS / "res32_io.npz": (NVLABS / "network-snapshot-res32.pkl", 2e-5),
    NVLABS / "res64_io.npz": (NVLABS / "network-snapshot-res64.pkl", 3e-5),
    ROSINALITY / "size64_io.npz": (ROSINALITY / "rosinality-64.pt", 2e-5),
}


@cache
def ours(io: Path) -> dict[str, torch.Tensor]:
    """Our value of every recorded output, by its recorded name."""
    checkpoint = CASES[io][0]
    G, D = weights.load_generator(checkpoint), weights.load_discriminator(checkpoint)
    given = arrays(io, "in")
    compute = nvlabs if checkpoint.suffix == ".pkl" else rosinality
    return {name: x.detach() for name, x in compute(G, D, given).items()}


def nvlabs(G, D, given):
    z, ws, images = given["z"], given["ws"], given["d_img"]
    out = {
        "ws_psi1": G.mapping(z),
        "ws_psi0.7": G.mapping(z, truncation_psi=0.7),
        "ws_psi0.5_cutoff3": G.mapping(z, truncation_psi=0.5, truncation_cutoff=3),
        "img_z_psi0.7_const": G.synthesis(G.mapping(z, truncation_psi=0.7)),
        "img_ws_const": G.synthesis(ws, noise="const"),
        "img_ws_none": G.synthesis(ws, noise="none"),
    }
    for res, x, img in G.synthesis.blocks(ws[:1]):
        out |= {f"blk_b{res}_x": x, f"blk_b{res}_img": img}

    ws = ws.clone().requires_grad_()
    noise = {name: m.clone().requires_grad_() for name, m in G.noise_maps().items()}
    (G.synthesis(ws, noise=noise) * given["probe"]).sum().backward()
    out |= {"grad_ws": ws.grad, **{f"grad_noise/{name}.noise_const": m.grad for name, m in noise.items()}}

    features = D.features(images)
    mixed = D.b4.minibatch_std(features["b4"])
    hidden = D.b4.conv(mixed)
    # the reference calls what a block outputs by the block's name
    out |= {f"d_{block}_x": x[:2] for block, x in zip(features, list(features.values())[1:], strict=False)}
    out |= {"d_b4_mbstd": mixed, "d_b4_conv": hidden, "d_b4_fc": D.b4.fc(hidden.flatten(1))}
    return out | {f"d_logits_n{n}": D(images[:n]) for n in (8, 3, 1)}


def rosinality(G, D, given):
    z, wplus, images = given["z"], given["wplus"], given["d_img"]
    maps = [given[f"noises/noise_{i}"][0, 0].clone().requires_grad_() for i in range(G.num_ws - 1)]
    noise = dict(zip(G.noise_maps(), maps, strict=True))
    out = {
        "w": G.mapping(z)[:, 0],
        "latent_trunc0.7": G.mapping(z, truncation_psi=0.7),
        "img_const": G.synthesis(G.mapping(z)),
        "img_noise": G.synthesis(G.mapping(z), noise=noise),
        "img_trunc0.7_const": G.synthesis(G.mapping(z, truncation_psi=0.7)),
        "img_mix_inject3_const": G.synthesis(torch.cat([G.mapping(z)[:, :3], G.mapping(given["z2"])[:, 3:]], dim=1)),
        "img_wplus_noise": G.synthesis(wplus, noise=noise),
    }
    wplus = wplus.clone().requires_grad_()
    (G.synthesis(wplus, noise=noise) * given["probe"]).sum().backward()
    out |= {"grad_wplus": wplus.grad, **{f"grad_noise_{i}": m.grad[None, None] for i, m in enumerate(maps)}}

    counts = [1] + [2] * len(D.resolutions)  # pictures of which the reference kept the map
    out |= {f"d_convs{i}": x[: counts[i]] for i, x in enumerate(D.features(images).values())}
    return out | {f"d_logits_n{n}": D(images[:n]) for n in (8, 3)}


def recorded():
    return [
        pytest.param(io, name[4:], id=f"{io.stem.removesuffix('_io')}-{name[4:]}")
        for io in CASES
        for name in np.load(io).files
        if name.startswith("out/")
    ]


@pytest.mark.parametrize("io,name", recorded())
def test_equals_the_reference(io, name):
    reference = torch.from_numpy(np.load(io)[f"out/{name}"])
    x = kept(ours(io)[name], reference)
    assert x.dtype == torch.float32
    assert (x - reference).abs().max() <= CASES[io][1] * reference.abs().max()


def test_nothing_was_left_out():
    assert len(recorded()) == 91
    for io in CASES:
        assert set(ours(io)) == {name[4:] for name in np.load(io).files if name.startswith("out/")}
