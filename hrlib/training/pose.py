"""Fit and ship the pose reader: a ridge regression of yaw and pitch on VGG features of renders of all four domains.

The pictures of each person are clean, blurred, and means of the photograph and a drawing of the same head, so that the
reader also works between domains. Features are cached in `build/training/pose`.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from .. import errors, pose, store, weights
from ..worlds import portraits
from . import shipping
from .gan_measures import Ridge, blur

SEED = 61_000  # not that of the training sets or of the identity network's people
FIT, HELD = 1200, 200  # people
KINDS = (*portraits.DOMAINS, *(f"photo + {d}" for d in portraits.DOMAINS[1:]))  # what is read, clean and blurred
SIGMA = 1.0  # of the blur, in pixels
STEP = 100  # people between two saves


def feature_sets(folder: Path, people: portraits.Portraits) -> dict[str, Tensor]:
    """{kind: features [N, D] of all people}, each kind clean and blurred; an interrupted call resumes."""
    found: dict[str, list[Tensor]] = {}
    for start in range(0, len(people), STEP):
        file = folder / f"features_{start:05d}.safetensors"
        if not file.exists():
            some = people[start : start + STEP]
            drawn = {d: portraits.render(some, pose.EDGE, domain=d) for d in portraits.DOMAINS}
            drawn |= {f"photo + {d}": (drawn["photo"] + drawn[d]) / 2 for d in portraits.DOMAINS[1:]}
            drawn |= {f"{kind}, blurred": blur(x, SIGMA) for kind, x in drawn.items()}
            weights.save_state({kind: pose.grid_features(x) for kind, x in drawn.items()}, file, force=True)
        for kind, value in weights.load_state(file)[0].items():
            found.setdefault(kind, []).append(value)
    return {kind: torch.cat(parts) for kind, parts in found.items()}


def run(
    folder: str | Path = "build/training/pose",
    out: str | Path | None = None,
    *,
    fit: int = FIT,
    held: int = HELD,
    seed: int = SEED,
    force: bool = False,
) -> pd.DataFrame:
    """Render, fit, measure on held-out people and ship the reader.

    Args:
        folder: for cached features; delete it when the renderer changes.
        out: the .safetensors file to write, with its card beside it; None is the shipped one,
            data/weights/pose_thin.safetensors.
        fit: people to fit on, 2 or more.
        held: people to measure on, 2 or more.
        seed: of the people.
        force: replace `out` and its card.

    Returns:
        One row for each kind of picture: R^2 and mean absolute error in degrees of yaw and pitch, on held-out people.

    Raises:
        InvalidValue: a number is out of range.
        StoreError: `out` exists, the folder holds something else, or they cannot be written.
    """
    fit, held = (errors.number(name, n, "whole [2, inf)") for name, n in {"fit": fit, "held": held}.items())
    seed = errors.number("seed", seed, errors.SEED)
    file = shipping.free(shipping.place(pose.NAME, out), force=force)
    people = portraits.sample(fit + held, seed=seed)
    folder = Path(folder) / f"{seed}_{fit + held}_{pose.vgg().fingerprint[:12]}"
    what = {"seed": seed, "people": fit + held, "vgg": pose.vgg().fingerprint}
    with store.claimed(folder, "cache of features", what, again=True):
        found = feature_sets(folder, people)
    truth = people.pose.double()
    model = Ridge(torch.cat([x[:fit] for x in found.values()]), truth[:fit].repeat(len(found), 1))
    state = {"mean": model.mean, "weight": model.scale[:, None] * model.weight, "offset": model.offset}
    state = {name: t.float() for name, t in state.items()}
    rows = []
    for kind in found:
        read = (found[kind][fit:].double() - state["mean"].double()) @ state["weight"].double() + state["offset"]
        apart = read - truth[fit:]
        r2 = 1 - apart.square().sum(0) / (truth[fit:] - truth[fit:].mean(0)).square().sum(0)
        degrees = apart.abs().mean(0).rad2deg()
        rows.append((kind, *r2.tolist(), *degrees.tolist()))
    table = pd.DataFrame(rows, columns=["pictures", "R2 yaw", "R2 pitch", "yaw error", "pitch error"])
    about = {"card": f"ridge regression on renders of {fit} people, seed {seed}", "vgg": pose.vgg().fingerprint}
    weights.save_state(state, file, about, force=True)
    pose._reader.cache_clear()
    shipping.enter(file, card(table, fit=fit, held=held, seed=seed))
    store.write_bytes(folder / "table.csv", table.to_csv(index=False).encode())
    return table


def card(table: pd.DataFrame, *, fit: int, held: int, seed: int) -> str:
    """The model card, Markdown, with what `run` measured."""
    rows = ["| pictures | R^2 yaw | R^2 pitch | error of yaw | error of pitch |", "|---|---|---|---|---|"]
    for kind, yaw, pitch, yaw_error, pitch_error in table.itertuples(index=False):
        rows.append(f"| {kind} | {yaw:.3f} | {pitch:.3f} | {yaw_error:.1f} degrees | {pitch_error:.1f} degrees |")
    lines = "\n".join(rows)
    return f"""# {pose.NAME}

Reads yaw and pitch of a head off a picture: a linear map from the shipped thin VGG16's features (taps
{", ".join(pose.POOL_TAPS)}, means over {pose.CELLS} x {pose.CELLS} parts) to two angles.

- **For**: the pose error of stylised pictures (Sec. III-C, IV-D); see `hrlib.pose`.
- **Data**: {fit:,} people of `hrlib.worlds.portraits` in all four domains, {pose.EDGE} px, seed {seed}; clean, blurred
  by {SIGMA:g} px, and as means of the photograph and each drawing of the same head.
- **Recipe**: ridge regression, the penalty by generalised cross-validation.
- **Command**: `hrlab train pose --force`.
- **Measured** on {held} other people (mean absolute errors; the poses' standard deviations are 15 and 6 degrees):

{lines}

- **Limits**: heads of this world only. Strong blur biases the reading towards the frontal pose: at 2 px it reads about
  four fifths of a turn and two thirds of a nod (80 people, photo and anime). It also reads some angle off a picture
  without a head. How well it reads pictures of mixed generators is unknown, because their true pose is; means of two
  renders stand in for them above. It works only with the VGG16 that it was fitted on.
- **Licence**: MIT, like the code that made it.
"""
