"""From the 3D-aware GAN's training folder to data/weights: generator and discriminator, measured, with their cards.

The people measured are held out of the training, and their true views at five yaws are rendered here.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import fid, metrics
from ..errors import number
from ..nets import cameras, volume
from ..nets.cips3d import CIPS3D, View
from ..worlds import heads as world
from ..worlds import portraits
from . import checkpoints, gan3d, human_heads, loop, shipping
from .recipe import MOST

N, SEED = 200, 71_000  # people measured, and the seed of the unseen ones
YAWS = (-0.52, -0.26, 0.0, 0.26, 0.52)  # radians: 0, 15 and 30 degrees
CHUNK = 20


def free(out: Path | None = None, *, force: bool = False) -> Path:
    """The folder `out` (None: data/weights), if all files of the pair may be written there; see `shipping.free`."""
    out = Path(out or shipping.shipped())
    file, critic = _files(out)
    shipping.free(file, ".log.csv", force=force)
    shipping.free(critic, force=force)
    return out


def _files(out: Path) -> tuple[Path, Path]:
    """Of generator and discriminator."""
    return out / f"{gan3d.NAME}.safetensors", out / f"{gan3d.NAME}_discriminator.safetensors"


def ship(
    folder: Path, data: human_heads.HumanHeads, out: Path | None = None, *, n: int = N, force: bool = False
) -> dict[str, float]:
    """Save the averaged generator and the critic of a training, measured as the files hold them; {what: number}.

    Args:
        folder: of the training.
        data: what it was trained on.
        out: a folder; None is data/weights, and the pair enters its catalogue.
        n: people measured, 2 or more.
        force: replace existing files of the pair.

    Raises:
        StoreError: `folder` holds no training; files of the pair exist in `out`, or cannot be written there.
    """
    out, n = free(out, force=force), number("n", n, f"whole [2, {MOST}]")
    trained = loop.trained(folder)
    state = gan3d.State(gan3d.Gan3dRecipe.read(trained.recipe))
    checkpoints.restore(state.parts, trained.tensors)
    G, D = shipping.as_stored(state.ema), shipping.as_stored(state.D)
    found = measure(G, data, n=n)
    sentence = f"CIPS-3D of the shipped portraits' heads: {trained.images:,} pictures"
    file, critic = _files(out)
    shipping.ship(G, file, card=_card(trained, G, found, len(data)), sentence=sentence, folder=folder)
    shipping.ship(D, critic, card=_critic_card(trained, D), sentence=sentence)
    return found


# --- measures ---------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def measure(G: CIPS3D, data: human_heads.HumanHeads, *, n: int = N) -> dict[str, float]:
    """The numbers of the card, of people whom the training never saw; their latents are those of their parameters.

    "own PSNR": views from the poses of their pictures, against these. "PSNR at yaw": views at five yaws, against
    renders of the same people there; the light stays with the head. "flat PSNR": the same for the frontal view, not
    turned. "depth error": in half picture sides, over the head, at yaw 0; "depth bias": its signed mean (positive:
    behind the surface); "shape error": the error after each head is moved along the axis; "flat shape error": that of a
    plane. "glasses seen", "none seen": the share of wearers, and of others, whose view is nearer to a render of them
    with glasses, or without. "reprojected": mean colour error between views 15 degrees apart, where both see a point;
    "unwarped": the same without reprojection.
    """
    row, edge = torch.arange(min(n, len(data))), human_heads.EDGE
    styles = {k: v.clone() for k, v in G.mapping(data.z[row]).items()}
    own = _views(G, styles, cameras.orbit(*data.poses[row].T))
    found = {"own PSNR": float(metrics.psnr(own.image, data.batch(row)[0]).mean())}

    people, views, truth = human_heads.people(len(data), 0)[0][row], {}, {}
    for yaw in YAWS:
        views[yaw] = _views(G, styles, cameras.orbit(yaw, 0.0))
        truth[yaw] = world.draw(world.turned(people, yaw), edge)
    for yaw in YAWS:
        found[f"PSNR at yaw {yaw:+.2f}"] = float(metrics.psnr(views[yaw].image, truth[yaw].image).mean())
        found[f"flat PSNR at yaw {yaw:+.2f}"] = float(metrics.psnr(views[0.0].image, truth[yaw].image).mean())
    found |= _depth(G, views[0.0], truth[0.0].depth)
    found |= _glasses(views[0.0].image, people)

    moved, unmoved = [], []
    for a, b in ((0.0, 0.26), (0.0, -0.26), (0.26, 0.52), (-0.26, -0.52)):
        first, second, fov = views[a], views[b], float(G.camera["fov"])
        warped, seen = volume.reproject(
            first.image, first.depth, cameras.orbit(a, 0.0), second.depth, cameras.orbit(b, 0.0), fov
        )
        seen = (seen * (second.opacity > 0.9)).expand_as(warped) > 0
        moved.append(float((warped - second.image)[seen].abs().mean()))
        unmoved.append(float((first.image - second.image)[seen].abs().mean()))
    found |= {"reprojected": sum(moved) / len(moved), "unwarped": sum(unmoved) / len(unmoved)}

    g = torch.Generator().manual_seed(SEED)
    other = data.poses[torch.randint(len(data), (n,), generator=g)]
    fresh = _views(G, G.mapping(torch.randn(n, G.z_dim, generator=g)), cameras.orbit(*other.T)).image
    unseen, more = (_unseen(n, seed) for seed in (SEED, SEED + 1))
    vectors = [
        torch.cat([fid.features(p, "vgg16_thin") for p in part.split(50)]) for part in (fresh, unseen, more, own.image)
    ]
    found["Frechet distance"] = fid.frechet_distance(vectors[0], vectors[1])
    found["of their latents"] = fid.frechet_distance(vectors[3], vectors[1])
    found["of other renders"] = fid.frechet_distance(vectors[2], vectors[1])
    return found


def _unseen(n: int, seed: int) -> Tensor:
    """Renders of other people in poses like those of the training."""
    people, poses = human_heads.people(n, seed)
    return world.draw(world.turned(people, *poses.T), human_heads.EDGE).image


def _glasses(image: Tensor, people: portraits.Portraits) -> dict[str, float]:
    """Whether frontal views [N, 3, H, H] of people are nearer to renders of them with glasses, or without."""
    bare, worn = (
        world.draw(world.turned(people.replace(identity={"glasses": wear}), 0.0), image.shape[2]).image
        for wear in (0.0, 1.0)
    )
    seen = metrics.psnr(image, worn) > metrics.psnr(image, bare)
    true = (people.get("glasses") > 0.5).numpy()
    return {"glasses seen": float(seen[true].mean()), "none seen": float((~seen[~true]).mean())}


def _views(G: CIPS3D, styles: dict[str, Tensor], camera: Tensor) -> View:
    n = len(styles["nerf"])
    camera, parts = camera.expand(n, 4, 4), []
    for at in torch.arange(n).split(CHUNK):
        parts.append(G.synthesis({k: v[at] for k, v in styles.items()}, camera[at]))
    return View(*(torch.cat([getattr(p, f) for p in parts]) for f in ("image", "aux", "depth", "opacity")))


def _depth(G: CIPS3D, view: View, truth: Tensor) -> dict[str, float]:
    """Mean errors of depth along the optical axis over the head, in half picture sides: see `measure`."""
    local = volume.directions(*view.depth.shape[-2:], float(G.camera["fov"]), centres=G.centres, like=view.depth)
    axis = view.depth * -local[:, 2].reshape(view.depth.shape[-2:]) * world.DISTANCE
    head = torch.isfinite(truth) & (view.opacity > 0.9)
    found: dict[str, list[float]] = {"depth error": [], "depth bias": [], "shape error": [], "flat shape error": []}
    for one, true, where in zip(axis, truth, head, strict=True):
        error, shape = (one - true)[where], true[where]
        found["depth error"].append(float(error.abs().mean()))
        found["depth bias"].append(float(error.mean()))
        found["shape error"].append(float((error - error.median()).abs().mean()))
        found["flat shape error"].append(float((shape - shape.median()).abs().mean()))
    return {k: float(torch.tensor(v).nanmean()) for k, v in found.items()}


# --- cards ------------------------------------------------------------------------------------------------------------


def _card(trained: loop.Trained, net: CIPS3D, found: dict[str, float], people: int) -> str:
    r = trained.recipe
    warm, whole = r["ray_images"], r["whole_images"]
    left = max(trained.images - warm - whole, 0)
    rows = "\n".join(
        f"  | {yaw:+.2f} | {found[f'PSNR at yaw {yaw:+.2f}']:.1f} | {found[f'flat PSNR at yaw {yaw:+.2f}']:.1f} |"
        for yaw in YAWS
    )
    return f"""# {gan3d.NAME}

CIPS-3D (Zhou et al. 2021) of the heads of the shipped portraits, {net.resolution} px and any other size: NeRF, INR head
and their mapping networks. {sum(p.numel() for p in net.parameters()):,} parameters, `{json.dumps(net.config)}`.

- **For**: 3D-aware inversion (Sec. IV-F-b, Fig. 15) at the `laptop` profile, in place of the authors' FFHQ generator.
- **Scale**: the camera's distance 1 is {world.DISTANCE} half picture sides of the portraits, to the point that a head
  turns about; `cameras.orbit(yaw, pitch)` takes the portraits' own angles. One z serves both mapping networks.
- **Data**: {people:,} rendered heads, one picture a person (`hrlib.worlds.portraits`, seed 0; any other seed
  is unseen, and so are the first {r["held_out"]} of these, which are held out). Shoulders and wall do not turn with a
  head, so only the head is kept, by the renderer's mask, on a plain ground of {world.GROUND}; they were rendered before
  a plain wall. **Poses and depths are the renderer's own, true ones**: this is supervised regression on renders with
  known cameras, and not, as CIPS-3D's own training, learning from pictures alone. **Latents** are the Gaussianised
  parameters of identity, expression and light (its azimuth counted from the face), without the pose.
- **Recipe**: {warm:,} pictures by regression at {r["rays"]} rays each, more of them on faces (squared error of colours,
  and {r["lam_aux"]:g} of the NeRF's own; of opacity against the mask, {r["lam_mask"]:g}; absolute error of depth,
  {r["lam_depth"]:g}; cross entropy of densities before and behind the true surface, {r["lam_density"]:g}), sampled
  about the true surface. Then {whole:,} at windows of {gan3d.WINDOW} px, sampled about the surface that the network
  finds itself, with the VGG loss of Eq. (3) on the shipped VGG16 ({r["lam_vgg"]:g}) as well. Then {left:,} more, every
  {r["adversarial_every"]}th batch with the discriminator too ({r["lam_adversarial"]:g}, R1 {r["r1_gamma"]:g} every
  {r["r1_every"]} of its steps), which sees windows of other latents, {r["fresh"]:.0%} of them N(0, I), from other
  pictures' poses, and is told no camera. Adam, learning rates {r["lr"]:g} and {r["lr_adversarial"]:g}, batch
  {r["batch"]}, moving average of {r["ema_images"]:,} pictures, float32. Regression does it all: the
  adversarial stage changed nothing that was measured (see `hrlib/training/gan3d.py`); the authors train adversarially
  from the beginning, for millions of pictures.
- **Command**: `hrlab train gan3d --force`, seed {r["seed"]}; {trained.where}.
  Its log: `{gan3d.NAME}.log.csv`.{trained.intervention}
- **Measured** of what the file holds, {N} people held out, by the latents of their parameters: PSNR
  {found["own PSNR"]:.1f} dB of their pictures. Against renders of the same people from other sides (the light stays
  with the head), PSNR in dB, and what the frontal view shown unturned would reach:

  | yaw | ours | unturned |
  |---|---|---|
{rows}

  Depth is off by {found["depth error"]:.3f} half picture sides on average over the head (its mean by
  {found["depth bias"]:+.3f}; with each head moved to its place {found["shape error"]:.3f}, and a plane there
  {found["flat shape error"]:.3f}). Colours of views 15 degrees apart, one reprojected into the other by depth, differ
  by {found["reprojected"]:.3f} on average (of 2; {found["unwarped"]:.3f} without reprojecting). Frechet distance
  (features of `vgg16_thin`, {N} a side) of z ~ N(0, I) from unseen renders: {found["Frechet distance"]:.0f}; of the
  people held out {found["of their latents"]:.0f}, of other renders {found["of other renders"]:.0f}. Glasses:
  {found["glasses seen"]:.0%} of the frontal views of wearers are nearer to a render of the person with glasses than to
  one without, and {found["none seen"]:.0%} of the others' to the one without.
- **Limits**: hair is drawn in masses, not strands; freckles, pores and stubble are missing. Heads without neck or back,
  on one ground; views beyond 43 degrees of yaw and 14 of pitch were not seen in training. 16 bits per number.
- **Licence**: MIT, like the code that made it; the method is its authors'.
"""


def _critic_card(trained: loop.Trained, net: nn.Module) -> str:
    r = trained.recipe
    left = max(trained.images - r["ray_images"] - r["whole_images"], 0)
    return f"""# {gan3d.NAME}_discriminator

StyleGAN2's residual discriminator of windows of {net.resolution} px, trained against `{gan3d.NAME}`; it is told no
camera.

{sum(p.numel() for p in net.parameters()):,} parameters.

- **Data**: as the generator's: heads on a plain ground.
- **Command**: `hrlab train gan3d --force`, seed {r["seed"]}; {trained.where}, the generator's regression included.
  Its log: `{gan3d.NAME}.log.csv`.{trained.intervention}
- **Pictures seen**: {left // r["adversarial_every"]:,} real, and the same number generated. That is few:
  it knows edges and colours of heads better than it knows faces.
- **Limits**: a logit depends on its batch (minibatch standard deviation); block features do not. 16 bits per number.
- **Licence**: MIT, like the code that made it; the method is its authors'.
"""
