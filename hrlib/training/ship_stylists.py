"""From a training folder to data/weights: Table III's two baselines, StarGAN v2 and DualStyleGAN, with their cards.

A card says what the training left in its folder (loop.py) and what is measured here, on the network as the file holds
it.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import fid
from ..nets.dualstylegan import COLOUR, STRUCTURE
from ..worlds import portraits
from . import checkpoints, dualstylegan, gan_measures, loop, shipping, starganv2
from .picture_sets import PictureSet

AUTHORS = 800_000  # pictures of the authors' StarGAN v2: 100,000 steps of 8
N, SEED = 500, 71_000  # pictures measured, and the seed of the unseen people in them
DRAWINGS = tuple(d for d in portraits.DOMAINS if d != "photo")


def name_of(domain: str) -> str:
    """The catalogue's name of the DualStyleGAN of a drawn domain."""
    return f"dualstylegan_{domain}128"


def free(name: str, out: Path | None = None, *, force: bool = False) -> Path:
    """The file of a network in the folder `out` (None: data/weights), if it may be written; see `shipping.free`."""
    return shipping.free(Path(out or shipping.shipped()) / f"{name}.safetensors", ".log.csv", force=force)


def ship_starganv2(
    folder: Path, data: Sequence[PictureSet], out: Path | None = None, *, force: bool = False
) -> dict[str, float]:
    """Save the averaged networks of a finished training, measured as the file holds them; {domain: distance}.

    out: a folder; None is data/weights, and the network enters its catalogue. force: replace files of its name.
    """
    file, trained = free(starganv2.NAME, out, force=force), loop.trained(folder)
    state = starganv2.State(starganv2.StarGANv2Recipe.read(trained.recipe))
    checkpoints.restore(state.parts, trained.tensors)
    net = shipping.as_stored(state.ema)
    edge = net.resolution
    content = portraits.sample(N, seed=SEED)
    photo = _drawn(content, "photo", edge)
    found = {}
    for domain in DRAWINGS:
        reference = _drawn(portraits.sample(N, seed=SEED + 1), domain, edge)
        with torch.inference_mode():
            x = torch.cat(
                [net.stylise(a, b, domain) for a, b in zip(photo.split(50), reference.split(50), strict=True)]
            )
        found[domain] = _distance(x, domain, edge)
    sentence = f"StarGAN v2 of the shipped portraits: {trained.images:,} pictures"
    card = _starganv2_card(trained, net, found, len(data[0]))
    shipping.ship(net, file, card=card, sentence=sentence, folder=folder)
    return found


def ship_dualstylegan(
    domain: str, folder: Path, data: PictureSet, out: Path | None = None, *, force: bool = False
) -> dict[str, float]:
    """Save the averaged network of a finished training, measured as the file holds it; {weights: distance}.

    out: a folder; None is data/weights, and the network enters its catalogue. force: replace files of its name.
    """
    file, trained = free(name_of(domain), out, force=force), loop.trained(folder)
    state = dualstylegan.State(dualstylegan.DualStyleGANRecipe.read(trained.recipe))
    checkpoints.restore(state.parts, trained.tensors)
    net = shipping.as_stored(state.ema)
    G, g = net.generator, torch.Generator().manual_seed(SEED)
    row = torch.randint(len(data), (N,), generator=g)
    both = [
        G.mapping.w(z)[:, None].repeat(1, net.num_ws, 1) for z in (torch.randn(N, G.z_dim, generator=g), data.z[row])
    ]
    found = {}
    for structure, colour in ((STRUCTURE, COLOUR), (1.0, 1.0)):
        with torch.inference_mode():
            pairs = zip(*(part.split(50) for part in both), strict=True)
            x = torch.cat([net.stylise(a, b, structure=structure, colour=colour) for a, b in pairs])
        found[f"structure {structure:g}, colours {colour:g}"] = _distance(x, domain, net.resolution)
    sentence = f"DualStyleGAN of the shipped portraits, {domain}: {trained.images:,} pictures of stage III"
    card = _dualstylegan_card(domain, trained, net, found, len(data))
    shipping.ship(net, file, card=card, sentence=sentence, folder=folder)
    return found


# --- pieces -----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def _drawn(people: portraits.Portraits, domain: str, edge: int) -> Tensor:
    """Renders at 128 px, reduced by area means as in training."""
    x = torch.cat([portraits.render(people[i : i + 50], 128, domain=domain) for i in range(0, len(people), 50)])
    return torch.nn.functional.avg_pool2d(x, 128 // edge)


def _distance(x: Tensor, domain: str, edge: int) -> float:
    """Frechet distance from the same number of unseen renders of other people, in features of `vgg16_thin`."""
    real = gan_measures.renders(f"portraits/{domain}", N, resolution=128, seed=gan_measures.SEEDS[0])
    real = torch.nn.functional.avg_pool2d(real.batch(torch.arange(N))[0], 128 // edge)
    vectors = [torch.cat([fid.features(p, "vgg16_thin") for p in part.split(50)]) for part in (x, real)]
    return fid.frechet_distance(*vectors)


def _table(found: dict[str, float], first: str) -> str:
    rows = [f"| {first} | Frechet distance |", "|---|---|", *(f"| {k} | {v:.1f} |" for k, v in found.items())]
    return textwrap.indent("\n".join(rows), "  ")


def _starganv2_card(trained: loop.Trained, net: nn.Module, found: dict[str, float], pictures: int) -> str:
    r = trained.recipe
    return f"""# {starganv2.NAME}

StarGAN v2 (Choi et al. 2020) of the shipped portraits, {net.resolution} px, all four domains: translator, style encoder
and mapping network. {sum(p.numel() for p in net.parameters()):,} parameters, `{json.dumps(net.config)}`.

- **For**: a baseline of Table III (Sec. IV-E) at the `laptop` profile, in place of the authors' 256 px networks.
- **Data**: the first {pictures:,} rendered people of the training set (seed 0) in each of the four domains, reduced
  from 128 to {net.resolution} px by area means; domains unpaired, pictures mirrored at random.
- **Recipe**: the article's losses and weights (style {r["lam_sty"]:g}, diversity {r["lam_ds"]:g} falling to 0, cycle
  {r["lam_cyc"]:g}, R1 {r["lam_reg"]:g} every {r["r1_every"]} steps), Adam, learning rate {r["lr"]:g} falling to a tenth
  over the last {r["lr_fall"]:.0%}, {r["mapping_gain"]:g} times that for the mapping network, weight decay
  {r["weight_decay"]:g}, batch {r["batch"]}, {trained.images:,} pictures (the authors: {AUTHORS:,}), moving average of
  {r["ema_images"]:,} pictures, bfloat16 autocast. Latent- and reference-guided steps take turns.
- **Command**: `hrlab train starganv2 --force`, seed {r["seed"]}; {trained.where}.
  Its log: `{starganv2.NAME}.log.csv`.{trained.intervention}
- **Measured**: {N} unseen photographs in the style of {N} other unseen people's drawings, against {N} unseen renders
  (features of `vgg16_thin` at {net.resolution} px):

{_table(found, "domain")}

- **Limits**: narrow networks, and {trained.images / AUTHORS:.0%} of the authors' pictures. Results are softer than the
  renders, and follow the reference less than theirs. Stored in 16 bits per number.
- **Licence**: MIT, like the code that made it; the method is its authors'.
"""


def _dualstylegan_card(
    domain: str, trained: loop.Trained, net: nn.Module, found: dict[str, float], pictures: int
) -> str:
    r, name = trained.recipe, name_of(domain)
    extrinsic = sum(p.numel() for part in (net.style, net.res) for p in part.parameters())
    return f"""# {name}

DualStyleGAN (Yang et al. 2022) of the shipped portraits, {net.resolution} px, {domain}: the frozen face generator
`{dualstylegan.SOURCE}` and an extrinsic style path of {extrinsic:,} parameters.

- **For**: a baseline of Table III (Sec. IV-E) at the `laptop` profile, in place of the authors' 1024 px networks.
- **Data**: the first {pictures:,} rendered people of the training set (seed 0) in the {domain} domain, and as many
  photographs for stage II.
- **Recipe**: the article's progressive fine-tuning. Stage I is how the network begins; stage II, structure transfer
  between photographs, {dualstylegan.STRUCTURE_IMAGES:,} pictures, is shared by the three domains; stage III,
  {trained.images:,} pictures (the authors: about 40,000), has adversarial (R1 {r["r1_gamma"]:g}), perceptual
  ({r["lam_perc"]:g}), contextual ({r["lam_cx"]:g}), feature ({r["lam_fm"]:g}) and identity ({r["lam_id"]:g}) losses and
  a penalty ({r["lam_reg"]:g}) on the norms of the path; VGG and identity network are the shipped ones. Adam, learning
  rate {r["lr"]:g} falling to a tenth over the last {r["lr_fall"]:.0%}, batch {r["batch"]}, moving average of
  {r["ema_images"]:,} pictures, bfloat16 autocast. Destylisation is not needed: a rendered person's latent is known.
- **Command**: `hrlab train dualstylegan {domain} --force`, seed {r["seed"]}; {trained.where} for stage III.
  Its log: `{name}.log.csv`.{trained.intervention}
- **Measured**: {N} random faces with the extrinsic codes of {N} training pictures, against {N} unseen renders (features
  of `vgg16_thin`):

{_table(found, "weights of the extrinsic path")}

- **Limits**: the convolutions are the face generator's, so strokes that no photograph has stay soft. Codes of pictures
  have to be found by inversion: there is no encoder. Stored in 16 bits per number.
- **Licence**: MIT, like the code that made it; the method is its authors'.
"""
