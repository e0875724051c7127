"""Layers with frozen weights: torch's numbers and gradients, and what is kept for the backward pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hrlib.nets import frozen, mobile_stylegan, stylegan2


def doubles(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("noise", [None, (5, 6), (2, 1, 5, 6)])
@pytest.mark.parametrize("with_factor", [True, False])
def test_activate_is_its_formula_with_its_gradients(noise, with_factor):
    u, bias = doubles(2, 3, 5, 6).requires_grad_(), doubles(3, seed=1)
    given = {"factor": doubles(2, 3, seed=2).abs() + 0.1 if with_factor else None, "noise": noise and doubles(*noise)}
    free = [u, *(v.requires_grad_() for v in given.values() if v is not None)]

    def by_name(u: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        values = iter(rest)
        return frozen.activate(u, *(None if v is None else next(values) for v in given.values()), bias)

    factor, added = given["factor"], given["noise"]
    z = u * (1 if factor is None else factor[:, :, None, None]) + (0 if added is None else added) + bias[:, None, None]
    assert torch.equal(by_name(*free), F.leaky_relu(z, 0.2))
    assert torch.autograd.gradcheck(by_name, free)


def test_conv2d_has_the_gradient_of_the_picture():
    x, weight = doubles(2, 4, 7, 6).requires_grad_(), doubles(4, 1, 3, 3)
    assert torch.autograd.gradcheck(lambda x: frozen.conv2d(x, weight, padding=1, groups=4), [x])
    assert torch.equal(frozen.conv2d(x, weight, padding=1, groups=4), F.conv2d(x, weight, padding=1, groups=4))


def test_inputs_stay_as_they_are():
    u, noise, bias = doubles(1, 3, 5, 6), doubles(5, 6), doubles(3)
    before = u.clone()
    frozen.activate(u, None, noise, bias)
    assert torch.equal(u, before)


@pytest.fixture(params=["stylegan2", "mobile"])
def generator(request):
    torch.manual_seed(0)
    if request.param == "stylegan2":
        G = stylegan2.Generator(z_dim=16, w_dim=16, resolution=32, channels={4: 8, 8: 8, 16: 8, 32: 8})
    else:
        G = mobile_stylegan.MobileGenerator(z_dim=16, w_dim=16, resolution=32, channels={4: 16, 8: 16, 16: 16})
    for name, p in G.named_parameters():
        if name.endswith("noise_strength"):
            p.data.fill_(0.3)
    return G.double()


def gradients(G, codes, maps):
    ws, noise = codes.clone().requires_grad_(), {k: m.clone().requires_grad_() for k, m in maps.items()}
    image = G.synthesis(ws, noise=noise)
    image.square().sum().backward()
    return [image.detach(), ws.grad, *(m.grad for m in noise.values())]


def test_frozen_and_learned_generators_agree(generator):
    G = generator
    ws = G.mapping(doubles(2, 16))
    maps = {k: doubles(2, *m.shape, seed=i) for i, (k, m) in enumerate(G.noise_maps().items())}
    learned = gradients(G, ws.detach(), maps)
    found = gradients(G.requires_grad_(False), ws.detach(), maps)
    assert torch.equal(found[0], learned[0])
    for a, b in zip(found[1:], learned[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))


def test_learned_weights_still_take_second_derivatives(generator):
    G = generator
    ws = G.mapping(doubles(1, 16)).detach().requires_grad_()
    (g,) = torch.autograd.grad(G.synthesis(ws).sum(), ws, create_graph=True)  # StyleGAN2's path length penalty
    g.square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in G.synthesis.parameters())


def test_a_frozen_layer_keeps_one_map():
    G = stylegan2.Generator(z_dim=16, w_dim=16, resolution=32, channels={4: 8, 8: 8, 16: 8, 32: 8})
    layer = G.requires_grad_(False).synthesis.b32.conv1
    x, w = torch.randn(1, 8, 32, 32, requires_grad=True), torch.randn(1, 16, requires_grad=True)
    noise = torch.randn(1, 32, 32, requires_grad=True)
    kept = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        kept[t.untyped_storage().data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        layer(x, w, noise, (slice(None), slice(None)))
    assert len([n for n in kept.values() if n >= x.numel()]) == 2, "the input, which the layer before keeps, and y"
