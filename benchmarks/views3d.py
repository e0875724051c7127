"""Views from one picture over many unseen people: identity among all of them, PSNR per angle, pose, depth, and time.

    python benchmarks/views3d.py                # 100 people, about half an hour on two cores
    python benchmarks/views3d.py --people 20    # the other people are still looked up among 100

The people are drawn with a seed that no training has seen.
"""

from __future__ import annotations

import argparse
import math
import time

import torch

from hrlib import inversion3d, losses, metrics, optim, retrieval, weights
from hrlib.nets import cameras
from hrlib.worlds import heads, portraits

SETTINGS = dict(pose_steps=8, latent_steps=20, num_steps=20, lr_style=0.03, lam_mse=3.0, beta2=0.99)
YAWS, GALLERY, BATCH, SEED = (-30, -15, 0, 15, 30), 100, 10, 8_101


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=GALLERY)
    n = min(parser.parse_args().people, GALLERY)
    G, net = weights.load_generator3d("portraits_3d96"), weights.load_identity("identity_thin")
    loss = losses.named("vgg_conv", weights="shipped")
    everybody = portraits.sample(GALLERY, seed=SEED)
    x = heads.draw(everybody, G.resolution).image
    known = retrieval.embed(net, x)

    begun = time.perf_counter()
    optim.solve(inversion3d.invert(G, x[:1], loss, **SETTINGS))
    print(f"one inversion: {time.perf_counter() - begun:.1f} s on {torch.get_num_threads()} threads", flush=True)

    found = {yaw: [] for yaw in YAWS}
    off = []
    for i in range(0, n, BATCH):
        some = slice(i, min(i + BATCH, n))
        result = optim.solve(inversion3d.invert(G, x[some], loss, **SETTINGS))
        off += torch.rad2deg((result.yaw - everybody[some].get("yaw")).abs()).tolist()
        for yaw in YAWS:
            with torch.no_grad():
                made = inversion3d.render(G, result.variables, cameras.orbit(math.radians(yaw), 0.0)).image.clamp(-1, 1)
            true = heads.draw(heads.turned(everybody[some], math.radians(yaw)), G.resolution).image
            nearest = torch.cdist(retrieval.embed(net, made), known).argmin(1)
            right = (nearest == torch.arange(some.start, some.stop)).float()
            psnr, unturned = (torch.from_numpy(metrics.psnr(y, true)) for y in (made, x[some]))
            found[yaw].append(torch.stack((right, psnr, unturned)))
        print(f"{some.stop} of {n}, {time.perf_counter() - begun:.0f} s", flush=True)
    print(f"yaw read off: {torch.tensor(off).median():.1f} degrees off (median), {max(off):.1f} at most")
    rows = {yaw: torch.cat(parts, 1) for yaw, parts in found.items()}
    for yaw, (right, psnr, unturned) in rows.items():
        print(
            f"yaw {yaw:+3d}: identity {right.mean():.1%} of {n} among {GALLERY}; PSNR {psnr.mean():.2f} dB "
            f"(spread {psnr.std():.2f}), the unturned input {unturned.mean():.2f}"
        )
    print(f"all: identity {torch.cat([r[0] for r in rows.values()]).mean():.1%}")


if __name__ == "__main__":
    main()
