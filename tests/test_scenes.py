"""The procedural landscapes: functions of position alone, exact in tiles, of any shape, with detail to the pixel."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
import tifffile
import torch

from hrlib.errors import InvalidValue, ShapeError, StoreError, UnknownName
from hrlib.worlds import scenes

# What only a wide enough picture shows: trees, water, a bank, grass, clouds.
RICH = {"trees": 1.0, "lake": 0.45, "clouds": 0.5, "flowers": 1.0, "wind": 0.5, "season": 1.2}


@pytest.fixture(scope="module")
def views() -> scenes.Scenes:
    return scenes.sample(3, seed=2).replace(**RICH)


# --- parameters -------------------------------------------------------------------------------------------------------


def test_an_item_depends_on_seed_and_index_alone():
    many, few = scenes.sample(9, seed=5), scenes.sample(4, seed=5)
    assert torch.equal(many.values[:4], few.values) and torch.equal(many.detail_seed[:4], few.detail_seed)
    assert (scenes.sample(4, seed=6).get("range1") != few.get("range1")).all()
    assert len(set(scenes.sample(500).detail_seed.tolist())) == 500


def test_parameters_stay_in_their_ranges_and_fill_them():
    values = scenes.sample(2000).named()
    for name, (low, high) in scenes.RANGES.items():
        assert low <= values[name].min() and values[name].max() <= high
        assert values[name].max() - values[name].min() > 0.9 * (high - low)


def test_parts_and_changes_of_a_set(views):
    assert len(views) == 3 and len(views[1]) == 1 and len(views[[0, 2]]) == 2
    changed = views.replace(season=3.0, haze=torch.tensor([0.0, 0.5, 1.0]))
    assert changed.get("haze").tolist() == [0.0, 0.5, 1.0] and (changed.get("season") == 3).all()
    assert (views.get("season") != 3).all()
    with pytest.raises(UnknownName, match="snow_line"):
        views.get("snowline")
    with pytest.raises(UnknownName):
        views.replace(moon=1.0)
    with pytest.raises(ShapeError):
        scenes.Scenes(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))


# --- functions of place -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [64, 37])
def test_a_tile_is_that_crop_of_the_picture(views, tile):
    size = (90, 140)
    whole = scenes.render(views[0], size)[0]
    seen = torch.zeros(size)
    for rows, cols, image in scenes.tiles(views[0], size, tile=tile):
        assert torch.equal(image, whole[:, rows, cols])
        seen[rows, cols] += 1
    assert (seen == 1).all()


def test_a_picture_depends_neither_on_its_batch_nor_on_the_chunk(views):
    together = scenes.render(views, 64)
    assert torch.equal(together[1:2], scenes.render(views[1], 64))
    assert torch.equal(together, scenes.render(views, 64, chunk=3))
    assert torch.equal(together, scenes.render(views, 64))


def test_threads_share_the_blocks_without_changing_them(views):
    one = scenes.render(views[0], (70, 150))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(one, scenes.render(views[0], (70, 150)))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("supersample", [1, 2])
def test_a_wider_picture_shows_more_land_around_the_same_middle(views, supersample):
    narrow = scenes.render(views[1], (72, 80), supersample)
    wide = scenes.render(views[1], (72, 216), supersample)
    assert torch.equal(wide[..., 68:148], narrow)
    assert wide[..., :68].std() > 0.05


def test_a_larger_picture_is_the_same_scene_with_more_detail(views):
    small, large = scenes.render(views, 64, 3), scenes.render(views, 256, 1)
    shrunk = torch.nn.functional.avg_pool2d(large, 4)
    coarse = lambda x: torch.nn.functional.avg_pool2d(x, 4)
    assert (coarse(shrunk) - coarse(small)).abs().mean() < 0.05  # the same land
    other = coarse(small.roll(1, 0))
    assert (coarse(shrunk) - other).abs().mean() > 0.12  # and not just any


@pytest.mark.parametrize("size", [(8, 8), (96, 16), (16, 300), 33])
def test_any_size_and_shape(views, size):
    x = scenes.render(views[2], size, 1)
    height, width = (size, size) if isinstance(size, int) else size
    assert x.shape == (1, 3, height, width) and x.dtype == torch.float32
    assert x.isfinite().all() and x.abs().max() <= 1 and x.std() > 0.05


# --- what is seen -----------------------------------------------------------------------------------------------------


def near_nyquist(image: torch.Tensor) -> float:
    """Mean power from 0.42 to 0.5 cycles a pixel against that of all frequencies, in the lower part: the land."""
    ground = image.mean(0)[len(image[0]) * 5 // 8 :]
    ground = ground[: len(ground) // 2 * 2] - ground.mean()
    power = torch.fft.fft2(ground).abs().square()
    f = torch.hypot(*torch.meshgrid(*(torch.fft.fftfreq(n) for n in ground.shape), indexing="ij"))
    return float(power[(f > 0.42) & (f < 0.5)].mean() / power[f > 0].mean())


@pytest.mark.parametrize("size", [96, 384])
def test_detail_reaches_the_nyquist_frequency_at_every_size(views, size):
    """Far more of it than in an enlarged picture of half the size."""
    view = views[0].replace(lake=0.0)
    enlarged = torch.nn.functional.interpolate(scenes.render(view, size // 2), scale_factor=2, mode="bicubic")
    own = near_nyquist(scenes.render(view, size)[0])
    assert own > 0.03 and own > 2.5 * near_nyquist(enlarged[0])


def test_supersampling_converges(views):
    x = [scenes.render(views[0], 64, s) for s in (1, 2, 4, 8)]
    error = [(part - x[-1]).square().mean() for part in x[:-1]]
    assert error[0] > error[1] > error[2]


def test_parameters_do_what_they_say(views):
    base = views.replace(mist=0.0, haze=0.1, clouds=0.1, trees=0.0, sun_elevation=0.7, season=1.0, lake=0.0)
    brightness = lambda x: x.mean((1, 2, 3))
    look = lambda **change: scenes.render(base.replace(**change), 48)
    assert (brightness(look(sun_elevation=-0.1)) < brightness(look()) - 0.2).all()
    foot = look(season=3.0)[:, :, 36:], look(season=1.0)[:, :, 36:]
    assert (brightness(foot[0]) > brightness(foot[1]) + 0.2).all()  # snow on the meadow
    green = lambda x: (x[:, 1] - x[:, 2])[:, 36:].mean((1, 2))
    assert (green(look(lake=0.0)) > green(look(lake=1.0)) + 0.1).all()  # meadow against water
    assert (look(trees=1.0) != look()).any(1).float().mean() > 0.02


def test_explained_reports_the_skylines_of_the_picture():
    views = scenes.sample(4, seed=8).replace(hills=0.0, forest=0.0, haze=0.0, mist=0.0, clouds=-3.0, sun_elevation=0.9)
    views = views.replace(trees=0.0, sun_azimuth=1.3, snow_line=0.4)
    told = scenes.explained(views)
    assert told.shape == (4, 62) and told.dtype == torch.float32 and told.isfinite().all()
    lines = told[:, len(scenes.NAMES) :][:, :25].view(4, 5, 5) / 4
    size = 200
    x = scenes.render(views, size, 1)
    for i, view in enumerate(range(4)):
        for probe, ridge in zip(scenes.PROBES, lines[i, :3].amax(0), strict=True):
            column = x[view, :, :, round((0.5 + probe) * size)]
            change = (column[:, 3:] - column[:, :-3]).abs().sum(0)
            horizon = size * (1 - float(views.get("horizon")[i]))
            first = int((change > 0.25).nonzero()[0])  # the sky is smooth: the first edge from the top is the skyline
            assert abs(first + 1.5 - (horizon - float(ridge) * size)) < 0.045 * size
    assert (scenes.explained(views[2]) - told[2:3]).abs().max() < 1e-6


def test_explained_reports_trees():
    views = scenes.sample(40, seed=1).replace(trees=1.0)
    kinds = scenes.explained(views)[:, -10:-5]
    assert set(kinds.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert (scenes.explained(views.replace(conifers=1.0))[:, -10:-5] >= 0).all()
    assert (scenes.explained(views.replace(trees=0.0))[:, -10:] == 0).all()


# --- streaming --------------------------------------------------------------------------------------------------------


def test_a_panorama_in_a_file_is_the_picture(views, tmp_path):
    path = scenes.write_panorama(views[0], (72, 530), tmp_path / "wide.tif", supersample=1)
    stored = torch.from_numpy(tifffile.imread(path)).permute(2, 0, 1)
    drawn = (scenes.render(views[0], (72, 530), 1)[0] * 127.5 + 127.5).round().to(torch.uint8)
    assert torch.equal(stored, drawn)
    assert [p.name for p in tmp_path.iterdir()] == ["wide.tif"]


def test_a_panorama_replaces_nothing_and_is_named_as_what_it_is(views, tmp_path, monkeypatch):
    small = lambda name, **options: scenes.write_panorama(views[0], (8, 16), tmp_path / name, supersample=1, **options)
    assert small("lake_0.5").name == "lake_0.5.tif" and small("lake.tiff").name == "lake.tiff"
    before = (tmp_path / "lake.tiff").read_bytes()
    with monkeypatch.context() as patch, pytest.raises(StoreError, match="is there already"):
        patch.setattr(scenes, "_window", None)  # nothing is drawn
        small("lake.tiff")
    assert (tmp_path / "lake.tiff").read_bytes() == before
    assert small("lake.tiff", force=True).read_bytes() == before
    with pytest.raises(StoreError, match="cannot be written"):
        small("lake.tiff/more.tif")


_STREAM = """
import resource, torch
torch.set_num_threads(1)
from hrlib.worlds import scenes
view = scenes.sample(1, seed=2)
scenes.render(view, 64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stream = scenes.tiles(view, (10_000, 40_000), tile=64)
for _ in range(6):
    next(stream)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(not hasattr(resource, "RUSAGE_SELF") or sys.platform == "darwin", reason="ru_maxrss in KiB: Linux")
def test_a_400_megapixel_picture_streams_in_the_memory_of_a_tile():
    done = subprocess.run([sys.executable, "-c", _STREAM], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 60  # MiB; the picture would take 4,600


def test_bad_arguments_are_refused(views):
    with pytest.raises(InvalidValue, match="size = 7"):
        scenes.render(views, 7)
    with pytest.raises(InvalidValue, match=r"size \(32, 32, 32\)"):
        scenes.render(views, (32, 32, 32))
    with pytest.raises(InvalidValue, match="supersample"):
        scenes.render(views, 32, 0)
    with pytest.raises(ShapeError, match="one scene"):
        scenes.tiles(views, (64, 64))
    with pytest.raises(InvalidValue, match="tile = 0"):
        scenes.tiles(views[0], (64, 64), tile=0)
