"""Procedural portraits with ground truth: a parametric head, drawn as a photograph and in three other styles.

    people = sample(16, seed=1)
    x = render(people, 128)                                      # [16, 3, 128, 128] in [-1, 1]
    turned = people.replace(pose={"yaw": 0.5})                   # the same people, looking to the picture's right
    truth = render_with_truth(turned, (96, 160))                 # with masks, depth, camera, landmarks
    film = render(people, 128, domain="cartoon")                 # the same people in another of DOMAINS

A picture is a function of the named parameters below and of `detail_seed`, which determines what the parameters do not:
strands of hair, pores, freckles, fabric and film grain. This detail reaches the Nyquist frequency at every size, so a
generator trained on these pictures has a use for its noise inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from dataclasses import replace as _replace

import torch
from torch import Tensor

from ..errors import ShapeError, UnknownName, nearest, number
from . import _scene
from ._anime import ANIME
from ._caricature import CARICATURE
from ._cartoon import CARTOON
from ._common import Named, hash01, mix, sides, smooth
from ._domain import PHOTO

# The average is 0 and the usual range -1 to 1, unless a comment says otherwise.
IDENTITY_NAMES = (
    "head_width", "head_height", "jaw_width", "chin", "cheeks", "fullness",  # proportions; +1 is wide or long
    "eye_size", "eye_spacing", "eye_tilt", "iris_hue",  # iris: -1 dark brown, hazel, green, 1 blue
    "nose_length", "nose_width", "nose_projection",
    "mouth_width", "lip_fullness", "lip_tint",  # tint: 0 bare to 1 lipstick
    "ear_size",
    "skin_tone", "skin_warmth", "freckles",  # tone: -1 lightest to 1 darkest; freckles: 0 to 1
    "hair_tone", "hair_red", "grey",  # tone: -1 black to 1 blond; red and grey: 0 to 1
    "hair_length", "hair_volume", "hair_curl",  # length: -1 bald, up to 0 short, 0.3 chin, 1 chest; curl: 0 to 1
    "hair_part", "fringe", "bun", "hairline",  # parting from left to right; fringe, bun: 0 to 1; 1 is a high hairline
    "brow_thickness", "brow_arch",
    "beard", "moustache",  # 0 to 1
    "glasses", "glasses_shape",  # worn above 0.5; -1 round to 1 square
    "age", "femininity",  # age: below 0 young, 1 old
)  # fmt: skip
POSE_NAMES = ("yaw", "pitch")
EXPRESSION_NAMES = ("smile", "mouth_open", "brow_raise", "lids")  # mouth_open: 0 to 1; lids: below 0 half shut
LIGHT_NAMES = ("light_azimuth", "light_elevation", "light_warmth", "light_strength", "light_fill")
BACKGROUND_NAMES = (  # hues, saturations, lightnesses, gradient and angle: 0 to 1
    "bg_hue", "bg_saturation", "bg_lightness", "bg_shift", "bg_gradient", "bg_angle", "bg_blob",
    "cloth_hue", "cloth_saturation", "cloth_lightness", "neckline",
)  # fmt: skip
GROUPS = {
    "identity": IDENTITY_NAMES,
    "pose": POSE_NAMES,
    "expression": EXPRESSION_NAMES,
    "light": LIGHT_NAMES,
    "background": BACKGROUND_NAMES,
}
LANDMARK_NAMES = _scene.LANDMARKS
_DOMAINS = {"photo": PHOTO, "cartoon": CARTOON, "caricature": CARICATURE, "anime": ANIME}
DOMAINS = tuple(_DOMAINS)


@dataclass(frozen=True)
class Portraits:
    """Parameters of N portraits.

    identity [N, 38], pose [N, 2], expression [N, 4], light [N, 5], background [N, 11]: float32, columns named above.
    Yaw and pitch are in radians: yaw > 0 turns the face to the picture's right, pitch > 0 up; the world is designed for
    up to 0.7 and 0.35. The light's azimuth and elevation are in radians from the camera. detail_seed: [N] int64.
    """

    identity: Tensor
    pose: Tensor
    expression: Tensor
    light: Tensor
    background: Tensor
    detail_seed: Tensor

    def __post_init__(self) -> None:
        for group, names in GROUPS.items():
            value = getattr(self, group)
            if value.shape != (len(self.detail_seed), len(names)) or value.dtype != torch.float32:
                raise ShapeError(
                    f"{group} of shape {list(value.shape)} and type {value.dtype}",
                    expected=f"float32 [{len(self.detail_seed)}, {len(names)}]",
                    do=f"pass one column for each of portraits.{group.upper()}_NAMES",
                )

    def __len__(self) -> int:
        return len(self.detail_seed)

    def __getitem__(self, index: slice | Tensor | list[int]) -> Portraits:
        """The portraits at `index` (a slice, a list or a tensor of indices)."""
        return Portraits(*(getattr(self, f.name)[index] for f in fields(self)))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.identity.device

    def to(self, device: str | torch.device) -> Portraits:
        """The same portraits on another device."""
        return Portraits(*(getattr(self, f.name).to(device) for f in fields(self)))

    def get(self, name: str) -> Tensor:
        """[N] values of one named parameter."""
        for group, names in GROUPS.items():
            if name in names:
                return getattr(self, group)[:, names.index(name)]
        valid = [n for names in GROUPS.values() for n in names]
        raise UnknownName(
            f"no portrait parameter {name!r}",
            expected=f"one of {', '.join(valid)}",
            do=nearest(name, valid) or "use a name listed in portraits.GROUPS",
        )

    def named(self) -> Named:
        """All parameters by name, [N, 1] each."""
        return Named({n: getattr(self, g)[:, i, None] for g, names in GROUPS.items() for i, n in enumerate(names)})

    def replace(
        self,
        *,
        identity: Tensor | Mapping[str, float | Tensor] | None = None,
        pose: Tensor | Mapping[str, float | Tensor] | None = None,
        expression: Tensor | Mapping[str, float | Tensor] | None = None,
        light: Tensor | Mapping[str, float | Tensor] | None = None,
        background: Tensor | Mapping[str, float | Tensor] | None = None,
        detail_seed: Tensor | None = None,
    ) -> Portraits:
        """A copy with some groups replaced: `people.replace(pose={"yaw": 0.4}, expression={"smile": 1.0})`.

        A group is given as a whole new tensor, or as a mapping from some of its parameters to a number or an [N]
        tensor.

        Raises:
            UnknownName: no such parameter in the group. ShapeError: a tensor of another shape or dtype.
        """
        changes = dict(identity=identity, pose=pose, expression=expression, light=light, background=background)
        new = {name: self._group(name, change) for name, change in changes.items() if change is not None}
        return _replace(self, **new | ({} if detail_seed is None else {"detail_seed": detail_seed}))

    def _group(self, group: str, change: Tensor | Mapping[str, float | Tensor]) -> Tensor:
        if not isinstance(change, Mapping):
            return change
        value, valid = getattr(self, group).clone(), list(GROUPS[group])
        for name, column in change.items():
            if name not in valid:
                raise UnknownName(
                    f"no parameter {name!r} in {group}",
                    expected=f"one of {', '.join(valid)}",
                    do=nearest(name, valid) or f"use a name listed in portraits.{group.upper()}_NAMES",
                )
            value[:, valid.index(name)] = torch.as_tensor(column, dtype=value.dtype, device=value.device)
        return value


@dataclass(frozen=True)
class Truth:
    """A rendering and its exact ground truth.

    image [N, 3, H, W] in [-1, 1]; head_mask, hair_mask [N, 1, H, W] in [0, 1] (the head includes its hair); depth
    [N, 1, H, W]: distance along the optical axis, in halves of the shorter picture side, NaN off the head; camera
    [N, 3, 4]: maps homogeneous head points to homogeneous pixels (x right, y down, the first pixel's centre at 0.5);
    landmarks [N, 6, 3]: head points named by LANDMARK_NAMES (left and right as seen in the picture).
    """

    image: Tensor
    head_mask: Tensor
    hair_mask: Tensor
    depth: Tensor
    camera: Tensor
    landmarks: Tensor


def sample(n: int, seed: int = 0, *, device: str | torch.device = "cpu") -> Portraits:
    """Sample n people; item i depends only on (seed, i).

    Skin tone and age are uniform; hair, beards and glasses are mixtures that depend on skin_tone, age and femininity,
    so columns are not independent. Poses are concentrated around the frontal one: yaw has a standard deviation of 15
    degrees (at most 40), pitch of 6 (at most 20).
    """
    index = torch.arange(n)
    taken = 0

    def u(lo: float = 0.0, hi: float = 1.0) -> Tensor:
        nonlocal taken
        taken += 1
        return lo + (hi - lo) * hash01(torch.tensor(seed), index, torch.tensor(taken))

    def g(scale: float = 0.4, bound: float = 1.0) -> Tensor:
        radius = (-2 * (u() + 1e-7).log()).sqrt()
        return (scale * radius * (6.283185 * u()).cos()).clamp(-bound, bound)

    def chance(probability: Tensor | float, yes: Tensor, no: Tensor) -> Tensor:
        return torch.where(u() < probability, yes, no)

    v: dict[str, Tensor] = {name: g() for name in IDENTITY_NAMES}
    fem = chance(0.5, u(0.35, 1.0), u(-1.0, -0.35))
    age = u(-0.9, 1.0)
    old = age.clamp(min=0)
    tone = u(-1, 1)
    woman, man = (fem > 0).float(), (fem <= 0).float()
    v |= {"femininity": fem, "age": age, "skin_tone": tone, "jaw_width": (-0.35 * fem + g(0.35)).clamp(-1, 1)}
    v["lip_fullness"] = (0.3 * fem + 0.3 * tone + g(0.35)).clamp(-1, 1)
    v["nose_width"] = (0.35 * tone - 0.15 * fem + g(0.35)).clamp(-1, 1)
    v["lip_tint"] = woman * chance(0.6, u(0.2, 1.0), 0 * age)
    fair = smooth(0.3, -0.7, tone)
    v["iris_hue"] = mix(u(-1, -0.55), u(-1, 1), fair)
    v["freckles"] = chance(0.35, u(0.2, 1.0), 0 * age) * smooth(0.5, 0.0, tone)
    v["hair_tone"] = mix(u(-1.0, -0.55), u(-0.95, 0.95), fair)
    v["hair_red"] = chance(0.22, u(0.3, 1.0), 0 * age) * smooth(0.6, -0.4, tone)
    v["grey"] = (smooth(0.25, 0.95, age + g(0.2)) * 1.1).clamp(0, 1)
    short, long = u(-0.75, -0.1), u(0.25, 1.0)
    v["hair_length"] = chance(0.16 + 0.66 * woman, long, short)
    bald = man * (u() < 0.10 + 0.12 * old).float()
    v["hair_length"] = torch.where(bald > 0, torch.full_like(age, -1.0), v["hair_length"])
    bun = woman * (u() < 0.16).float()
    v["hair_length"] = torch.where(bun > 0, short, v["hair_length"])
    v["bun"] = bun
    v["hair_curl"] = mix(chance(0.4, u(0.2, 0.8), 0 * age), u(0.55, 1.0), smooth(0.2, 0.8, tone + g(0.3)))
    v["hair_volume"] = (u(-1, 1) + 0.4 * (v["hair_curl"] > 0.6)).clamp(-1, 1)
    v["hair_part"] = u(-1, 1)
    v["fringe"] = chance(0.25 + 0.15 * woman, u(0.4, 1.0), 0 * age) * (1 - bun)
    v["hairline"] = (man * (0.9 * old + g(0.3)) + woman * g(0.2)).clamp(-1, 1)
    v["brow_thickness"] = (-0.35 * fem + g(0.4)).clamp(-1, 1)
    bearded = man * (u() < 0.42).float()
    v["beard"] = bearded * chance(0.4, u(0.15, 0.45), u(0.6, 1.0))
    v["moustache"] = man * torch.where(bearded > 0, (v["beard"] + 0.1).clamp(max=1), chance(0.12, u(0.7, 1.0), 0 * age))
    v["glasses"] = chance(0.20 + 0.15 * old, 0 * age + 1, 0 * age)
    v["glasses_shape"] = u(-1, 1)

    yaw = g(0.26, 0.69)
    pitch = g(0.10, 0.34)
    smile = chance(0.65, u(0.2, 1.0), u(-0.35, 0.2))
    opened = chance(0.30, u(0.05, 0.75), 0 * age)
    expression = (smile, opened, g(0.35), g(0.3).clamp(-0.6, 0.6))
    light = (u(-0.95, 0.95), u(0.15, 0.85), g(0.5), g(0.4), g(0.5))
    background = (u(), u(), u(), u(-1, 1), u(), u(), u(-1, 1), u(), u(), u(), u(-1, 1))
    stack = lambda columns: torch.stack([torch.as_tensor(c) for c in columns], 1).float()
    detail = (hash01(torch.tensor(seed), index, torch.tensor(-1)) * (1 << 24)).long()
    return Portraits(
        stack([v[name] for name in IDENTITY_NAMES]),
        stack((yaw, pitch)),
        stack(expression),
        stack(light),
        stack(background),
        detail,
    ).to(device)


def camera(people: Portraits, size: int | tuple[int, int]) -> Tensor:
    """[N, 3, 4] matrices that map homogeneous head points to homogeneous pixels of a picture of that size."""
    return _scene.camera(people.pose, *sides(size))


def _draw(
    people: Portraits, size: int | tuple[int, int], supersample: int, domain: str, chunk: int, *, truth: bool
) -> dict[str, Tensor]:
    """The fields of Truth by name, or without `truth` the image alone."""
    height, width = sides(size)
    if domain not in _DOMAINS:
        raise UnknownName(
            f"no domain {domain!r}",
            expected=f"one of {', '.join(DOMAINS)}",
            do=nearest(domain, list(DOMAINS)) or "use a name listed in portraits.DOMAINS",
        )
    supersample = number("supersample", supersample, "whole [1, inf)")
    # people with similar hair need similar numbers of rays, so sorting them leaves little padding (_common.compact)
    order = people.get("hair_length").argsort(stable=True)
    parts, style = [], _DOMAINS[domain]
    with torch.no_grad():
        for some in order.split(chunk):
            p = people[some]
            parts.append(_scene.draw(p.named(), p.pose, p.detail_seed, height, width, supersample, style, truth=truth))
        back = order.argsort()
        return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}


def render_with_truth(
    people: Portraits,
    size: int | tuple[int, int] = 128,
    supersample: int = 2,
    *,
    domain: str = "photo",
    chunk: int = 4,
) -> Truth:
    """Render portraits with their masks, depth, camera and landmarks.

    Args:
        size: side in pixels, or (height, width), at least 8 each; the shorter side spans what a square picture shows.
        supersample: rays per pixel along each axis; a pixel is the mean of their light.
        domain: one of DOMAINS. The same parameters are the same person in each; camera, masks, depth and landmarks
            belong to the head as drawn.
        chunk: portraits drawn at once (about 20 MB each at 128 pixels; the result does not depend on it).

    Raises:
        InvalidValue: a size or supersample out of range. UnknownName: no such domain.
    """
    return Truth(**_draw(people, size, supersample, domain, chunk, truth=True))


def render(
    people: Portraits,
    size: int | tuple[int, int] = 128,
    supersample: int = 2,
    *,
    domain: str = "photo",
    chunk: int = 4,
) -> Tensor:
    """[N, 3, H, W] pictures in [-1, 1]: the image of `render_with_truth`, with the same arguments, in less time."""
    return _draw(people, size, supersample, domain, chunk, truth=False)["image"]
