"""MobileStyleGAN: its parts by their definitions, any size, noise; the reader of its files; parity with OpenVINO."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hrlib import directions, inversion, losses, metrics, mixing, optim, pivotal, tiling, weights
from hrlib.errors import DamagedFile, InvalidValue, LayoutMismatch, MissingWeights, ShapeError, UnknownName
from hrlib.nets.mobile_stylegan import MobileGenerator, inverse_haar
from hrlib.weights import openvino_ir

FIXTURE = Path(__file__).parent / "fixtures" / "11_mobile_stylegan" / "ffhq1024_io.npz"
TINY = dict(z_dim=8, w_dim=8, resolution=32, channels={4: 16, 8: 16, 16: 8}, mapping_layers=2)


@pytest.fixture
def G() -> MobileGenerator:
    torch.manual_seed(0)
    return MobileGenerator(**TINY).eval().requires_grad_(False)


def test_the_inverse_haar_transform_is_its_definition():
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out = inverse_haar(x)
    assert out.shape == (2, 2, 6, 10)
    for c in range(2):
        low, (lh, hl, hh) = x[:, c], (x[:, 2 + 3 * c + k] for k in range(3))
        torch.testing.assert_close(out[:, c, ::2, ::2], (low + lh + hl + hh) / 2)
        torch.testing.assert_close(out[:, c, ::2, 1::2], (low + lh - hl - hh) / 2)
        torch.testing.assert_close(out[:, c, 1::2, ::2], (low - lh + hl - hh) / 2)
        torch.testing.assert_close(out[:, c, 1::2, 1::2], (low - lh - hl + hh) / 2)
    assert torch.allclose(out.square().sum(), x.square().sum())  # orthonormal


def test_codes_layers_and_sizes(G):
    assert G.num_ws == 6 and G.synthesis.conv_names() == ["b4.conv1", "b8.conv0", "b8.conv1", "b16.conv0", "b16.conv1"]
    assert G.synthesis.canvas(None) == {4: (4, 4), 8: (8, 8), 16: (16, 16)}
    ws = G.mapping(torch.randn(2, 8))
    assert ws.shape == (2, 6, 8) and G.synthesis(ws).shape == (2, 3, 32, 32)
    for size in ((33, 70), (40, 32), (64, 17)):
        assert G.synthesis(ws, size=size).shape == (2, 3, *size)
        assert [tuple(m.shape) for m in G.noise_maps(size).values()][-1] == (-(-size[0] // 2), -(-size[1] // 2))
    base = G.synthesis(ws[:1])
    moved = []
    for code in range(6):
        other = ws[:1].clone()
        other[:, code] += 1
        moved.append(float((G.synthesis(other) - base).abs().mean()))
    assert min(moved) > 0, "every code is alive"


def test_noise_maps_are_added_to_the_published_noise(G):
    ws = G.mapping(torch.randn(1, 8))
    maps = G.noise_maps(seed=3)
    published = G.synthesis(ws)
    assert torch.equal(G.synthesis(ws, maps), published), "at strength 0 this is the published network"
    for name in G.synthesis.conv_names():
        G.synthesis.get_parameter(f"{name}.noise_strength").fill_(0.1)
    assert not torch.equal(G.synthesis(ws, maps), published)
    both = G.synthesis(ws.expand(2, -1, -1), {k: torch.stack([m, torch.zeros_like(m)]) for k, m in maps.items()})
    torch.testing.assert_close(both[1:], published)
    with pytest.raises(UnknownName, match="noise='cons'"):
        G.synthesis(ws, "cons")
    with pytest.raises(UnknownName, match=r"b4\.conv1"):
        G.synthesis(ws, {k: m for k, m in maps.items() if k != "b4.conv1"})
    with pytest.raises(ShapeError, match=r"b8\.conv0"):
        G.synthesis(ws, maps | {"b8.conv0": torch.zeros(3, 3)})


@pytest.mark.parametrize("size", [(32, 32), (33, 70), (90, 47)])
def test_a_window_is_drawn_exactly_as_in_the_whole(G, size):
    G = G.double()
    for name, v in (*G.synthesis.named_parameters(), *G.synthesis.named_buffers()):
        if "noise" in name:
            v.normal_(std=0.3)
    ws, maps = G.mapping(torch.randn(2, 8).double()), G.noise_maps(size, seed=1)
    whole = G.synthesis(ws, maps, size)
    for window in (
        (slice(0, 7), slice(5, 6)),
        (slice(11, 26), slice(3, 32)),
        (slice(size[0] - 3, size[0]), slice(0, 9)),
    ):
        part = G.synthesis(ws, maps, size, window=window)
        torch.testing.assert_close(part, whole[:, :, *window], rtol=0, atol=1e-12)
    assert torch.equal(G.synthesis(ws, "const", size), G.synthesis(ws, G.synthesis.const_maps(size), size))


def test_published_noise_repeats_beyond_its_own_size(G):
    layer = G.synthesis.b8.conv1
    layer.noise_const.normal_()
    drawn = layer.published((slice(6, 12), slice(0, 17)))
    assert torch.equal(drawn[:2, :8], layer.noise_const[6:]) and torch.equal(drawn[2:, 8:16], layer.noise_const[:4])


def test_fixed_noise_is_the_published_network(G):
    """Eq. (5) keeps the network's own noise, which is no map that could be normalised."""
    for name in G.synthesis.conv_names():
        G.synthesis.get_parameter(f"{name}.noise_strength").fill_(0.5)
    x = G.synthesis(G.mapping(torch.ones(1, 8))).clamp(-1, 1)
    done = optim.solve(inversion.invert(G, x, losses.MSE(), num_steps=2, w_samples=100, optimise_noise=False))
    assert not done.noise and torch.equal(done.image, G.synthesis(done.ws))


def test_tiles_add_up_to_the_whole(G):
    G = G.double()
    for name in G.synthesis.conv_names():
        G.synthesis.get_parameter(f"{name}.noise_strength").fill_(0.3)
    size, found = (45, 70), []
    target = torch.rand(1, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for net in (G, tiling.TiledGenerator(G, (16, 24))):
        ws = G.mapping(torch.ones(1, 8).double()).requires_grad_()
        maps = {k: m.clone().requires_grad_() for k, m in G.noise_maps(size).items()}
        picture = net.synthesis(ws, maps, size)
        found.append([picture, *torch.autograd.grad((picture - target).square().sum(), [ws, *maps.values()])])
    for whole, tiled in zip(*found, strict=True):
        torch.testing.assert_close(tiled, whole, rtol=1e-10, atol=1e-12)
    again = tiling.TiledGenerator(G, (16, 24)).synthesis(ws, "const", size)
    torch.testing.assert_close(again, G.synthesis(ws, "const", size), rtol=0, atol=1e-12)


def test_codes_and_weights_are_mixed_by_resolution(G):
    torch.manual_seed(1)
    other = MobileGenerator(**TINY).eval().requires_grad_(False)
    assert G.code_blocks == [4, 8, 8, 16, 16, 16]
    lam = {4: 0.1, 8: 0.2, 16: 0.3}
    ws = torch.stack([torch.zeros(6, 8), torch.ones(6, 8)])[:, None]
    mixed = mixing.lerp_ws(ws[0], ws[1], lam, code_blocks=G.code_blocks)
    torch.testing.assert_close(mixed[0, :, 0], torch.tensor([0.1, 0.2, 0.2, 0.3, 0.3, 0.3]))
    paper = lam | {32: 0.9}  # of a 32-pixel StyleGAN2: there is no b32 here
    assert torch.equal(mixing.lerp_ws(ws[0], ws[1], paper, code_blocks=G.code_blocks), mixed)
    with pytest.raises(UnknownName, match="lambdas"):
        mixing.lerp_ws(ws[0], ws[1], paper)  # six codes are otherwise those of a 16-pixel StyleGAN2
    with pytest.raises(UnknownName, match="lambdas"):
        mixing.lerp_ws(ws[0], ws[1], {4: 0.1, 16: 0.3}, code_blocks=G.code_blocks)
    G_m = mixing.lerp_generators(G, other, paper)
    for name in ("b4.const", "b8.up.affine.weight", "b16.conv0.depthwise", "b16.torgb.weight"):
        share = lam[int(name.split(".")[0][1:])]
        a, b, c = (net.synthesis.get_parameter(name) for net in (G, other, G_m))
        torch.testing.assert_close(c, torch.lerp(a, b, share))
    swapped = mixing.swap_layers(G, other, "b16")
    assert torch.equal(swapped.synthesis.b8.conv1.weight, G.synthesis.b8.conv1.weight)
    assert torch.equal(swapped.synthesis.b16.up.affine.weight, other.synthesis.b16.up.affine.weight)
    assert torch.equal(swapped.synthesis.b16.torgb.weight, other.synthesis.b16.torgb.weight)


def test_closed_form_directions_take_every_layer_that_a_code_drives(G):
    names = directions.layer_names(G)
    assert names == [*G.synthesis.conv_names(), "b16.torgb"] and len(names) == G.num_ws
    by_code = directions.closed_form(G, [1])
    by_name = directions.closed_form(G, ["b8.up", "b8.conv0"])
    assert all(torch.equal(a, b) for a, b in zip(by_code, by_name, strict=True))
    values, vectors = directions.closed_form(G)
    assert values.shape == (8,) and torch.allclose(vectors.T @ vectors, torch.eye(8).double(), atol=1e-10)


def test_impossible_configurations_are_refused():
    with pytest.raises(InvalidValue, match="channel plan"):
        MobileGenerator(**TINY | {"channels": {4: 16, 8: 16}})
    for resolution in (4, 8, 48):
        with pytest.raises(InvalidValue, match="a power of two from 16"):
            MobileGenerator(**TINY | {"resolution": resolution})


# --- files ------------------------------------------------------------------------------------------------------------


class Graph:
    """Writes a network as OpenVINO does: nodes, edges, and the numbers of the constants one after the other."""

    def __init__(self) -> None:
        self.nodes, self.edges, self.data, self.count = [], [], b"", 0

    def add(self, kind: str, *inputs: str, name: str = "", value: torch.Tensor | None = None) -> str:
        key, about = str(self.count), ""
        self.count += 1
        if value is not None:
            raw = value.detach().float().contiguous().numpy().astype("<f4").tobytes()
            shape = ", ".join(map(str, value.shape))
            about = f'<data element_type="f32" shape="{shape}" offset="{len(self.data)}" size="{len(raw)}"/>'
            self.data += raw
        self.nodes.append(
            f'<layer id="{key}" name="{name or f"{kind}_{key}"}" type="{kind}" version="opset1">{about}</layer>'
        )
        for port, source in enumerate(inputs):
            self.edges.append(f'<edge from-layer="{source}" from-port="0" to-layer="{key}" to-port="{port}"/>')
        return key

    def const(self, value: torch.Tensor, name: str = "") -> str:
        return self.add("Const", name=name, value=value)

    def write(self, path: Path) -> None:
        body = f"<layers>{''.join(self.nodes)}</layers><edges>{''.join(self.edges)}</edges>"
        path.write_text(f'<?xml version="1.0" ?>\n<net name="{path.stem}" version="10">{body}</net>')
        path.with_suffix(".bin").write_bytes(self.data)


def converted(G: MobileGenerator, folder: Path) -> Path:
    """The two networks of a generator as its package holds them."""
    m, g = G.mapping, Graph()
    x = g.add("Parameter")
    for i in range(m.num_layers):
        layer = getattr(m, f"fc{i}")
        x = g.add("MatMul", x, g.const(layer.weight))
        x = g.add("Add", x, g.add("Reshape", g.const(layer.bias)))
        x = g.add("PReLU", x)
    g.write(folder / "MappingNetwork.xml")
    s, g = G.synthesis, Graph()
    style = g.add("Parameter")

    def modulated(theirs: str, affine: torch.nn.Module) -> str:
        product = g.add("MatMul", style, g.const(affine.weight, f"{theirs}.modulation.weight"))
        return g.add("Add", product, g.const(affine.bias[None], f"{theirs}.modulation.bias"))

    def conv(x: str, theirs: str, layer: torch.nn.Module) -> str:
        x = g.add("Multiply", x, modulated(f"{theirs}.conv", layer.affine))
        if hasattr(layer, "depthwise"):
            x = g.add("GroupConvolution", x, g.const(layer.depthwise[:, None], f"{theirs}.conv.weight_dw"))
        x = g.add("Convolution", x, g.const(layer.weight, f"Mul_{g.count}_copy"))
        x = g.add("Add", x, g.const(layer.noise_const[None, None]))
        return g.add("PReLU", g.add("Add", x, g.const(layer.bias[None, :, None, None], f"{theirs}.bias")))

    x = conv(g.const(s.b4.const[None], "m.input.input"), "m.conv1", s.b4.conv1)
    for i, res in enumerate(s.resolutions[1:]):
        block = getattr(s, f"b{res}")
        x = g.add("Multiply", x, modulated(f"m.layers.{i}.up", block.up.affine))
        x = conv(x, f"m.layers.{i}.conv1", block.conv0)
        x = conv(x, f"m.layers.{i}.conv2", block.conv1)
    last = f"m.layers.{i}.to_img"
    x = g.add("Multiply", x, modulated(f"{last}.conv", block.torgb.affine))
    x = g.add("Convolution", x, g.const(block.torgb.weight, f"{last}.conv.weight"))
    g.add("Add", x, g.const(block.torgb.bias[None, :, None, None], f"{last}.bias"))
    g.write(folder / "SynthesisNetwork.xml")
    return folder


def test_a_network_comes_back_from_its_files(G, tmp_path):
    for name, buffer in G.synthesis.named_buffers():
        buffer.normal_(std=0.1)
    network = openvino_ir.mobile_stylegan(converted(G, tmp_path))
    assert network.config == TINY
    own, state = G.state_dict(), network.state
    assert state.keys() == own.keys() and all(torch.equal(state[k], own[k]) for k in own)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda t: t.replace('version="10"', 'version="11"'), "not a <net> of version 10"),
        (lambda t: t[: len(t) // 2], "ParseError"),
        (lambda t: t.replace("<net", '<!DOCTYPE net [<!ENTITY a "a">]><net', 1), "document type"),
        (lambda t: t.replace('offset="0"', 'offset="-4"', 1), "ends at byte|constant"),
        (lambda t: t.replace('offset="0"', 'offset="999999999"', 1), "ends at byte"),
        (lambda t: t.replace('element_type="f32"', 'element_type="f64"', 1), "KeyError"),
        (lambda t: t.replace('from-layer="0"', 'from-layer="9999"', 1), "do not exist"),
        (lambda t: t.replace('shape="8, 8"', 'shape="8, 4611686018427387904"', 1), "bytes for"),
    ],
)
def test_damaged_or_hostile_files_are_refused_by_name(G, tmp_path, damage, match):
    file = converted(G, tmp_path) / "MappingNetwork.xml"
    file.write_text(damage(file.read_text()))
    with pytest.raises(DamagedFile, match=match) as error:
        openvino_ir.mobile_stylegan(tmp_path)
    assert "MappingNetwork.xml" in str(error.value)


def test_truncated_numbers_and_missing_files_are_refused(G, tmp_path):
    numbers = converted(G, tmp_path) / "SynthesisNetwork.bin"
    whole = numbers.read_bytes()
    numbers.write_bytes(whole[:-3])
    with pytest.raises(DamagedFile, match="SynthesisNetwork"):
        openvino_ir.mobile_stylegan(tmp_path)
    numbers.unlink()
    with pytest.raises(DamagedFile, match=r"SynthesisNetwork\.bin"):
        openvino_ir.mobile_stylegan(tmp_path)


def test_another_network_is_no_mobile_stylegan(G, tmp_path):
    converted(G, tmp_path)
    file = tmp_path / "SynthesisNetwork.xml"
    file.write_text(file.read_text().replace("m.layers.0.conv1.bias", "m.layers.0.conv1.offset"))
    with pytest.raises(LayoutMismatch, match=r"m\.layers\.0\.conv1"):
        openvino_ir.mobile_stylegan(tmp_path)


def test_its_weights_can_be_tuned_around_a_code(G):
    ws = G.mapping(torch.randn(1, 8))
    x = (0.7 * G.synthesis(ws) + 0.1).clamp(-1, 1)
    tuned = optim.solve(pivotal.tune(G, ws, x, losses.named("mse"), num_steps=20, lr=1e-3))
    assert tuned.history[-1]["mse"] < tuned.history[0]["mse"]


def test_it_loads_converts_and_inverts_like_any_generator(G, tmp_path):
    file = converted(G, tmp_path) / "SynthesisNetwork.xml"
    loaded = weights.load_generator(file)
    assert not torch.equal(loaded.w_avg, G.w_avg), "the mean code is measured"
    again = weights.load_generator(weights.convert(file, tmp_path / "mobile"))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in loaded.state_dict().items())
    x = loaded.synthesis(loaded.mapping(torch.ones(1, 8)), size=(40, 64)).clamp(-1, 1)
    run = inversion.invert(loaded, x, losses.MSE(), num_steps=3, w_samples=100, optimise_noise=False)
    assert optim.solve(run).image.shape == x.shape
    with pytest.raises(MissingWeights, match=r"no file .*missing\.xml"):
        weights.load_generator(tmp_path / "missing.xml")


# --- the real network -------------------------------------------------------------------------------------------------


def ffhq() -> MobileGenerator:
    """The real network, or skip the test."""
    try:
        return weights.load_generator("ffhq_mobile1024")
    except MissingWeights:
        pytest.skip("the package random-face is missing: make faces")


def test_the_real_network_has_strengths_for_the_noise_of_eq_1():
    """The start of an inversion is the published picture but for noise that one hardly sees."""
    G = ffhq()
    strengths = {n: float(G.synthesis.get_parameter(f"{n}.noise_strength")) for n in G.synthesis.conv_names()}
    assert strengths == pytest.approx({n: strengths[n] for n in openvino_ir.SPREAD}) and min(strengths.values()) > 0
    ws = G.mapping(torch.randn(1, G.z_dim, generator=torch.Generator().manual_seed(40)), 0.7)
    published, noisy = G.synthesis(ws), G.synthesis(ws, G.noise_maps(seed=1))
    assert 27 < float(metrics.psnr(noisy.clamp(-1, 1), published.clamp(-1, 1))[0]) < 40


def test_parity_with_openvino():
    G = ffhq()
    expected = np.load(FIXTURE)
    w = G.mapping.w(torch.from_numpy(expected["in/z"]))
    assert np.abs(w.numpy() - expected["out/w"]).max() < 1e-5
    ws = torch.from_numpy(expected["in/w_for_images"])[:, None].expand(-1, G.num_ws, -1)
    for i in range(len(ws)):
        x = G.synthesis(ws[i : i + 1])
        small = torch.nn.functional.avg_pool2d(x, 16)
        for ours, key in (
            (small, "images_area64"),
            (x[..., 440:536, 330:458], "crop_eyes"),
            (x[..., 60:124, 480:544], "crop_hair"),
        ):
            assert np.abs(ours[0].numpy() - expected[f"out/{key}"][i]).max() < 3e-4, key


def test_a_picture_is_in_full_precision_under_autocast():
    G = MobileGenerator(z_dim=16, w_dim=16, resolution=32, channels=dict.fromkeys((4, 8, 16), 16))
    ws = G.mapping(torch.randn(1, G.z_dim, generator=torch.Generator().manual_seed(0))).detach()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        image = G.synthesis(ws)
    assert image.dtype == torch.float32
    assert (image - G.synthesis(ws)).abs().max() < 0.05 * image.abs().max()
