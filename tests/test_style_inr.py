"""Style-INR-GAN, Sec. III-A: any canvas, the INR as a function of coordinates, gradients."""

import pytest
import torch
import torch.nn.functional as F

from hrlib.errors import InvalidValue, ShapeError, UnknownName
from hrlib.nets import Discriminator, Generator, StyleINR
from hrlib.nets.style_inr import pixel_grid
from hrlib.nets.stylegan2 import FIR, block_resolutions, channel_plan, upsample_conv, upsample_image
from hrlib.nets.stylegan2_discriminator import downsample_conv

SMALL = dict(z_dim=8, w_dim=12, resolution=32, channels={4: 8, 8: 8, 16: 6, 32: 4}, mapping_layers=2)


@pytest.fixture(scope="module")
def G():
    torch.manual_seed(0)
    net = StyleINR(inr_hidden=10, **SMALL)
    with torch.no_grad():
        for name in net.synthesis.conv_names():
            net.synthesis.get_parameter(f"{name}.noise_strength").fill_(0.2)
    return net


def codes(G, n=1, seed=0):
    return G.mapping(torch.randn(n, G.z_dim, generator=torch.Generator().manual_seed(seed)))


def upfirdn(x, up):
    """Zero insertion, then the FIR filter times up^2: the definition, one channel at a time."""
    n, c, h, w = x.shape
    z = torch.zeros(n, c, h * up, w * up, dtype=x.dtype)
    z[:, :, ::up, ::up] = x
    z = F.pad(z, (2, 1, 2, 1))
    return F.conv2d(z.reshape(n * c, 1, *z.shape[2:]), FIR.to(x)[None, None] * up**2).reshape(n, c, h * up, w * up)


def test_composed_kernels_equal_filter_and_convolution():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 7, 9, generator=g, dtype=torch.float64)
    w = torch.randn(5, 3, 3, 3, generator=g, dtype=torch.float64)
    assert torch.allclose(upsample_image(x), upfirdn(x, 2), atol=1e-12)
    plain = F.pad(F.conv_transpose2d(x, w.transpose(0, 1), stride=2), (1, 1, 1, 1))
    fir = (FIR.double() * 4)[None, None].expand(5, 1, 4, 4)
    assert torch.allclose(upsample_conv(x, w), F.conv2d(plain, fir, groups=5), atol=1e-12)
    x = torch.randn(2, 3, 8, 10, generator=g, dtype=torch.float64)
    for k, pad in ((3, 2), (1, 1)):
        w = torch.randn(5, 3, k, k, generator=g, dtype=torch.float64)
        blurred = F.conv2d(F.pad(x, (pad,) * 4), FIR.double()[None, None].expand(3, 1, 4, 4), groups=3)
        assert torch.allclose(downsample_conv(x, w), F.conv2d(blurred, w, stride=2), atol=1e-12)


@pytest.mark.parametrize("size", [(32, 32), (48, 80), (33, 47), (5, 70), (100, 1)])
def test_any_canvas(G, size):
    x = G.synthesis(codes(G), size=size)
    assert x.shape == (1, 3, *size) and torch.isfinite(x).all()
    for name, m in G.noise_maps(size).items():
        res = int(name.split(".")[0][1:])
        assert m.shape == tuple(-(-n // (32 // res)) for n in size)


def test_native_size_said_or_unsaid_is_the_same_picture(G):
    ws = codes(G)
    assert torch.equal(G.synthesis(ws), G.synthesis(ws, size=(32, 32)))


def test_a_sub_grid_is_a_crop(G):
    ws = codes(G)
    whole = G.synthesis(ws, size=(48, 80))
    part = G.synthesis(ws, canvas=(48, 80), grid=pixel_grid((48, 80))[10:20, 30:61])
    assert torch.allclose(part, whole[:, :, 10:20, 30:61], atol=1e-5)


def test_sampling_a_fixed_canvas_more_densely_keeps_the_picture(G):
    ws = codes(G)
    dense = G.synthesis(ws, size=(64, 64), canvas=(32, 32), noise="none")
    assert dense.shape[2:] == (64, 64)
    coarse = G.synthesis(ws, noise="none")
    other = G.synthesis(codes(G, seed=9), noise="none")
    distance = (F.avg_pool2d(dense, 2) - coarse).abs().mean()
    assert distance < 0.25 * (coarse - other).abs().mean() + 0.05


def test_coordinates_reach_the_output(G):
    ws = codes(G)
    shifted = pixel_grid((32, 32)) * 0 + torch.tensor([0.3, -0.2])  # one point of the features, sampled everywhere
    flat = G.synthesis(ws, grid=shifted)
    assert torch.allclose(flat, flat[:, :, :1, :1].expand_as(flat), atol=1e-6)
    head = G.synthesis.inr
    features = torch.ones(1, 4, 8, 8)  # constant features: what varies now comes from the coordinates alone
    assert head(features, ws[:, -1], None).std((2, 3)).min() > 1e-4


def test_every_code_and_every_noise_map_matters_in_float64(G):
    net = StyleINR(**G.config).double()
    net.load_state_dict(G.state_dict())
    ws = codes(G).double().detach().requires_grad_()
    maps = {k: v.double().detach().requires_grad_() for k, v in G.noise_maps((20, 28)).items()}
    net.synthesis(ws, noise=maps, size=(20, 28)).square().sum().backward()
    assert (ws.grad.abs().amax(-1) > 0).all()
    assert all(m.grad.abs().max() > 0 for m in maps.values())


def test_gradient_check_in_float64():
    torch.manual_seed(0)
    net = StyleINR(
        z_dim=4, w_dim=4, resolution=16, channels={4: 3, 8: 3, 16: 2}, mapping_layers=1, inr_hidden=3
    ).double()
    ws = torch.randn(1, net.num_ws, 4, dtype=torch.float64, requires_grad=True)
    grid = pixel_grid((3, 4)).double() * 0.9 + 0.013
    f = lambda w: net.synthesis(w, noise="none", canvas=(16, 16), grid=grid)
    assert torch.autograd.gradcheck(f, (ws,), eps=1e-6, atol=1e-6)


def test_per_image_noise_and_batch_independence(G):
    ws = codes(G, n=2)
    sets = [G.noise_maps(seed=s) for s in (1, 2)]
    both = G.synthesis(ws, noise={k: torch.stack([s[k] for s in sets]) for k in sets[0]})
    for i in range(2):
        assert torch.allclose(both[i : i + 1], G.synthesis(ws[i : i + 1], noise=sets[i]), atol=1e-5)


def test_noise_draws_are_deterministic(G):
    a, b, c = G.noise_maps((40, 24)), G.noise_maps((40, 24)), G.noise_maps((40, 24), seed=1)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["b32.conv1"], c["b32.conv1"])


def test_clear_errors(G):
    ws = codes(G)
    with pytest.raises(UnknownName, match="const"):
        G.synthesis(ws, noise="konst")
    maps = G.noise_maps()
    with pytest.raises(UnknownName, match=r"b32\.conv1"):
        G.synthesis(ws, noise={k: v for k, v in maps.items() if k != "b32.conv1"})
    with pytest.raises(ShapeError, match=r"b4\.conv1"):
        G.synthesis(ws, noise=maps | {"b4.conv1": torch.zeros(5, 5)})
    with pytest.raises(ShapeError, match="grid"):
        G.synthesis(ws, grid=torch.zeros(3, 4))
    with pytest.raises(InvalidValue, match="power of two"):
        block_resolutions(96)
    with pytest.raises(InvalidValue, match="channel plan"):
        Generator(z_dim=4, w_dim=4, resolution=16, channels={4: 4, 8: 4})
    with pytest.raises(ShapeError, match="z of shape"):
        G.mapping(torch.zeros(2, 3))


@pytest.mark.parametrize("resolution", [16, 1024])
def test_extreme_resolutions_construct_and_count_codes(resolution):
    channels = channel_plan(resolution, base=resolution * 2, most=4)
    G = StyleINR(z_dim=4, w_dim=4, resolution=resolution, channels=channels, mapping_layers=1, inr_hidden=4)
    assert G.num_ws == {16: 6, 1024: 18}[resolution]
    with torch.no_grad():
        assert G.synthesis(torch.zeros(1, G.num_ws, 4)).shape[-1] == resolution
    D = Discriminator(resolution=resolution, channels=channels)
    assert next(iter(D.features(torch.zeros(1, 3, resolution // 2, resolution // 2)))) == f"b{resolution}"
    assert channel_plan(1024)[1024] == 32 and channel_plan(1024)[4] == 512
