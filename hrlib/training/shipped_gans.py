"""The GANs that ship in data/weights: the world that each draws, and its recipe.

`hrlab train network NAME` renders, trains and ships any of them. Their lengths take hours on one CPU core; with a GPU,
multiply them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import UnknownName, nearest
from .recipe import GanRecipe

SOURCE = "portraits_inr128"
PEOPLE = 16_000  # get latents together, in every domain
SOME_PEOPLE = 5_000  # the first of them, in the sets of drawings
Z_DIM = 64


@dataclass(frozen=True)
class ShippedGan:
    """One shipped generator and its discriminator. n, count: see `picture_sets.render_set`."""

    world: str
    n: int
    count: int
    recipe: GanRecipe

    @property
    def set_name(self) -> str:
        """Folder name of its rendered set."""
        return f"{self.world.replace('/', '_')}{self.recipe.resolution}"


# A rendered world has pictures enough, so neither mirroring nor adaptive augmentation is needed, and both would pull
# the generator away from the picture that belongs to z.
BASE = GanRecipe(
    z_dim=Z_DIM,
    total_images=256_000,
    warm_images=88_000,
    lr_fall=0.35,
    ema_images=10_000,
    mixing_prob=0.25,
    fresh_prob=0.5,
    anchor=2.0,
    mirror=False,
    ada_target=0.0,
)
# Another domain of the same people: the mapping is the source's, so that a w is the same person in both.
DOMAIN = replace(
    BASE,
    source=SOURCE,
    train_mapping=False,
    warm_images=10_000,
    total_images=40_000,
    ema_images=3_000,
    anchor=3.0,
)

GANS = {
    SOURCE: ShippedGan("portraits/photo", PEOPLE, PEOPLE, BASE),
    # The same people at twice the resolution: what is new are strands, pores and edges.
    "portraits_inr256": ShippedGan(
        "portraits/photo",
        PEOPLE,
        3_000,
        replace(
            DOMAIN,
            resolution=256,
            channels=BASE.channels | {256: 16},
            batch=8,
            warm_images=1_600,
            warm_set=1_000,
            total_images=5_600,
            lr=0.002,
            r1_gamma=1.0,
            bf16=False,
            ema_images=1_500,
            anchor=2.0,
        ),
    ),
    "portraits_sg128": ShippedGan(
        "portraits/photo",
        PEOPLE,
        PEOPLE,
        replace(
            DOMAIN,
            network="stylegan2",
            source=None,
            backbone_from=SOURCE,
            teach_images=8_000,
            warm_images=0,
            total_images=20_000,
            anchor=2.0,
        ),
    ),
    "cartoon_inr128": ShippedGan("portraits/cartoon", PEOPLE, SOME_PEOPLE, DOMAIN),
    "caricature_inr128": ShippedGan("portraits/caricature", PEOPLE, SOME_PEOPLE, DOMAIN),
    "anime_inr128": ShippedGan("portraits/anime", PEOPLE, SOME_PEOPLE, DOMAIN),
    # A landscape has nothing in common with a face, so here the mapping has to learn.
    "scenes_inr128": ShippedGan(
        "scenes", 6_000, 3_000, replace(DOMAIN, train_mapping=True, warm_images=8_000, total_images=18_000)
    ),
}


def named(name: str) -> ShippedGan:
    """The shipped GAN of that name; raises `UnknownName` if there is none."""
    if name not in GANS:
        hint = nearest(name, list(GANS))
        raise UnknownName(
            f"network {name!r}", expected=f"one of {', '.join(GANS)}", do=hint or "name one of these generators"
        )
    return GANS[name]
