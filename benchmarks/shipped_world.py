"""Every bar that the shipped generators have to pass, measured on the weights in data/weights.

    python benchmarks/shipped_world.py ladder portraits_inr128   # Frechet distances, precision and recall; n = 10,000
    python benchmarks/shipped_world.py layout cartoon_inr128     # the same w: the same pose and proportions?
    python benchmarks/shipped_world.py inversion                 # w+ alone, 300 steps, 32 unseen portraits
    python benchmarks/shipped_world.py table                     # all that was measured, with bars
    python benchmarks/shipped_world.py all

Results go to benchmarks/results/shipped_world.json and into the model cards. On one core, rendering 10,000 portraits
takes about five minutes (they are kept in build/measure), a ladder then ten, a layout after its 5,000 renders two, and
the inversion fifteen.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from hrlib import inversion, losses, metrics, optim, retrieval, weights
from hrlib.store import read_json, write_json
from hrlib.training import gan_measures, ship_gan, shipped_gans
from hrlib.training.identity_set import view
from hrlib.training.picture_sets import load_set
from hrlib.worlds import portraits

app = typer.Typer(no_args_is_help=True, add_completion=False)
RESULTS = Path(__file__).parent / "results" / "shipped_world.json"
SOURCE = shipped_gans.SOURCE
DOMAINS = ("cartoon_inr128", "caricature_inr128", "anime_inr128")
PEOPLE_SEED, GALLERY = 3, 100
# The learning rate is high because 300 steps are few. The pixel loss is what PSNR measures; the conv loss keeps the
# face. The noise maps are zero, because maps that are not fitted would only add grain.
INVERSION = dict(num_steps=300, space="w+", optimise_noise=False, normalise_noise=False, lr=0.3, lam_mse=10.0)
LOSS, BATCH = "vgg_conv", 8

Name = Annotated[str, typer.Argument(help="A shipped generator.")]
Other = Annotated[
    Path | None, typer.Option(help="Take the second set of renders from this training set instead of rendering it.")
]
Sets = Annotated[
    tuple[Path, Path] | None, typer.Option(help="Training sets of source and target, instead of renders made for this.")
]


@app.command()
def ladder(name: Name = SOURCE, n: int = 10_000, other: Other = None) -> None:
    table = ship_gan.ladder(name, n=n, other=load_set(other) if other else None)
    keep("ladder", name, {"n": n, "other": "training set" if other else "unseen", "rows": ship_gan.rows(table)})


@app.command()
def layout(name: Name, n: int = 500, sets: Sets = None) -> None:
    table = ship_gan.layout(name, n=n, sets=tuple(map(load_set, sets)) if sets else None)
    keep("layout", name, {"n": n, "rows": ship_gan.rows(table)})


@app.command("inversion")
def inversion_command(name: Name = SOURCE, n: int = 32) -> None:
    value = invert_unseen(weights.load_generator(name), n)
    ship_gan.record(name, "inversion", value)
    keep("inversion", name, value)


@app.command("all")
def all_commands(n: int = 10_000, small: Annotated[int, typer.Option(help="n of all but the source.")] = 2_000) -> None:
    for name in shipped_gans.GANS:
        ladder(name, n if name == SOURCE else small)
    for name in DOMAINS:
        layout(name)
    inversion_command()
    table()


@app.command()
def table() -> None:
    """Print all measurements; the exit status is 1 unless every bar was measured with these weights and passed."""
    passed = True
    for what, value, bar, verdict in bars(read_json(RESULTS) if RESULTS.exists() else {}):
        print(f"{what:62s} {value:>18s}  {bar:14s} {verdict}")
        passed &= verdict in ("pass", "")
    raise typer.Exit(int(not passed))


def invert_unseen(G: torch.nn.Module, n: int) -> dict[str, Any]:
    """Reconstruct n people outside all training sets from codes alone; PSNR, and whom the identity network sees."""
    who = portraits.sample(GALLERY, seed=PEOPLE_SEED)
    photos = portraits.render(who, G.resolution)
    others = portraits.render(view(who.identity, seed=PEOPLE_SEED + 1), G.resolution)
    silent = {k: torch.zeros_like(m) for k, m in G.noise_maps().items()}
    loss, images = losses.named(LOSS, weights="shipped"), []
    for x in photos[:n].split(BATCH):
        images.append(optim.solve(inversion.invert(G, x, loss, noise_init=silent, **INVERSION)).image.clamp(-1, 1))
        print(f"{sum(map(len, images))} of {n} inverted", flush=True)
    images = torch.cat(images)
    psnr, net = metrics.psnr(images, photos[:n]), weights.load_identity("identity_thin")
    with torch.inference_mode():
        found, own, again = (torch.cat([net.embed(p) for p in x.split(50)]) for x in (images, photos, others))
    settings = ", ".join(f"{k} {INVERSION[k]:g}" for k in ("num_steps", "lr", "lam_mse"))
    return {
        "n": n,
        "gallery": GALLERY,
        "settings": f"loss {LOSS} at full size, {settings}",
        "psnr": [round(float(p), 3) for p in psnr],
        "psnr_mean": float(psnr.mean()),
        "psnr_std": float(np.std(psnr, ddof=1)),
        "psnr_min": float(psnr.min()),
        "same_photo": retrieval.id_retrieval(own, found, range(n)).rate,
        "other_view": retrieval.id_retrieval(again, found, range(n)).rate,
        "other_view_of_photos": retrieval.id_retrieval(again, own[:n], range(n)).rate,
    }


def keep(what: str, name: str, value: dict[str, Any]) -> None:
    """Store a result with the hash of the weights that were measured, and print it with its bar."""
    results = read_json(RESULTS) if RESULTS.exists() else {}
    value = value | {"sha256": weights.entry(name).sha256, "threads": torch.get_num_threads()}
    results.setdefault(what, {})[name] = value
    write_json(RESULTS, results)
    for row in bars({what: {name: value}}):
        if row[3] != "not measured":
            print("{:62s} {:>18s}  {:14s} {}".format(*row))


def bars(results: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """(what, value, bar, verdict) of every measure; the verdict is empty where there is no bar."""

    def judge(what: str, kind: str, name: str, value: float, bar: str, passed: bool | None, form: str = ".3f") -> tuple:
        stale = results[kind][name]["sha256"] != weights.entry(name).sha256
        verdict = "of other weights" if stale else "" if passed is None else "pass" if passed else "MISSED"
        return f"{name}: {what}", format(value, form), bar, verdict

    for name in shipped_gans.GANS:
        if name not in results.get("ladder", {}):
            yield f"{name}: ladder", "", "", "not measured" if name == SOURCE else ""
            continue
        rows = {row["pictures"]: row for row in results["ladder"][name]["rows"]}
        one, G = rows["renders, blur 1 px"]["frechet"], rows["generator"]
        asked = name == SOURCE
        for rung, row in rows.items():
            if rung != "generator":
                for k in ("frechet", "precision", "recall"):
                    yield judge(f"{rung}, {k}", "ladder", name, row[k], "", None)
        bar = f"< {one:.1f} (1 px)" if asked else ""
        yield judge("Frechet distance", "ladder", name, G["frechet"], bar, G["frechet"] < one if asked else None)
        for k in ("precision", "recall"):
            yield judge(k, "ladder", name, G[k], ">= 0.6" if asked else "", G[k] >= 0.6 if asked else None)
    for name in DOMAINS:
        if name not in results.get("layout", {}):
            yield f"{name}: layout", "", ">= 0.8", "not measured"
            continue
        for row in results["layout"][name]["rows"]:
            r, pose = row["correlation"], row["parameter"] in gan_measures.POSE
            what = f"{row['parameter']} ({row['low']:.2f} to {row['high']:.2f}; renders {row['renders']:.2f})"
            yield judge(what, "layout", name, r, ">= 0.8" if pose else "", r >= 0.8 if pose else None)
    if SOURCE not in results.get("inversion", {}):
        yield f"{SOURCE}: inversion", "", ">= 24 dB", "not measured"
        return
    found = results["inversion"][SOURCE]
    what = f"PSNR of {found['n']} inversions (std {found['psnr_std']:.2f}, least {found['psnr_min']:.1f})"
    yield judge(what, "inversion", SOURCE, found["psnr_mean"], ">= 24 dB", found["psnr_mean"] >= 24, ".2f")
    for k, where in (("same_photo", "the photographs"), ("other_view", "other pictures of them")):
        what = f"the right one of {found['gallery']} among {where}"
        yield judge(what, "inversion", SOURCE, found[k], ">= 90 %", found[k] >= 0.9, ".1%")


if __name__ == "__main__":
    app()
