"""Tiles against the whole: values and gradients, memory plans, resuming, and the page that zooms."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import tifffile
import torch
from typer.testing import CliRunner

from hrlib import cli, features, image, inversion, losses, optim, tiling, weights
from hrlib.errors import BudgetError, ImageError, InvalidValue, NonFiniteLoss, ShapeError, StoreError, UnknownName
from hrlib.experiments import panoramas
from hrlib.lab import deepzoom, root
from hrlib.nets import Generator, StyleINR
from hrlib.nets.stylegan2 import channel_plan
from hrlib.tiling import budget
from hrlib.worlds import pictures

SIZES = {  # (H, W): tile
    (128, 128): (48, 64),  # square
    (150, 213): (64, 64),  # odd
    (33, 400): (32, 100),  # a strip, tiles that are no multiple of the stride
    (40, 44): (512, 512),  # smaller than a tile
    (48, 2400): (48, 256),  # 1:50
}


@pytest.fixture(scope="module")
def G():
    return weights.load_generator("scenes_inr128")


def relative(a, b):
    return float((a - b).norm() / b.norm())


def everything(G, loss, x, ws, maps):
    """The loss of x's mirror image, its gradient there, and what that says of ws and the noise maps (one vector).

    A fixed picture, not the generator's: in float32 the two ways of drawing differ in the last digit, and where that
    digit decides a ReLU or a maximum, the slopes of the two pictures differ by more.
    """
    picture = x.flip(3).clone().requires_grad_()
    total = sum(loss(picture, loss.prepare(x)).values())
    (of_picture,) = torch.autograd.grad(total, picture)
    drawn = G.synthesis(ws, maps, tuple(x.shape[2:]))
    of_ws, *of_maps = torch.autograd.grad(drawn, [ws, *maps.values()], x)
    return total.detach(), [of_picture, drawn.detach(), of_ws, torch.cat([g.flatten() for g in of_maps])]


def problem(G, size, dtype, batch=1, seed=1):
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, 3, *size, generator=rng, dtype=dtype) * 2 - 1
    ws = G.mapping(torch.randn(batch, G.z_dim, generator=rng, dtype=dtype)).detach().requires_grad_()
    maps = {k: v.expand(batch, -1, -1).clone().requires_grad_() for k, v in G.noise_maps(size).items()}
    return x, ws, maps


# --- the same numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("tap", ["conv", "relu"])
@pytest.mark.parametrize(("dtype", "of_loss", "of_slope"), [(torch.float32, 1e-6, 1e-5), (torch.float64, 1e-12, 1e-10)])
def test_tiles_add_up_to_the_whole(G, size, tap, dtype, of_loss, of_slope):
    """In float32, other codes are tried if they differ: a value near 0 may fall on either side of a leaky ReLU, by its
    last digit and so by the machine, and change the gradients by up to 1e-3. An error of the tiles would stay."""
    G = weights.load_generator("scenes_inr128").to(dtype)
    loss = (losses.Perceptual(features.vgg16("shipped", tap=tap)) + losses.MSE(3.0)).to(dtype)
    tile = SIZES[size]
    for seed in (1, 2, 3) if dtype == torch.float32 else (1,):
        x, ws, maps = problem(G, size, dtype, seed=seed)
        value, slopes = everything(G, loss, x, ws, maps)
        apart = []
        for keep in ("memory", "file", "recompute"):
            tiled = tiling.TiledGenerator(G, tile), tiling.TiledLoss(loss, tile, keep=keep)
            ours, theirs = everything(*tiled, x, ws, maps)
            assert abs(float(ours - value)) <= of_loss * float(value), keep
            apart += [relative(a, b) for a, b in zip(theirs, slopes, strict=True)]
        if max(apart) <= of_slope:
            return
    raise AssertionError(f"tiles and whole differ by {max(apart):.1e}")


def test_the_high_level_loss_and_batches(G):
    loss = losses.Perceptual(features.vgg16("shipped"), losses.HIGH_LEVEL)
    x, ws, maps = problem(G, (70, 100), torch.float32, batch=2)
    value, slopes = everything(G, loss, x, ws, maps)
    ours, theirs = everything(tiling.TiledGenerator(G, (32, 64)), tiling.TiledLoss(loss, (32, 64)), x, ws, maps)
    assert float(ours) == pytest.approx(float(value), rel=1e-6)
    assert max(relative(a, b) for a, b in zip(theirs, slopes, strict=True)) <= 1e-5


def test_half_precision_is_near_and_says_so(G):
    loss = losses.Perceptual(features.vgg16("shipped"))
    x, ws, maps = problem(G, (128, 128), torch.float32)
    _, slopes = everything(G, loss, x, ws, maps)
    half = tiling.TiledLoss(loss, (64, 64), keep="half")
    _, theirs = everything(G, half, x, ws, maps)
    assert 1e-6 < relative(theirs[0], slopes[0]) < 1e-3
    assert "half precision" in half.describe() and "half" not in tiling.TiledLoss(loss, (64, 64)).describe()


def test_random_tiles_are_right_on_average(G, monkeypatch):
    loss = losses.Perceptual(features.vgg16("shipped")) + losses.MSE(3.0)
    x, _, _ = problem(G, (128, 128), torch.float32)
    every, some = tiling.TiledLoss(loss, (64, 64)), tiling.TiledLoss(loss, (64, 64), share=0.25)

    def found(tiled):
        picture = x.flip(3).clone().requires_grad_()
        total = sum(tiled(picture, tiled.prepare(x)).values())
        return float(total.detach()), torch.autograd.grad(total, picture)[0]

    value, slope = found(every)
    drawn = [some.seen((x + shift).requires_grad_()) for shift in torch.linspace(0, 0.5, 30)]
    assert {len(tiles) for tiles in drawn} == {1} and len({tiles[0][0] for tiles in drawn}) == 4
    assert found(some)[0] == found(some)[0] != value, "the same tiles for the same picture"
    with torch.no_grad():
        assert float(sum(some(x.flip(3), x).values())) == pytest.approx(value, rel=1e-6)
    one_by_one = []
    for k in range(4):
        monkeypatch.setattr(some, "seen", lambda image, k=k: [every.seen(image)[k]])
        one_by_one.append(found(some))
    assert sum(value for value, _ in one_by_one) / 4 == pytest.approx(value, rel=1e-6)
    assert relative(sum(slope for _, slope in one_by_one) / 4, slope) < 1e-6
    assert "0.25" in some.describe() and "share" not in every.describe() and "tiles" not in every.describe()


def test_a_halo_one_pixel_too_narrow_would_be_noticed(G):
    loss = losses.Perceptual(features.vgg16("shipped"))
    assert loss.features.reach(["features_28"]) == (16, 90) and loss.features.reach(["features_2"]) == (1, 2)
    loss, G = loss.double(), weights.load_generator("scenes_inr128").double()
    x, ws, maps = problem(G, (224, 224), torch.float64)
    value, _ = everything(G, loss, x, ws, maps)
    narrow = tiling.TiledLoss(loss, (112, 112))
    narrow.halo = 64
    ours, _ = everything(G, narrow, x, ws, maps)
    assert abs(float(ours - value)) > 1e-9 * float(value)


def test_a_window_is_that_part_of_the_picture(G):
    G, rng = weights.load_generator("scenes_inr128").double(), torch.Generator().manual_seed(0)
    for size in [(7, 350), (95, 61), (128, 128)]:
        ws, maps = G.mapping(torch.randn(2, G.z_dim, generator=rng).double()), G.noise_maps(size)
        with torch.no_grad():
            whole = G.synthesis(ws, maps, size)
            for _ in range(6):
                ends = [sorted(torch.randint(0, n + 1, (2,), generator=rng).tolist()) for n in size]
                window = tuple(slice(min(a, n - 1), max(b, a + 1)) for (a, b), n in zip(ends, size, strict=True))
                part = G.synthesis(ws, maps, size, window=window)
                torch.testing.assert_close(part, whole[:, :, *window], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("how", "error", "word"),
    [
        ({"window": (slice(0, 200), slice(0, 4))}, InvalidValue, "window"),
        ({"window": (slice(4, 4), slice(0, 4))}, InvalidValue, "window"),
        ({"window": (slice(0, 4), slice(0, 4)), "canvas": (64, 64)}, InvalidValue, "canvas"),
    ],
)
def test_impossible_windows(G, how, error, word):
    with pytest.raises(error, match=word):
        G.synthesis(G.w_avg.expand(1, G.num_ws, -1), size=(128, 128), **how)


@pytest.mark.parametrize(
    ("loss", "error", "word"),
    [
        (lambda: losses.Perceptual(features.vgg16("shipped"), resize=64), InvalidValue, "resize=64"),
        (lambda: losses.LPIPS("thin"), InvalidValue, "LPIPS"),
        (lambda: losses.named("deit", weights="shipped"), UnknownName, "DeiT"),
        (lambda: losses.MSE() + losses.named("resnet50", weights="shipped"), UnknownName, "ResNet50"),
    ],
)
def test_losses_that_are_not_sums_over_positions(loss, error, word):
    with pytest.raises(error, match=word):
        tiling.TiledLoss(loss(), (64, 64))


def test_other_refusals(G):
    loss = losses.Perceptual(features.vgg16("shipped")) + losses.MSE()
    with pytest.raises(UnknownName, match="disk"):
        tiling.TiledLoss(loss, (64, 64), keep="disk")
    with pytest.raises(InvalidValue, match="share"):
        tiling.TiledLoss(loss, (64, 64), share=0)
    with pytest.raises(ShapeError, match="32 pixels"):  # why a side below 32 pixels does not work
        tiling.TiledLoss(loss, (64, 64)).prepare(torch.zeros(1, 3, 20, 400))
    square = Generator(z_dim=8, w_dim=8, resolution=16, channels={4: 4, 8: 4, 16: 4})
    with pytest.raises(InvalidValue, match="Style-INR-GAN"):
        tiling.TiledGenerator(square, (64, 64))
    tiled, x = tiling.TiledLoss(loss, (64, 64)), torch.zeros(1, 3, 64, 64)
    terms = tiled((x + 0.1).requires_grad_(), x)
    with pytest.raises(InvalidValue, match="one weight for all"):
        (terms["perceptual"] + 2 * terms["mse"]).backward()


def test_mse_alone_has_no_least_size(G):
    x = torch.rand(1, 3, 5, 250) - 0.5
    tiled = {"G": tiling.TiledGenerator(G, (64, 64)), "loss": tiling.TiledLoss(losses.MSE(), (64, 64))}
    result = optim.solve(inversion.invert(x=x, **tiled, num_steps=3, w_samples=100))
    assert result.image.shape == x.shape


# --- inversion --------------------------------------------------------------------------------------------------------


def loss_of_all():
    return losses.Perceptual(features.vgg16("shipped")) + losses.MSE(30.0)


@pytest.mark.parametrize("moments", ["memory", "file"])
def test_killed_and_resumed_is_the_same_run(G, tmp_path, moments):
    x = torch.rand(1, 3, 70, 130, generator=torch.Generator().manual_seed(3)) * 2 - 1
    planned = budget.plan(G, loss_of_all(), (70, 130), memory="8GB", tile=64, moments=moments)
    how = {"x": x, "num_steps": 6, "w_samples": 100, **planned.apply(G, loss_of_all())}
    straight = optim.solve(inversion.invert(**how))
    first = optim.last(itertools.islice(inversion.invert(**how), 4))
    first.state().save(tmp_path / "state.safetensors")
    resumed = optim.solve(inversion.invert(**how), checkpoint=tmp_path / "state.safetensors")
    assert torch.equal(straight.image, resumed.image) and torch.equal(straight.ws, resumed.ws)
    assert all(torch.equal(straight.noise[k], resumed.noise[k]) for k in straight.noise)


def test_moments_in_files_change_nothing(G):
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    ends = [
        optim.last(inversion.invert(G, x, losses.MSE(), num_steps=4, w_samples=100, moments=m)).variables
        for m in ("memory", "file")
    ]
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
    with pytest.raises(UnknownName, match="moments='disk'"):
        next(inversion.invert(G, x, losses.MSE(), num_steps=1, w_samples=100, moments="disk"))


def test_codes_can_be_kept(G):
    x, ws = torch.rand(1, 3, 64, 96) - 0.5, G.mapping(torch.ones(1, G.z_dim)).detach()
    how = {"num_steps": 4, "w_samples": 100, "optimise_ws": False}
    result = optim.solve(inversion.invert(G, x, losses.MSE(), ws_init=ws, **how))
    assert torch.equal(result.ws, ws)
    before = G.synthesis(ws, inversion._initial_noise(G, 1, (64, 96), 1.0, 0), (64, 96))
    assert float((result.image - x).square().mean()) < float((before - x).square().mean())
    for wrong in ({"ws_init": None}, {"ws_init": ws, "optimise_noise": False}):
        with pytest.raises(InvalidValue, match="optimise_ws=False"):
            next(inversion.invert(G, x, losses.MSE(), **how, **wrong))


# --- plans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"), [("4GB", 4 * 10**9), ("900 MiB", 900 * 2**20), ("1.5g", 1_500_000_000), (1000, 1000)]
)
def test_sizes_of_memory(text, count):
    assert budget.bytes_of(text) == count


@pytest.mark.parametrize("text", ["much", "4XB", "", "GB"])
def test_wrong_sizes_of_memory(text):
    with pytest.raises(InvalidValue, match="4GB"):
        budget.bytes_of(text)


def test_a_plan_uses_what_it_is_given(G):
    loss, size = loss_of_all(), (1677, 6143)
    wide = budget.plan(G, loss, size, memory="16GB")
    assert wide.keep == wide.moments == "memory" and wide.tile == (512, 512)
    least = sum(v for k, v in wide.needs.items() if k not in ("a tile", "target features", "Adam's moments"))
    tight = budget.plan(G, loss, size, memory=wide.peak - 300e6)
    assert tight.peak <= tight.budget < wide.peak and (tight.keep != "memory" or tight.moments == "file")
    assert "predicted peak" in str(tight) and "6143 x 1677" in str(tight)
    with pytest.raises(BudgetError, match="megapixels or less") as e:
        budget.plan(G, loss, size, memory=least)
    assert "give" in e.value.do
    with pytest.raises(ShapeError, match="32 pixels"):
        budget.plan(G, loss, (31, 500))


def test_full_size_state_grows_with_the_pixels_and_nothing_else(G):
    plans = [budget.plan(G, loss_of_all(), s, memory="60GB", keep="recompute") for s in [(1000, 1000), (2000, 4000)]]
    small, large = (plan.peak - plan.needs["a tile"] for plan in plans)
    slope = (large - small) / 7e6
    assert 90 < slope < 130  # bytes a pixel: four pictures (48), five sets of noise maps, moments included (64)


MEASURE = """
import sys, torch
from hrlib import inversion, losses, features, optim, weights
from hrlib.tiling import budget
G, loss = weights.load_generator("scenes_inr128"), losses.Perceptual(features.vgg16("shipped")) + losses.MSE(30.0)
size = (int(sys.argv[1]), int(sys.argv[2]))
planned = budget.plan(G, loss, size, memory="8GB")
x = torch.rand(1, 3, *size) * 2 - 1
for _ in zip(range(2), inversion.invert(x=x, num_steps=3, w_samples=1000, **planned.apply(G, loss))):
    pass
print(optim.peak_bytes() / planned.peak)
"""


def test_the_predicted_peak_is_near_the_measured_one():
    done = subprocess.run([sys.executable, "-c", MEASURE, "700", "1000"], capture_output=True, text=True, check=True)
    assert 0.7 < float(done.stdout) < 1.15


def test_a_wide_network_is_planned_from_a_probe_of_it():
    wide = StyleINR(z_dim=8, w_dim=8, resolution=1024, channels=channel_plan(1024, base=8192, most=128), inr_hidden=64)
    full = losses.Perceptual(features.vgg16("random"))
    planned = budget.plan(wide, full, (1677, 6143), memory="8GB")
    thin = budget.plan(wide, losses.Perceptual(features.vgg16("shipped")), (1677, 6143), memory="8GB")
    assert planned.needs["a tile"] > 2 * thin.needs["a tile"] and planned.peak < 8e9


# --- runs, files and the page -----------------------------------------------------------------------------------------


def test_a_run_in_a_folder_can_be_interrupted(tmp_path, capsys):
    x = panoramas.image.sample("coffee", (48, 160))
    recipe = panoramas.Settings(num_steps=6)
    straight = panoramas.reconstruct_into(x, tmp_path / "a", recipe, every=2, memory="4GB")
    assert "predicted peak" in capsys.readouterr().out

    class Killed(Exception):
        pass

    write, count = deepzoom.write, itertools.count()

    def dies(*args, **more):
        if next(count) == 1:
            raise Killed  # after the checkpoint of step 2, while the page of step 4 is written
        return write(*args, **more)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(deepzoom, "write", dies)
        panoramas.reconstruct_into(x, tmp_path / "b", recipe, every=2, memory="4GB")
    assert (tmp_path / "b" / "state.safetensors").exists() and (tmp_path / "b" / "zoom" / "index.html").exists()
    page = json.loads((tmp_path / "b" / "zoom" / "status.js").read_text()[len("shown(") : -3])
    with pytest.raises(StoreError, match="holds a run of `hrlab invert` with picture"):
        panoramas.reconstruct_into(-x, tmp_path / "b", recipe, memory="4GB")
    with pytest.raises(StoreError, match=r"num_steps = 6\n.*num_steps = 7"):
        panoramas.reconstruct_into(x, tmp_path / "b", panoramas.Settings(num_steps=7), memory="4GB")
    resumed = panoramas.reconstruct_into(x, tmp_path / "b", recipe, every=2, memory="4GB", suffix=".tif")
    assert not (tmp_path / "b" / "zoom" / page["layers"][1]["folder"]).exists()  # tiles of step 2
    assert resumed["whole"] == straight["whole"] and not (tmp_path / "b" / "state.safetensors").exists()
    assert torch.equal(image.read(tmp_path / "a/reconstruction.png"), image.read(tmp_path / "b/reconstruction.tif"))
    regions = pd.read_csv(tmp_path / "b" / "regions.csv")
    assert (regions["height"] * regions["width"]).sum() == 48 * 160
    assert json.loads((tmp_path / "b" / "facts.json").read_text())["recipe"]["num_steps"] == 6
    with pytest.raises(StoreError, match="already, finished"):
        panoramas.reconstruct_into(x, tmp_path / "b", recipe, memory="4GB")


def test_formats_are_checked_before_the_first_step(tmp_path):
    with pytest.raises(ImageError, match=r"png or a \.tif"):
        panoramas.reconstruct_into(torch.zeros(1, 3, 32, 70_000), tmp_path, panoramas.Settings(), suffix=".jpg")
    with pytest.raises(ImageError, match="at most"):
        image.write(torch.zeros(1, 3, 2, 70_000), tmp_path / "wide.jpeg")
    assert not any(tmp_path.iterdir())


def test_a_run_of_its_own_does_not_count_its_parents_memory(tmp_path):
    ballast = torch.ones(600_000_000 // 4)
    facts = panoramas.reconstruct_apart(
        "photo:coffee", (48, 64), tmp_path, panoramas.Settings(num_steps=2), memory="4GB"
    )
    mine = optim.peak_bytes()
    assert 1.5e8 < facts["peak"] < mine - 2e8 and facts["size"] == (48, 64)
    assert mine > ballast.nbytes and (tmp_path / "reconstruction.png").exists()


def test_the_recorded_run_is_what_its_files_say():
    folder = root() / "data" / "panorama"
    facts = json.loads((folder / "facts.json").read_text())
    assert facts["size"] == [1677, 6143] and len(facts["history"]) == facts["recipe"]["num_steps"]
    assert panoramas.whole(pd.read_csv(folder / "regions.csv")) == pytest.approx(facts["whole"], rel=1e-4)
    original, reconstruction = (image.read(folder / f"{name}.webp") for name in ("original", "reconstruction"))
    assert original.shape == reconstruction.shape == (1, 3, 1677, 6143)
    mse = float((original - reconstruction).square().mean()) / 4
    assert -10 * math.log10(mse) == pytest.approx(facts["whole"]["psnr"], abs=0.5)  # WebP takes and gives a little


def test_tiff_is_tiled_and_exact(tmp_path):
    x = image.sample("coffee", (300, 500))
    path = image.write(x, tmp_path / "coffee.tif")
    with tifffile.TiffFile(path) as file:
        assert file.pages[0].is_tiled and file.pages[0].tile == (256, 256)
    assert torch.equal(image.read(path), x)


def test_the_page_has_every_tile_it_asks_for(tmp_path):
    x = image.sample("coffee", (300, 523))
    page = deepzoom.write({"original": x, "other": -x}, tmp_path, title="coffee")
    text = (tmp_path / "status.js").read_text()
    status = json.loads(text[len("shown(") : -3])
    for layer in status["layers"]:
        top = deepzoom.levels(layer["width"], layer["height"])
        for level in range(top + 1):
            width, height = (-(-n // 2 ** (top - level)) for n in (layer["width"], layer["height"]))
            columns, rows = (-(-n // layer["tile"]) for n in (width, height))
            have = {p.stem for p in (tmp_path / layer["folder"] / str(level)).iterdir()}
            assert have == {f"{c}_{r}" for c in range(columns) for r in range(rows)}
    whole = image.read(tmp_path / status["layers"][0]["folder"] / "9" / "0_0.jpg") if top == 9 else None
    assert whole is None or whole.shape[2:] == (150, 255)
    before = {p.name for p in tmp_path.iterdir() if p.is_dir()}
    deepzoom.write({"original": x, "other": x * 0.5}, tmp_path, title="coffee")
    after = {p.name for p in tmp_path.iterdir() if p.is_dir()}
    assert len(before & after) == 1 and len(after) == 2, "what did not change is kept, what is old is gone"
    assert page.exists() and not list(tmp_path.glob(".partial*"))
    with pytest.raises(ShapeError, match="one size"):
        deepzoom.write({"a": x, "b": x[:, :, :9]}, tmp_path, title="")


def test_a_page_replaces_and_removes_nothing_but_its_own(tmp_path):
    x = torch.zeros(1, 3, 8, 8)
    mine = [tmp_path / "family meeting" / "video.mp4", tmp_path / "0-0123456789abcdef" / "a.txt"]  # named as tiles are
    for file in mine:
        file.parent.mkdir()
        file.write_text("mine")
    for fill in (0.0, 0.5, 1.0):
        deepzoom.write({"a": x + fill}, tmp_path, title="")
    assert all(file.read_text() == "mine" for file in mine)
    assert len([p for p in tmp_path.iterdir() if p.is_dir()]) == 3
    for name, folder in {"index.html": "site", "status.js": "other", "openseadragon.min.js": "third"}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("mine")
        for call in (deepzoom.prepare, lambda at: deepzoom.write({"a": x}, at, title="")):
            with pytest.raises(StoreError, match="there already"):
                call(tmp_path / folder)
        assert [p.name for p in (tmp_path / folder).iterdir()] == [name]
    deepzoom.write({"a": x}, tmp_path / "site", title="", force=True)
    assert "mine" not in (tmp_path / "site" / "index.html").read_text()[:10]
    (tmp_path / "other" / "status.js").unlink()
    shutil.copy(deepzoom.VIEWER / "index.html", tmp_path / "other")  # all that a killed run left
    assert deepzoom.write({"a": x}, tmp_path / "other", title="").exists()
    with pytest.raises(StoreError, match="cannot be written"):
        deepzoom.prepare(mine[0] / "zoom")


@pytest.mark.skipif(shutil.which("node") is None, reason="no JavaScript interpreter here")
def test_the_page_is_a_program(tmp_path):
    text = (deepzoom.VIEWER / "index.html").read_text()
    script = tmp_path / "page.js"
    script.write_text(text.rsplit("<script>", 1)[1].partition("</script>")[0])
    subprocess.run(["node", "--check", str(script)], check=True)


def test_the_command(tmp_path):
    run = lambda *words: CliRunner().invoke(cli.app, ["invert", *words])
    planned = run("photo:coffee", "--size", "800x300", "--out", str(tmp_path), "--plan", "--memory", "4GB")
    assert planned.exit_code == 0 and "800 x 300" in planned.output and not list(tmp_path.iterdir())
    assert run("photo:coffee", "--size", "800", "--out", str(tmp_path)).exit_code == 2
    file = image.write(image.sample("coffee", (40, 90)), tmp_path / "a.png")
    done = run(str(file), "--out", str(tmp_path / "run"), "--num-steps", "2", "--memory", "4GB", "--format", "tif")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "run" / "reconstruction.tif").exists()
    small = run(str(file), "--out", str(tmp_path / "no"), "--memory", "1MB")
    assert isinstance(small.exception, BudgetError) and not (tmp_path / "no").exists()


def test_the_command_never_replaces_what_is_the_users(tmp_path, monkeypatch):
    """Whatever it finds in OUT, before the first step: other files, the picture itself, a page, a file in the way."""
    monkeypatch.setattr(panoramas, "_inverted", lambda *_, **__: pytest.fail("work began"))
    run = lambda *words: CliRunner().invoke(cli.app, ["invert", *map(str, words), "--num-steps", "1"]).exception
    picture = image.write(image.sample("coffee", (40, 48)), tmp_path / "picture.png")
    video = tmp_path / "docs" / "zoom" / "family meeting" / "video.mp4"
    video.parent.mkdir(parents=True)
    video.write_text("mine")
    (own := tmp_path / "own").mkdir()
    itself, capital = own / "reconstruction.png", own / "reconstruction.JPG"
    for file in (itself, capital):
        file.write_bytes(before := picture.read_bytes())
    for words, match in (
        ((picture, "--out", tmp_path / "docs"), "is not empty"),
        ((itself, "--out", own), "under a name that the run's own files have"),
        ((itself, "--out", own, "--force", "--format", "tif"), "under a name that the run's own files have"),
        ((capital, "--out", own, "--force", "--format", "PNG"), "under a name that the run's own files have"),
        ((picture, "--out", picture), "cannot be written"),
        ((picture, "--out", picture / "run"), "cannot be written"),
    ):
        error = run(*words)
        assert isinstance(error, StoreError) and match in str(error)
        assert video.read_text() == "mine" and all(f.read_bytes() == before for f in (itself, capital, picture))


def test_a_forced_run_removes_nothing_before_it_can_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(panoramas, "_inverted", lambda *_, **__: pytest.fail("work began"))
    x, folder, site = image.sample("coffee", (40, 48)), tmp_path / "run", tmp_path / "site"
    for place in (folder, site):
        place.mkdir()
        (place / "index.html").write_text("mine")
    (folder / "codes.safetensors").write_text("a result")
    run = lambda: panoramas.reconstruct_into(x, folder, panoramas.Settings(num_steps=1), memory="4GB", force=True)
    (zoom := folder / "zoom").write_text("mine")
    with pytest.raises(StoreError, match="cannot be written"):
        run()
    zoom.unlink()
    zoom.symlink_to(site)
    with pytest.raises(StoreError, match="is a link"):
        run()
    zoom.unlink()
    (folder / "facts.json").mkdir()
    with pytest.raises(StoreError, match="is a folder"):
        run()
    assert (folder / "codes.safetensors").exists() and [p.name for p in site.iterdir()] == ["index.html"]


def test_a_run_that_never_stepped_leaves_its_folder_to_another(tmp_path):
    x = image.sample("coffee", (40, 48))
    with pytest.raises(NonFiniteLoss):
        panoramas.reconstruct_into(x, tmp_path / "run", panoramas.Settings(num_steps=2, mse=1e300), memory="4GB")
    assert panoramas.reconstruct_into(x, tmp_path / "run", panoramas.Settings(num_steps=1), memory="4GB")


def test_a_forced_run_replaces_files_of_its_own_names_alone(tmp_path):
    x, mine = image.sample("coffee", (40, 48)), tmp_path / "zoom" / "family meeting" / "video.mp4"
    mine.parent.mkdir(parents=True)
    for file in (mine, tmp_path / "facts.json", tmp_path / "reconstruction.jpg", tmp_path / "zoom" / "index.html"):
        file.write_text("mine")
    facts = panoramas.reconstruct_into(x, tmp_path, panoramas.Settings(num_steps=1), memory="4GB", force=True)
    assert mine.read_text() == "mine" and not (tmp_path / "reconstruction.jpg").exists()
    assert json.loads((tmp_path / "facts.json").read_text())["peak"] == facts["peak"]
    assert (tmp_path / "zoom" / "index.html").read_bytes() == (deepzoom.VIEWER / "index.html").read_bytes()


def test_numbers_of_a_large_picture(tmp_path, monkeypatch):
    for name, bad in {"mse": -1.0, "lr": math.nan, "num_steps": 0, "seed": 2**32, "beta1": 1.0}.items():
        with pytest.raises(InvalidValue, match=name):
            panoramas.Settings(**{name: bad})
    assert type(panoramas.Settings(num_steps=torch.tensor(3.0)).num_steps) is int
    run = lambda *words: CliRunner().invoke(cli.app, ["invert", "scene:1", "--out", str(tmp_path / "o"), *words])
    for words in (("--mse", "-1"), ("--lr", "0"), ("--lr", "nan"), ("--seed", "99999999999999")):
        assert isinstance(run(*words).exception, InvalidValue)
    for size in ("²x²", "0x9", "9x", "-3x9", "9" * 5000 + "x9"):
        assert run(f"--size={size}").exit_code == 2
    for more in ((), ("--plan",)):
        for size in ("99999999x9", "99999999x99999999", "20000x15000"):
            error = run(f"--size={size}", *more).exception
            assert isinstance(error, InvalidValue) and "megapixels" in str(error)
    monkeypatch.setattr(pictures, "picture", lambda *_: pytest.fail("a plan reads nothing"))
    assert run("--size", "800x300", "--memory", "4GB", "--plan").exit_code == 0
    x = torch.zeros(1, 3, 64, 64)
    for tile in ((0, 64), (64, -1), (64, 1.5)):
        for tiled in (lambda t=tile: tiling.TiledLoss(losses.MSE(), t), lambda t=tile: tiling.tiles((64, 64), t)):
            with pytest.raises(InvalidValue, match="tile"):
                tiled()
    for edge in (0, math.nan):
        with pytest.raises(InvalidValue, match="edge"):
            panoramas.by_region(x, x, edge=edge)
    assert not (tmp_path / "o").exists()
