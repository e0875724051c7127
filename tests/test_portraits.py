"""The procedural portraits: determinism, geometry against the pictures themselves, and detail that is really random."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hrlib.errors import InvalidValue, ShapeError, UnknownName
from hrlib.worlds import portraits
from hrlib.worlds._common import hash01, noise

PLAIN = {
    "fringe": 0.0,
    "bun": 0.0,
    "hair_curl": 0.0,
    "hair_volume": 0.0,
    "glasses": 0.0,
    "beard": 0.0,
    "moustache": 0.0,
}
NEUTRAL = {"smile": 0.0, "mouth_open": 0.0, "brow_raise": 0.0, "lids": 0.0}


def plain(n: int, seed: int = 3, *, pose: dict | None = None, **identity: float) -> portraits.Portraits:
    """Portraits without accessories, frontal unless told otherwise."""
    people = portraits.sample(n, seed=seed)
    pose = {"yaw": 0.0, "pitch": 0.0, **(pose or {})}
    return people.replace(pose=pose, expression=NEUTRAL, identity={**PLAIN, **identity})


def project(camera: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """[N, K, 3] head points -> [N, K, 3] pixels (x, y) and depth."""
    q = camera[:, None] @ F.pad(points, (0, 1), value=1.0)[..., None]
    q = q[..., 0]
    return torch.cat((q[..., :2] / q[..., 2:], q[..., 2:].abs()), -1)


def centroid(weight: torch.Tensor) -> torch.Tensor:
    """[2] (x, y) of a non-negative [H, W] picture, in pixels whose first centre is at 0.5."""
    y, x = torch.meshgrid(torch.arange(weight.shape[0]) + 0.5, torch.arange(weight.shape[1]) + 0.5, indexing="ij")
    return torch.stack(((x * weight).sum(), (y * weight).sum())) / weight.sum()


def change(a: portraits.Portraits, b: portraits.Portraits, size: int) -> torch.Tensor:
    """[N, H, W] how much the pictures of two sets of parameters differ (the random detail is the same and cancels)."""
    return (portraits.render(a, size) - portraits.render(b, size)).abs().sum(1)


# --- parameters -------------------------------------------------------------------------------------------------------


def test_an_item_depends_on_seed_and_index_alone():
    many, few = portraits.sample(9, seed=5), portraits.sample(4, seed=5)
    for group in (*portraits.GROUPS, "detail_seed"):
        assert torch.equal(getattr(many, group)[:4], getattr(few, group))
    other = portraits.sample(4, seed=6)
    assert (other.get("skin_tone") != few.get("skin_tone")).all() and (other.pose != few.pose).all()
    assert len(set(portraits.sample(500).detail_seed.tolist())) == 500


def test_people_are_diverse_and_poses_near_frontal():
    people = portraits.sample(3000, seed=1)
    assert people.identity.abs().max() <= 1 and people.identity.shape == (3000, len(portraits.IDENTITY_NAMES))
    for name in ("skin_tone", "age"):  # even over their whole range
        quartiles = torch.histc(people.get(name), 4, -1, 1) / 3000
        assert quartiles.min() > 0.20 and quartiles.max() < 0.30
    yaw, pitch = people.pose.rad2deg().unbind(1)
    assert yaw.abs().max() <= 40 and pitch.abs().max() <= 20
    assert (yaw.abs() < 25).float().mean() > 0.85 and 10 < yaw.std() < 18
    for name, least in (("glasses", 0.1), ("bun", 0.03), ("beard", 0.1), ("fringe", 0.15), ("grey", 0.2)):
        worn = (people.get(name) > 0.5).float().mean()
        assert least < worn < 0.5, name


def test_replace_and_get_work_by_name():
    people = portraits.sample(3)
    turned = people.replace(pose={"yaw": torch.tensor([0.1, 0.2, 0.3])}, identity=people.identity.flip(0))
    assert turned.get("yaw").tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert torch.equal(turned.get("pitch"), people.get("pitch")) and people.get("yaw")[0] != 0.1
    assert torch.equal(turned.get("age"), people.get("age").flip(0))
    with pytest.raises(UnknownName, match="yaw"):
        people.get("yow")
    with pytest.raises(UnknownName, match="smile"):
        people.replace(expression={"smil": 1.0})
    with pytest.raises(TypeError, match="ident"):
        people.replace(ident={})
    with pytest.raises(ShapeError, match="identity"):
        people.replace(identity=torch.zeros(3, 2))


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, (45, 67)])
def test_pictures_are_bitwise_the_same_alone_in_a_batch_and_again(size):
    people = portraits.sample(5, seed=2)
    together = portraits.render(people, size)
    assert torch.equal(together, portraits.render(people, size, chunk=2))
    for i in (0, 3):
        assert torch.equal(together[i : i + 1], portraits.render(people[[i]], size))


@pytest.mark.parametrize("size", [32, (40, 72), (72, 40), (33, 51)])
@pytest.mark.parametrize("supersample", [1, 2, 3])
def test_any_size_and_range(size, supersample):
    height, width = (size, size) if isinstance(size, int) else size
    truth = portraits.render_with_truth(portraits.sample(2, seed=8), size, supersample)
    assert truth.image.shape == (2, 3, height, width) and truth.image.dtype == torch.float32
    assert truth.image.abs().max() <= 1 and truth.image.isfinite().all()
    assert truth.image.std(dim=(1, 2, 3)).min() > 0.1
    for mask in (truth.head_mask, truth.hair_mask):
        assert mask.shape == (2, 1, height, width) and mask.min() >= 0 and mask.max() <= 1 + 1e-5
    assert (truth.hair_mask <= truth.head_mask + 1e-5).all()
    assert truth.camera.shape == (2, 3, 4)


def test_impossible_sizes_are_refused():
    with pytest.raises(InvalidValue, match="size = 4"):
        portraits.render(portraits.sample(1), (4, 64))
    with pytest.raises(InvalidValue, match="supersample"):
        portraits.render(portraits.sample(1), 64, 0)


def test_a_wide_picture_shows_the_square_one_in_its_middle():
    people = portraits.sample(3, seed=4)
    square, wide = portraits.render(people, 64), portraits.render(people, (64, 96))[..., 16:80]
    error = (F.avg_pool2d(square - wide, 2) / 2).square().mean()  # the film's grain belongs to the pixel, not the scene
    assert -10 * error.log10() > 38


def test_sizes_show_the_same_scene():
    people = portraits.sample(3, seed=4)
    small, large = portraits.render(people, 64), F.avg_pool2d(portraits.render(people, 192), 3)
    error = (F.avg_pool2d(small - large, 4) / 2).square().mean()
    assert -10 * error.log10() > 28


# --- what the parameters do not explain -------------------------------------------------------------------------------


def test_the_detail_seed_changes_the_detail_and_nothing_else():
    people = portraits.sample(6, seed=11)
    a = portraits.render(people, 128)
    b = portraits.render(portraits.Portraits(**{**vars(people), "detail_seed": people.detail_seed + 1}), 128)
    coarse = F.avg_pool2d(a - b, 16)
    assert (a - b).std() > 0.05  # of a range of 2
    assert coarse.std() < 0.45 * (a - b).std()
    stranger = portraits.render(portraits.sample(6, seed=12), 128)
    assert coarse.std() < 0.12 * F.avg_pool2d(a - stranger, 16).std()


@pytest.mark.parametrize("size", [64, 128, 256])
def test_hair_has_random_detail_up_to_the_nyquist_frequency(size):
    people = plain(2, hair_length=0.6, grey=0.6, hair_tone=0.5)
    a = portraits.render_with_truth(people, size)
    b = portraits.render(portraits.Portraits(**{**vars(people), "detail_seed": people.detail_seed + 1}), size)
    d = (a.image - b).mean(1, keepdim=True)
    kernel = torch.tensor([[1.0, -2.0, 1.0]]) / 4  # passes the Nyquist frequency whole, half of it halved, zero not
    across = F.conv2d(d, kernel[None, None], padding=(0, 1)).square()
    inner = -F.max_pool2d(-a.hair_mask, 5, 1, 2) > 0.99
    wall = F.max_pool2d(a.head_mask, 9, 1, 4) < 0.01
    wall[:, :, size // 3 :] = False  # above the clothes
    hair, grain = across[inner].mean(), across[wall].mean()
    assert hair > 2 * grain > 0


# --- geometry ---------------------------------------------------------------------------------------------------------

POSES = [(0.0, 0.0), (0.35, 0.0), (-0.35, 0.1), (0.0, 0.2), (0.15, -0.2)]


@pytest.mark.parametrize("yaw,pitch", POSES)
def test_the_camera_puts_the_eyes_where_they_are_drawn(yaw, pitch):
    """Recolouring the irises changes the picture at the irises alone: their centroids are an oracle for the camera."""
    size = 96
    people = plain(2, hair_length=-0.6, pose={"yaw": yaw, "pitch": pitch})
    brown, blue = (people.replace(identity={"iris_hue": hue}) for hue in (-1.0, 1.0))
    truth = portraits.render_with_truth(people, size)
    pixels = project(truth.camera, truth.landmarks)
    for diff, at in zip(change(brown, blue, size), pixels, strict=True):
        middle = int(at[:2, 0].mean())
        left, right = diff.clone(), diff.clone()
        left[:, middle:], right[:, :middle] = 0, 0
        for k, eye in enumerate((left, right)):
            assert (centroid(eye) - at[k, :2]).norm() < 0.035 * size, (k, centroid(eye), at[k])


@pytest.mark.parametrize("yaw,pitch", POSES)
def test_the_camera_puts_the_mouth_where_it_is_drawn(yaw, pitch):
    size = 96
    people = plain(2, pose={"yaw": yaw, "pitch": pitch})
    bare, red = (people.replace(identity={"lip_tint": tint}) for tint in (0.0, 1.0))
    truth = portraits.render_with_truth(people, size)
    pixels = project(truth.camera, truth.landmarks)
    for diff, at in zip(change(bare, red, size), pixels, strict=True):
        assert (centroid(diff) - at[3:5, :2].mean(0)).norm() < 0.035 * size
        columns = (diff.sum(0) > 0.1 * diff.sum(0).max()).nonzero()
        assert columns.min() >= at[3, 0] - 0.04 * size and columns.max() <= at[4, 0] + 0.04 * size


@pytest.mark.parametrize("yaw,pitch", POSES)
def test_depth_agrees_with_the_camera(yaw, pitch):
    people = plain(2, hair_length=-1.0, pose={"yaw": yaw, "pitch": pitch})
    truth = portraits.render_with_truth(people, 96)
    for depth, at in zip(truth.depth[:, 0], project(truth.camera, truth.landmarks), strict=True):
        for name in ("left_eye", "right_eye", "nose_tip", "mouth_left", "mouth_right"):
            x, y, z = at[portraits.LANDMARK_NAMES.index(name)]
            assert abs(depth[int(y), int(x)] - z) < 0.06, name
        if yaw == pitch == 0:  # the nose is what is nearest
            nearest = depth.nan_to_num(99.0).flatten().argmin()
            assert (torch.tensor([nearest % 96, nearest // 96]) + 0.5 - at[2, :2]).norm() < 6


def test_yaw_turns_the_face_to_the_right_and_pitch_up():
    def offset(yaw: float, pitch: float) -> torch.Tensor:
        people = plain(4, pose={"yaw": yaw, "pitch": pitch})
        truth = portraits.render_with_truth(people, 64)
        at = project(truth.camera, truth.landmarks)
        return at[:, 2, :2] - at[:, :2, :2].mean(1)  # the nose's tip from the eyes' middle

    still = offset(0, 0)
    assert still[:, 0].abs().max() < 0.05
    assert (offset(0.4, 0)[:, 0] > 2).all() and (offset(-0.4, 0)[:, 0] < -2).all()
    assert (offset(0, 0.3)[:, 1] < still[:, 1] - 1).all() and (offset(0, -0.3)[:, 1] > still[:, 1] + 1).all()


def test_frontal_faces_are_aligned():
    """FFHQ's alignment: eyes a quarter of the width from the middle and near mid-height, face filling the picture."""
    people = portraits.sample(16, seed=9).replace(pose={"yaw": 0.0, "pitch": 0.0})
    truth = portraits.render_with_truth(people, 64)
    at = project(truth.camera, truth.landmarks)[..., :2] / 64
    assert (at[:, 0, 0] - 0.37).abs().max() < 0.03 and (at[:, 1, 0] - 0.63).abs().max() < 0.03
    assert (at[:, :2, 1] - 0.47).abs().max() < 0.03
    assert (at[:, 5, 1] > 0.8).all() and (at[:, 5, 1] < 0.98).all()  # the chin
    assert truth.head_mask[:, :, 20:40, 20:44].min() > 0.99 and truth.head_mask.mean((1, 2, 3)).min() > 0.25


# --- meaning of parameters --------------------------------------------------------------------------------------------


def test_hair_length_and_baldness():
    shares = [
        portraits.render_with_truth(plain(3, hair_length=h, hairline=0.0), 64).hair_mask.mean() for h in (-1, -0.4, 0.8)
    ]
    assert shares[0] == 0 and shares[0] < shares[1] < shares[2]


def test_skin_tone_darkens_the_face():
    light, dark = (portraits.render(plain(3, skin_tone=t), 64)[:, :, 30:50, 26:38].mean() for t in (-1.0, 1.0))
    assert dark < light - 0.4


def test_light_comes_from_its_azimuth():
    people = plain(3, hair_length=-1.0)
    left, right = (portraits.render(people.replace(light={"light_azimuth": a}), 64) for a in (-0.9, 0.9))
    balance = lambda x: x[:, :, 24:48, 36:46].mean() - x[:, :, 24:48, 18:28].mean()
    assert balance(left) < -0.1 and balance(right) > 0.1


@pytest.mark.parametrize(
    "group,name,values,rows",
    [
        ("identity", "glasses", (0.0, 1.0), (0.35, 0.62)),
        ("expression", "smile", (-0.2, 1.0), (0.45, 0.85)),
        ("expression", "mouth_open", (0.0, 0.8), (0.55, 0.95)),
        ("expression", "brow_raise", (-1.0, 1.0), (0.25, 0.55)),
        ("identity", "moustache", (0.0, 1.0), (0.55, 0.80)),
        ("background", "cloth_hue", (0.1, 0.6), (0.85, 1.0)),
    ],
)
def test_a_parameter_changes_its_own_part(group, name, values, rows):
    people = plain(2, hair_length=-0.5).replace(background={"cloth_saturation": 1.0})
    a, b = (people.replace(**{group: {name: v}}) for v in values)
    diff = change(a, b, 64)
    heights = (diff * (torch.arange(64)[:, None] + 0.5)).sum((1, 2)) / diff.sum((1, 2)) / 64
    assert diff.amax((1, 2)).min() > 0.15
    assert (heights > rows[0]).all() and (heights < rows[1]).all(), heights


def test_different_people_differ_more_than_two_pictures_of_one_person():
    people = plain(8, seed=21)
    first = people[[0] * 8]
    same_setting = portraits.Portraits(**{**vars(first), "identity": people.identity})
    strangers = portraits.render(same_setting, 64)
    again = portraits.render(portraits.Portraits(**{**vars(first), "detail_seed": people.detail_seed}), 64)
    coarse = lambda x: F.avg_pool2d(x, 4)
    between = torch.pdist(coarse(strangers).flatten(1))
    within = torch.pdist(coarse(again).flatten(1))
    assert between.min() > 2 * within.max()


# --- randomness -------------------------------------------------------------------------------------------------------


def test_hash_is_uniform_and_uncorrelated():
    x = hash01(torch.tensor(7), torch.arange(300)[:, None], torch.arange(300))
    assert x.min() >= 0 and x.max() < 1
    assert abs(x.mean() - 0.5) < 0.005 and abs(x.var() - 1 / 12) < 0.002
    for shifted in (
        x.roll(1, 0),
        x.roll(1, 1),
        x.T,
        hash01(torch.tensor(8), torch.arange(300)[:, None], torch.arange(300)),
    ):
        assert abs(torch.corrcoef(torch.stack((x.flatten(), shifted.flatten())))[0, 1]) < 0.015


def test_noise_has_its_variance_and_tiles_without_seams():
    seed = torch.tensor([5])
    at = torch.arange(400.0)[None]
    line = noise(at, torch.zeros_like(at), seed, 0)
    assert abs(line.mean()) < 0.2 and 0.2 < line.var() < 1.3  # crops start between nodes, which averages neighbours
    fine = torch.linspace(-700, 700, 200_001)[None]
    steps = noise(fine, 0.3 * fine, seed, 1).diff().abs()
    assert steps.max() < 0.15
