"""nets/cips3d.py and nets/cameras.py: parity with the recorded outputs of the reference, and our own guarantees.

The fixture was made by running CIPS-3D (commit 5956813) with random weights and recorded draws. Metric: rel_max =
max |a - b| / max |reference|, per array, with the fixture's own tolerance.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from hrlib import weights
from hrlib.errors import HRLibError, InvalidValue, LayoutMismatch, MissingWeights, ShapeError, UnknownName
from hrlib.nets import CIPS3D, cameras, volume
from hrlib.nets.cips3d import truncate
from hrlib.worlds import portraits

FIXTURES = Path(__file__).parent / "fixtures" / "09_cips3d"
IO, TOLERANCE = FIXTURES / "cips3d_io.npz", 3e-5
SMALL = dict(z_dim=6, z_dim_inr=6, nerf_hidden=8, rgb_dim=6, nerf_style=8, inr_hidden=8, inr_style=8, inr_blocks=5)


def official():
    G = weights.load_generator3d(FIXTURES / "G_ema.pt")
    G.resolution = 16  # no file says it
    return G


def small(seed=0, **changes):
    torch.manual_seed(seed)
    G = CIPS3D(**SMALL | dict(resolution=8) | changes).requires_grad_(False)
    G.siren.final_layer.weight *= 500  # some of the rays shall stop within the volume
    return G


# --- parity -----------------------------------------------------------------------------------------------------------


@cache
def given():
    content = np.load(IO)
    return {k[3:]: torch.from_numpy(content[k]) for k in content.files if k.startswith("in/")}


def draws(run: str, noise: float) -> dict[str, torch.Tensor]:
    """The recorded draws of a run, by our names; the reference draws its noise unscaled, and at zero noise too."""
    ours = {"perturb": "perturb", "coarse_noise": "coarse", "pdf_u": "pdf", "fine_noise": "fine", "final_noise": "fine"}
    found = {}
    for key, value in given().items():
        if key.startswith(f"draw_{run}_") and (name := ours.get(key.split("_", 3)[3])):
            value = value.view(2, 256, 12) if name == "pdf" else value
            found[name] = value * noise if name in ("coarse", "fine") else value
    return found


@cache
def ours() -> dict[str, torch.Tensor]:
    """Our value of every recorded output, by its recorded name."""
    G, x = official(), given()
    styles = G.mapping(x["z_nerf"], x["z_inr"])
    out = {"style_nerf": styles["nerf"][:, 0], "style_inr": styles["inr"][:, 0]}
    out["siren_out"] = torch.cat(G.siren(x["points"], styles["nerf"]), -1)
    out["inr_out"] = G.inr_net(x["inr_in"], styles["inr"])
    out["inr_out_img_size64"] = G.inr_net(x["inr_in"], styles["inr"], blocks=5)  # 4, 8, 16, 32, 64
    values, sigma = x["rgb_sigma"].split((4, 1), -1)
    for how, options in {
        "plain": {},
        "last_back": {"last_back": True},
        "white_back": {"white_back": True},
        "softplus": {"clamp": "softplus"},
    }.items():
        parts = volume.integrate(values, sigma, x["z_vals"], **options)
        out |= {f"integrate_{how}_{k}": v for k, v in zip(("rgb", "depth", "weights"), parts, strict=True)}

    both = lambda v: torch.cat([v.image, v.aux])
    look = cameras.look_at(x["camera_pos"], x["camera_lookup"])
    theta, phi = (
        x[f"draw_pose_{k}"][:, 0] * G.camera[s] + math.pi / 2
        for k, s in (("1_theta", "h_stddev"), ("2_phi", "v_stddev"))
    )
    out["pose_pitch_yaw"] = torch.stack([phi, theta], 1).repeat(2, 1)
    out["cam_pitch_yaw"] = torch.zeros(4, 2)  # the reference does not know them when it is given a place
    out["cam_imgs"] = both(G.synthesis(styles, look, draws=draws("cam", 0.0)))
    out["cam_noise_imgs"] = both(G.synthesis(styles, look, draws=draws("cam", 0.5)))
    out["pose_imgs"] = both(G.synthesis(styles, cameras.sphere(theta, phi), draws=draws("pose", 0.0)))
    front = cameras.orbit(0.0, 0.0)
    out["nohier_imgs"] = both(G.synthesis(styles, front, draws=draws("nohier", 0.0), hierarchical=False))
    average = {k: x[f"avg_style_{k}"][:, None] for k in styles}
    out["cam_psi0.7_imgs"] = both(G.synthesis(truncate(styles, average, 0.7), look, draws=draws("cam", 0.0)))

    free = {k: v[:, 0].clone().requires_grad_() for k, v in styles.items()}
    spread = {k: v[:, None].expand(-1, styles[k].shape[1], -1) for k, v in free.items()}
    G.synthesis(spread, look, draws=draws("cam", 0.0)).image.square().sum().backward()
    return out | {f"grad_style_{k}": v.grad for k, v in free.items()}


def recorded():
    return [name[4:] for name in np.load(IO).files if name.startswith("out/") and name != "out/style_names"]


@pytest.mark.parametrize("name", recorded())
def test_equals_the_reference(name):
    reference, x = torch.from_numpy(np.load(IO)[f"out/{name}"]), ours()[name]
    assert x.shape == reference.shape and x.dtype == torch.float32
    assert (x - reference).abs().max() <= TOLERANCE * reference.abs().max()


def test_nothing_was_left_out():
    assert set(ours()) == set(recorded()) and len(recorded()) == 26
    assert official().style_names == np.load(IO)["out/style_names"].tolist()


# --- samples at the surface -------------------------------------------------------------------------------------------


def test_the_surface_is_found_between_two_samples():
    z = torch.linspace(0.8, 1.2, 9).view(1, 1, 9, 1).expand(1, 3, 9, 1)
    rising = 100 * (z - 0.93)
    sigma = torch.cat((rising[:, :1], -rising[:, :1], 10 - 400 * (z[:, :1] - 1.1).square()), 1)
    found = volume.surface(z, sigma, 2.0)[0, :, 0, 0]
    assert found[0] == pytest.approx(0.95, abs=1e-3), "interpolated"
    assert found[1] == pytest.approx(0.8, abs=1e-3), "dense from the first sample on"
    assert 0.9 < found[2] < 1.0, "the first of two crossings"
    assert volume.surface(z, -(z - 1.0).square(), 2.0)[0, 0, 0, 0] == pytest.approx(1.0), "nowhere: the densest place"


def test_focus_puts_the_samples_where_the_surface_is():
    """A ball: depths agree with evenly spaced rendering by many samples, at a fraction of the samples."""

    class Ball(torch.nn.Module):
        def density(self, points, styles):
            return 40_000 * (0.1 - points.norm(dim=-1, keepdim=True))

        def forward(self, points, styles):
            return torch.cat((points[..., 1:2] * 10, torch.zeros(*points.shape[:-1], 5)), -1), self.density(
                points, styles
            )

    common = dict(hierarchical_sample=False, fov=16.0, last_back=True)
    even = small(camera=common | dict(num_steps=400))
    near = small(camera=common | dict(num_steps=12, focus=6, focus_width=0.02))
    near.load_state_dict(even.state_dict())
    camera, styles = cameras.orbit(0.3, 0.1), even.average()
    even.siren = near.siren = Ball()
    a, b = (G.synthesis(styles, camera, 24) for G in (even, near))
    solid = a.opacity > 0.99
    assert 0.3 < solid.float().mean() < 0.9 and (solid == (b.opacity > 0.5)).float().mean() > 0.97
    assert (a.depth - b.depth)[solid].abs().mean() < 0.004
    draws = near.draws(1, 24 * 24, generator=torch.Generator().manual_seed(0))
    assert draws["perturb"].shape == (1, 576, 6, 1)
    told = near.synthesis(styles, camera, 24, draws=draws, centre=a.depth.flatten(2).mT[..., None])
    assert (a.depth - told.depth)[solid].abs().mean() < 0.004
    chunks = near.synthesis(styles, camera, 24, draws=draws, chunk=100)
    torch.testing.assert_close(chunks.image, near.synthesis(styles, camera, 24, draws=draws).image, rtol=0, atol=1e-5)


# --- what a view is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hierarchical", [False, True])
def test_chunks_change_nothing(hierarchical):
    """The view and its gradients stay the same, with and without random draws."""
    G = small(camera=dict(hierarchical_sample=hierarchical)).double()
    z = torch.randn(2, 6, dtype=torch.float64)
    given = {k: v.double() for k, v in G.draws(2, 80, generator=torch.Generator().manual_seed(0), noise=0.5).items()}
    for numbers in (None, given):
        found = []
        for chunk in (None, 7):
            styles = {k: v.clone().requires_grad_() for k, v in G.mapping(z).items()}
            yaw = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
            view = G.synthesis(styles, cameras.orbit(yaw, 0.1), (8, 10), chunk=chunk, draws=numbers)
            assert view.image.shape == view.aux.shape == (2, 3, 8, 10) and view.depth.shape == (2, 1, 8, 10)
            (view.image.square().sum() + view.depth.sum() + view.opacity.sum()).backward()
            found.append([view.image, view.aux, view.depth, view.opacity, *(v.grad for v in styles.values()), yaw.grad])
        for whole, parts in zip(*found, strict=True):
            torch.testing.assert_close(whole, parts, rtol=0, atol=1e-9)


def test_gradients_of_styles_and_camera_are_right():
    G = small().double()
    z = torch.randn(1, 6, dtype=torch.float64)
    styles = {k: v.clone().requires_grad_() for k, v in G.mapping(z).items()}
    angles = torch.tensor([0.2, -0.1], dtype=torch.float64, requires_grad=True)

    def see(nerf, inr, angles):
        view = G.synthesis({"nerf": nerf, "inr": inr}, cameras.orbit(angles[0], angles[1]), 3, hierarchical=False)
        return view.image, view.depth

    assert torch.autograd.gradcheck(see, (styles["nerf"], styles["inr"], angles), eps=1e-7, atol=1e-4)
    place = torch.tensor([[0.1, 0.2, 1.0]], dtype=torch.float64, requires_grad=True)
    fixed = {k: v.detach() for k, v in styles.items()}
    move = lambda p: G.synthesis(fixed, cameras.look_at(p, -p), 3, hierarchical=False).image
    assert torch.autograd.gradcheck(move, (place,), eps=1e-7, atol=1e-4)


def test_some_rays_are_those_of_the_whole_view():
    G = small()
    styles, camera = G.mapping(torch.randn(2, 6)), cameras.orbit(0.1, 0.0)
    whole = G.synthesis(styles, camera).image.flatten(2)
    rows = torch.tensor([[0, 5, 63], [7, 8, 9]])
    torch.testing.assert_close(
        G.synthesis(styles, camera, rays=rows).image[:, :, 0], whole.gather(2, rows[:, None].expand(-1, 3, -1))
    )
    torch.testing.assert_close(G.synthesis(styles, camera, rays=rows[0]).image[:, :, 0], whole[:, :, rows[0]])


def test_pixel_centres_show_the_same_picture_at_every_size():
    """Every third pixel of three times the size is the same ray; a wider picture shows more to both sides."""
    G = small(centres=True)
    styles, camera = G.mapping(torch.randn(1, 6)), cameras.orbit(0.2, 0.1)
    one = G.synthesis(styles, camera, 8).image
    torch.testing.assert_close(G.synthesis(styles, camera, 24).image[:, :, 1::3, 1::3], one, rtol=0, atol=1e-4)
    torch.testing.assert_close(G.synthesis(styles, camera, (8, 12)).image[:, :, :, 2:10], one, rtol=0, atol=1e-4)


def test_random_numbers_are_an_argument():
    G = small()
    styles, camera = G.mapping(torch.randn(1, 6)), cameras.orbit(0.0, 0.0)
    see = lambda **how: G.synthesis(styles, camera, **how).image
    drawn = lambda seed: see(draws=G.draws(1, 64, generator=torch.Generator().manual_seed(seed), noise=1.0))
    assert torch.equal(see(), see()) and torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


def test_truncation_moves_towards_the_average():
    G = small()
    z = torch.randn(3, 6)
    full, none = G.mapping(z), G.mapping(z, truncation_psi=0)
    for k, average in G.average().items():
        torch.testing.assert_close(none[k], average.expand_as(none[k]))
        torch.testing.assert_close(G.mapping(z, truncation_psi=0.5)[k], (full[k] + average) / 2)
    G.average()["nerf"].zero_()
    assert G.average()["nerf"].abs().sum() > 0, "the kept average is nobody else's to change"


# --- cameras ----------------------------------------------------------------------------------------------------------


def test_orbit_is_the_pose_of_the_portraits():
    """The camera's rotation is the inverse of the head's rotation in hrlib.worlds."""
    pose = torch.tensor([[0.4, 0.0], [-0.6, 0.2], [0.1, -0.3]])
    people = portraits.sample(3, seed=0).replace(pose=pose)
    matrix = portraits.camera(people, 64)[
        :, :, :3
    ]  # = K turn; rows of K: (focal, 0, -32), (0, -focal, -32), (0, 0, -1)
    turn = torch.stack([matrix[:, 0] - 32 * matrix[:, 2], -(matrix[:, 1] - 32 * matrix[:, 2]), -matrix[:, 2]], 1)
    turn[:, :2] /= turn[0, 0].norm()
    torch.testing.assert_close(cameras.orbit(*pose.T)[:, :3, :3], turn.mT, rtol=0, atol=1e-5)


def test_the_three_kinds_of_cameras_agree():
    front = torch.eye(4)
    front[2, 3] = 1
    place = torch.tensor([[0.0, 0.0, 1.0]])
    for camera in (cameras.orbit(0, 0), cameras.sphere(math.pi / 2, math.pi / 2), cameras.look_at(place, -3 * place)):
        torch.testing.assert_close(camera[0], front)
    torch.testing.assert_close(cameras.orbit(0.3, 0), cameras.sphere(math.pi / 2 + 0.3, math.pi / 2))
    torch.testing.assert_close(cameras.orbit(0, 0.3), cameras.sphere(math.pi / 2, math.pi / 2 + 0.3))
    assert cameras.orbit(torch.zeros(5), 0.1, 2.0)[:, :3, 3].norm(dim=1).allclose(torch.tensor(2.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: cameras.orbit(30.0, 0.0),
        lambda: cameras.orbit(0.0, 1.6),
        lambda: cameras.orbit(float("nan"), 0.0),
        lambda: cameras.orbit(0.0, 0.0, radius=-1.0),
        lambda: cameras.sphere(0.0, 0.0),
        lambda: cameras.look_at(torch.zeros(1, 3), torch.zeros(1, 3)),
        lambda: cameras.look_at(torch.zeros(1, 3), torch.tensor([[0.0, -1.0, 0.0]])),
        lambda: small().synthesis(small().mapping(torch.randn(2, 6)), 2 * torch.eye(4)[None]),
        lambda: small().synthesis(small().mapping(torch.randn(1, 6)), torch.diag(torch.tensor([1.0, 1, -1, 1]))[None]),
        lambda: small().synthesis(small().mapping(torch.randn(1, 6)), torch.eye(4)[None] * float("inf")),
        lambda: small().synthesis(small().mapping(torch.randn(1, 6)), torch.eye(4)[None], 0),
        lambda: small(inr_blocks=3),
    ],
)
def test_wrong_values_are_refused(make):
    with pytest.raises(InvalidValue) as e:
        make()
    assert e.value.expected and e.value.do


@pytest.mark.parametrize(
    "make",
    [
        lambda: cameras.orbit(torch.zeros(3), torch.zeros(2)),
        lambda: cameras.look_at(torch.zeros(2, 3), torch.ones(1, 3)),
        lambda: cameras.look_at(torch.zeros(3), torch.ones(3)),
        lambda: small().synthesis(small().mapping(torch.randn(2, 6)), torch.eye(4)),
        lambda: small().synthesis(small().mapping(torch.randn(2, 6)), torch.eye(4).repeat(3, 1, 1)),
        lambda: small().synthesis({"nerf": torch.zeros(1, 3, 8)}, torch.eye(4)[None]),
        lambda: small().mapping(torch.randn(2, 7)),
    ],
)
def test_wrong_shapes_are_refused(make):
    with pytest.raises(ShapeError) as e:
        make()
    assert e.value.expected and e.value.do


def test_camera_files(tmp_path):
    file = tmp_path / "cameras.json"
    forms = [
        {"yaw": 0.3, "pitch": 0},
        {"position": [0, 0, 1], "direction": [0, 0, -1]},
        {"matrix": cameras.orbit(0.3, 0)[0].tolist()},
    ]
    file.write_text(json.dumps(forms))
    found = cameras.read(file)
    assert found.shape == (3, 4, 4)
    torch.testing.assert_close(found[0], found[2])
    file.write_text(json.dumps(forms[1]))
    torch.testing.assert_close(cameras.read(file), cameras.orbit(0, 0))


@pytest.mark.parametrize(
    "content,error,word",
    [
        ("{", InvalidValue, "JSON"),
        ("[]", InvalidValue, "no camera"),
        ('[{"yaw": 0, "pitch": 0}, {"yaw": 1}]', InvalidValue, "camera 1"),
        ('{"yaw": "left", "pitch": 0}', InvalidValue, "camera 0"),
        ('{"yaw": 90, "pitch": 0}', InvalidValue, "camera 0 .*degrees"),
        ('{"position": [0, 0], "direction": [0, 0, 1]}', ShapeError, "camera 0"),
        ('{"matrix": [[1, 2], [3, 4]]}', ShapeError, "camera 0 .*4, 4"),
        ("3", InvalidValue, "camera 0"),
    ],
)
def test_bad_camera_files_say_which_entry_and_what_is_right(tmp_path, content, error, word):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(error, match=f"(?s){word}"):
        cameras.read(tmp_path / "c.json")
    with pytest.raises(InvalidValue, match="none"):
        cameras.read(tmp_path / "none.json")


# --- files ------------------------------------------------------------------------------------------------------------


def directory(folder, text="train:\n  G_kwargs: {fov: 14, ray_start: 0.8, ray_end: 1.1, num_steps: 6, extra: 1}\n"):
    state = torch.load(FIXTURES / "G_ema.pt", weights_only=True)
    torch.save(state, folder / "G_ema.pth")
    if text is not None:
        (folder / "config_command.yaml").write_text(text)
    return state


def test_an_official_directory_loads_with_its_camera(tmp_path):
    state = directory(tmp_path)
    G = weights.load_generator3d(tmp_path)
    assert G.camera["fov"] == 14.0 and G.camera["num_steps"] == 6 and G.camera["hierarchical_sample"] is True
    assert all(torch.equal(v, state[k]) for k, v in G.state_dict().items())
    assert not any(p.requires_grad for p in G.parameters())
    alone = weights.load_generator3d(tmp_path / "G_ema.pth")
    assert alone.camera["fov"] == 12.0
    file = weights.convert(tmp_path / "G_ema.pth", tmp_path / "ours.safetensors", which="generator3d")
    assert weights.load_generator3d(file).config == alone.config


def test_wrong_directories_and_files_are_told_apart(tmp_path):
    with pytest.raises(LayoutMismatch, match=r"lacks G_ema\.pth and config_command\.yaml \(it holds nothing\)"):
        weights.load_generator3d(tmp_path)
    directory(tmp_path, None)
    with pytest.raises(LayoutMismatch, match=r"lacks config_command\.yaml"):
        weights.load_generator3d(tmp_path)
    for text in (
        "a: [",
        "a: 1",
        "3",
        "",
        "train: {G_kwargs: {fov: 12}}",
        "train: {G_kwargs: {fov: wide, ray_start: 0.8, ray_end: 1.1, num_steps: 6}}",
        "train: {G_kwargs: {fov: .nan, ray_start: 0.8, ray_end: 1.1, num_steps: 6}}",
        "!!python/object/apply:os.system ['true']",
    ):
        directory(tmp_path, text)
        with pytest.raises(LayoutMismatch, match="G_kwargs"):
            weights.load_generator3d(tmp_path)
    with pytest.raises(MissingWeights):
        weights.load_generator3d(tmp_path / "none.pth")
    with pytest.raises(MissingWeights, match="cips3d"):
        weights.load_generator3d("cips3d_cartoon")


def test_state_dicts_that_do_not_fit_are_refused(tmp_path):
    state = directory(tmp_path)
    bad = {
        "lacks": {k: v for k, v in state.items() if k != "aux_to_rbg.0.bias"},
        "has more": state | {"extra": torch.zeros(1)},
        "shape": state | {"siren.color_layer_linear.0.bias": torch.zeros(3)},
        "no siren": {"weight": torch.zeros(3)},
        "no blocks": {k: v for k, v in state.items() if not k.startswith("inr_net")},
    }
    for name, content in bad.items():
        torch.save(content, tmp_path / "bad.pth")
        with pytest.raises(LayoutMismatch):
            weights.load_generator3d(tmp_path / "bad.pth")
        assert name


def test_configurations_that_make_no_sense_are_refused():
    with pytest.raises(UnknownName, match="field"):
        CIPS3D(**SMALL, camera={"field": 1})
    assert issubclass(UnknownName, HRLibError)
