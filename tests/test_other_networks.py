"""The networks of the paper's comparison: parity with their authors' code, strict loading, hostile and odd files."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from recorded import FIXTURES, arrays, kept

from hrlib import weights
from hrlib.errors import (
    DamagedFile,
    HostileCheckpoint,
    InvalidValue,
    LayoutMismatch,
    ShapeError,
    UnknownName,
    WeightsError,
)
from hrlib.nets.dualstylegan import DualStyleGAN
from hrlib.nets.ir_se import IRSE
from hrlib.nets.starganv2 import StarGANv2

BASELINES, FACES = FIXTURES / "10_baselines", FIXTURES / "06_id_retrieval"
DUAL = BASELINES / "dualstylegan-64.pt"


def apart(ours, expected):
    """rel_max of the manifest: max |a - b| / max |b|."""
    return float((kept(ours.detach(), expected) - expected).abs().max() / expected.abs().max())


# --- StarGAN v2 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tag", "tolerance"), [("hpf0", 3e-5), ("hpf1", 8e-5)])
def test_starganv2_equals_its_authors_code(tag, tolerance):
    net = weights.load_stylist(BASELINES / f"starganv2_{tag}_nets_ema.pt")
    file = BASELINES / f"starganv2_{tag}_io.npz"
    given, expected = arrays(file, "in"), arrays(file, "out")
    style = net.style_encoder(given["x_ref"], given["y"])
    latent = net.mapping_network(given["z"], given["y"])
    ours = {"s_ref": style, "s_latent": latent}
    ours["img_ref"], ours["img_latent"] = (net.generator(given["x_src"], s) for s in (style, latent))
    if tag == "hpf1":
        ours["img_ref_masks"] = net.generator(given["x_src"], style, [given["mask0"], given["mask1"]])
    assert set(ours) == set(expected)
    for name, value in ours.items():
        assert apart(value, expected[name]) < tolerance, name


def test_starganv2_stylises_by_a_reference_of_a_domain():
    net = weights.load_stylist(BASELINES / "starganv2_hpf0_nets_ema.pt")
    given = arrays(BASELINES / "starganv2_hpf0_io.npz", "in")
    both = [net.stylise(given["x_src"], given["x_ref"], domain) for domain in (0, 1)]
    style = net.style_encoder(given["x_ref"], torch.tensor([1, 1]))
    assert torch.equal(both[1], net.generator(given["x_src"], style))
    assert not torch.allclose(*both)
    with pytest.raises(UnknownName, match="domain 'cat'"):
        net.stylise(given["x_src"], given["x_ref"], "cat")
    with pytest.raises(ShapeError, match="references of shape"):
        net.stylise(given["x_src"], given["x_ref"][:, :, :64], 0)


def test_our_own_starganv2_is_saved_and_loaded(tmp_path):
    net = StarGANv2(img_size=32, style_dim=8, latent_dim=4, num_domains=3, max_conv_dim=16, w_hpf=0, hidden=16, width=8)
    back = weights.load_stylist(weights.save_network(net, tmp_path / "star.safetensors"))
    assert back.config == net.config
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in net.state_dict().items())


def test_starganv2_without_a_part_is_refused(tmp_path):
    content = torch.load(BASELINES / "starganv2_hpf0_nets_ema.pt", weights_only=True)
    torch.save({k: v for k, v in content.items() if k != "style_encoder"}, tmp_path / "half.ckpt")
    with pytest.raises(LayoutMismatch, match=r"half\.ckpt"):
        weights.load_stylist(tmp_path / "half.ckpt")
    del content["generator"]["encode.0.conv1.bias"]
    torch.save(content, tmp_path / "lost.ckpt")
    with pytest.raises(LayoutMismatch, match=r"1 missing: generator\.encode\.0\.conv1\.bias"):
        weights.load_stylist(tmp_path / "lost.ckpt")
    content["generator"]["encode.0.conv1.bias"] = torch.zeros(8)
    content["fan"] = {"some.weight": torch.zeros(3)}  # the CelebA-HQ file carries its landmark network
    torch.save(content, tmp_path / "fan.ckpt")
    weights.convert(tmp_path / "fan.ckpt", tmp_path / "fan.safetensors", which="stylist")
    assert "without its landmark network" in weights.load_state(tmp_path / "fan.safetensors")[1]["card"]


# --- DualStyleGAN -----------------------------------------------------------------------------------------------------


def test_dualstylegan_equals_its_authors_code():
    net = weights.load_stylist(DUAL)
    given, expected = (arrays(BASELINES / "dualstylegan_io.npz", group) for group in ("in", "out"))
    names = net.generator.synthesis.conv_names()
    noise = {name: given[f"noises/noise_{i}"][0, 0] for i, name in enumerate(names)}
    repeated = lambda z: net.generator.mapping.w(z)[:, None].repeat(1, net.num_ws, 1)
    exstyle, ws = net.extrinsic(given["exstyle_zplus"]), repeated(given["z"])
    inside = {edge: (x, img) for edge, x, img in net.blocks(given["wplus"], given["exstyle_w"], None, noise)}
    fused = [1.0 if i <= 5 else 0.0 for i in range(net.num_ws)]
    half = [0.5] * net.num_ws
    ours = {
        "exstyle_from_zplus": exstyle,
        "transfer": net.synthesis(0.75 * net.extrinsic(given["zplus"]), exstyle, net.weights(), noise),
        "default_z": net.synthesis(ws, given["exstyle_z"], noise=noise),
        "default_z_const": net.synthesis(ws, given["exstyle_z"]),
        "wplus_exw": net.synthesis(given["wplus"], given["exstyle_w"], noise=noise),
        "no_res": net.synthesis(given["wplus"], given["exstyle_w"], [0] * net.num_ws, noise),
        "fuse_index5": net.synthesis(given["wplus"], given["exstyle_w"], fused, noise),
        "interp_half": net.synthesis(given["wplus"], given["exstyle_w"], half, noise),
        "feat_after_modres": inside[32][0],
        "skip_after_modres": inside[32][1],
    }
    assert set(ours) == set(expected)
    for name, value in ours.items():
        assert apart(value, expected[name]) < 2e-5, name


def test_dualstylegan_with_weight_zero_is_its_face_generator():
    net = weights.load_stylist(DUAL)
    ws, ex = torch.randn(2, 1, net.num_ws, net.w_dim, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net.synthesis(ws, ex, [0] * net.num_ws), net.generator.synthesis(ws))
    coloured, formed = net.stylise(ws, ex, structure=0, colour=1), net.stylise(ws, ex, structure=1, colour=0)
    assert not torch.allclose(coloured, formed)


def test_a_fresh_dualstylegan_hardly_changes_a_face_but_takes_the_colours():
    torch.manual_seed(0)
    config = dict(z_dim=16, w_dim=16, resolution=64, channels={4: 16, 8: 16, 16: 16, 32: 8, 64: 8}, mapping_layers=2)
    net = DualStyleGAN(generator=config)
    ws, ex = torch.randn(2, 1, net.num_ws, 16)
    face, mixed = net.generator.synthesis(ws), net.generator.synthesis(torch.cat([ws[:, :7], ex[:, 7:]], 1))
    result = net.synthesis(ws, ex)
    # Stage I of the article: before any training the extrinsic path mixes the styles of the fine layers.
    assert (result - mixed).square().mean() < 0.05 * (face - mixed).square().mean()


def test_dualstylegan_refuses_codes_that_do_not_fit():
    net = weights.load_stylist(DUAL)
    ws = torch.zeros(1, net.num_ws, net.w_dim)
    for bad in ({"ws": ws[:, 1:]}, {"exstyle": ws[0, :2]}, {"weights": [1.0]}):
        with pytest.raises(ShapeError, match="weights"):
            net.synthesis(**{"ws": ws, "exstyle": ws, **bad})
    with pytest.raises(InvalidValue, match="res_index 5"):
        DualStyleGAN(generator=net.generator.config, res_index=5)


def test_dualstylegan_has_a_mean_code_although_its_file_has_none():
    net = weights.load_stylist(DUAL)
    z = torch.randn(4000, net.z_dim, generator=torch.Generator().manual_seed(5))
    mean = net.generator.mapping.w(z).mean(0)
    assert (net.generator.w_avg - mean).norm() < 0.2 * mean.norm()


def test_a_rosinality_generator_is_not_a_stylist():
    with pytest.raises(LayoutMismatch, match=r"DualStyleGAN generator\.pt or a StarGAN v2"):
        weights.load_stylist(FIXTURES / "02_rosinality" / "rosinality-64.pt")
    with pytest.raises(LayoutMismatch, match="unknown keys"):
        weights.load_generator(DUAL)


# --- extrinsic codes --------------------------------------------------------------------------------------------------


def test_codes_are_read_without_trusting_the_pickle(tmp_path):
    rng = np.random.default_rng(0)
    codes = {f"Cartoons_{i}.jpg": rng.normal(size=(1, 18, 512)).astype(np.float32) for i in range(3)}
    np.save(tmp_path / "refined_exstyle_code.npy", codes, allow_pickle=True)
    found = weights.load_codes(tmp_path / "refined_exstyle_code.npy")
    assert list(found) == list(codes)
    assert all(np.array_equal(found[k].numpy(), codes[k]) for k in codes)


def test_fortran_and_double_precision_codes(tmp_path):
    value = np.asfortranarray(np.arange(24.0).reshape(1, 4, 6))
    np.save(tmp_path / "codes.npy", {"a.jpg": value}, allow_pickle=True)
    assert torch.equal(weights.load_codes(tmp_path / "codes.npy")["a.jpg"], torch.arange(24.0).reshape(1, 4, 6))


class Trap:
    """Unpickled by numpy itself, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_hostile_codes_execute_nothing(tmp_path):
    canary = tmp_path / "canary"
    np.save(tmp_path / "bad.npy", {"a.jpg": Trap(canary)}, allow_pickle=True)
    with pytest.raises(HostileCheckpoint, match="nothing was executed"):
        weights.load_codes(tmp_path / "bad.npy")
    assert not canary.exists()


@pytest.mark.parametrize(
    "content", [np.zeros(3), {"a": np.zeros(3, np.float32)}, {"a": "text"}, {"a": np.array([None])}, {}, [1, 2]]
)
def test_other_npy_files_are_refused(tmp_path, content):
    np.save(tmp_path / "odd.npy", content, allow_pickle=True)
    with pytest.raises(WeightsError, match=r"odd\.npy"):
        weights.load_codes(tmp_path / "odd.npy")


def test_truncated_codes_are_damaged(tmp_path):
    np.save(tmp_path / "codes.npy", {"a.jpg": np.zeros((1, 18, 64), np.float32)}, allow_pickle=True)
    whole = (tmp_path / "codes.npy").read_bytes()
    for length in (0, 5, 60, 200, len(whole) - 1):
        (tmp_path / "codes.npy").write_bytes(whole[:length])
        with pytest.raises(DamagedFile, match=r"codes\.npy"):
            weights.load_codes(tmp_path / "codes.npy")


# --- IR-SE50 ----------------------------------------------------------------------------------------------------------


def recipe_weights(net, seed):
    """The manifest's recipe for backbone_full_recipe: every tensor from a generator seeded by its key."""
    state = {}
    for key, value in net.state_dict().items():
        r, shape = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32), value.shape
        kind = key.rpartition(".")[2]
        if kind == "num_batches_tracked":
            made = np.array(1000)
        elif kind == "running_mean" or kind == "bias":
            made = 0.1 * r.randn(*shape)
        elif kind == "running_var":
            made = 0.5 + r.rand(*shape)
        elif len(shape) == 1:
            made = (0.8 + 0.4 * r.rand(*shape)).astype(np.float32)
            if isinstance(net.get_submodule(key.rpartition(".")[0]), torch.nn.PReLU):
                made = made * np.float32(0.25)
        else:
            made = r.randn(*shape) * np.sqrt(1 / np.prod(shape[1:]))
        state[key] = torch.from_numpy(np.asarray(made)).to(value.dtype)
    return state


def test_ir_se50_embeds_as_the_published_network(tmp_path):
    net = IRSE()
    torch.save(recipe_weights(net, 6002), tmp_path / "model_ir_se50.pth")
    net = weights.load_identity(tmp_path / "model_ir_se50.pth")
    file = FACES / "backbone_full_recipe_io.npz"
    given, expected = arrays(file, "in"), arrays(file, "out")
    for key in ("input_layer.0.weight", "input_layer.2.weight", "body.23.res_layer.5.fc2.weight"):
        assert torch.allclose(net.state_dict()[key].flatten()[:6], expected[f"recipe_check/{key}"])
    with torch.inference_mode():
        for size in ("112x112", "128x128"):
            assert apart(net.embed(given[f"img_{size}"]), expected[f"emb_{size}"]) < 3e-5
        flipped = weights.load_identity(tmp_path / "model_ir_se50.pth", bgr=True)
        rgb = given["img_112x112"]
        assert torch.equal(flipped.embed(rgb.flip(1)), net.embed(rgb))
    assert not net.training


def test_a_small_ir_se_embeds_as_the_published_class():
    net = IRSE(channels=[16, 16, 24, 32], units=[2, 2, 3, 2], dim=16).eval()
    weights.load_strictly(net, weights.load_state(FACES / "ir_se_small.pt")[0], "ir_se_small.pt")
    given, expected = (arrays(FACES / "backbone_small_io.npz", group) for group in ("in", "out"))
    for size in ("112x112", "144x160", "90x100"):
        assert apart(net.embed(given[f"img_{size}"]), expected[f"emb_{size}"]) < 2e-5


def test_ir_se_files_that_do_not_fit(tmp_path):
    with pytest.raises(LayoutMismatch, match="four stages of different widths"):
        weights.load_identity(FACES / "ir_se_small.pt")  # two stages of one width: their border is not in the file
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(LayoutMismatch, match="IR-SE network"):
        weights.load_identity(tmp_path / "other.pth")
    state = IRSE(channels=[16, 32, 48, 64], units=[1, 1, 2, 1], dim=32).state_dict()
    torch.save({k: v for k, v in state.items() if k != "body.3.res_layer.3.weight"}, tmp_path / "less.pth")
    with pytest.raises(LayoutMismatch, match=r"1 missing: body\.3\.res_layer\.3\.weight"):
        weights.load_identity(tmp_path / "less.pth")
    with pytest.raises(LayoutMismatch, match="bgr of identity_thin"):
        weights.load_identity(bgr=True)


def test_ir_se_is_converted_and_read_back(tmp_path):
    net = IRSE(channels=[16, 32, 48, 64], units=[1, 1, 2, 1], dim=32).eval()
    torch.save(net.state_dict(), tmp_path / "faces.pth")
    weights.convert(tmp_path / "faces.pth", tmp_path / "faces.safetensors", which="identity")
    x = torch.rand(2, 3, 50, 60, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(weights.load_identity(tmp_path / "faces.safetensors").embed(x), net.embed(x))
    with pytest.raises(ShapeError, match=r"\(3, 50, 60\)"):
        net.embed(x[0])
