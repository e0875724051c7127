"""Training sets on disk: rendered ones, their latents, and packed folders; what is there already is left alone."""

import resource
import shutil

import numpy as np
import pytest
import torch

from hrlib import image
from hrlib.errors import ImageError, InvalidValue, StoreError, UnknownName
from hrlib.training import human_heads, identity_set, picture_sets, set_files

Z = 70


def rendered(folder, n, **options):
    for done in picture_sets.render_set(folder, n, resolution=16, z_dim=Z, seed=3, **options):
        pass
    return picture_sets.load_set(folder)


@pytest.fixture(scope="module")
def portraits(tmp_path_factory):
    return rendered(tmp_path_factory.mktemp("set"), 16)


def test_rendering_resumes_and_does_not_depend_on_n(portraits, tmp_path, monkeypatch):
    monkeypatch.setattr(picture_sets, "CHUNK", 4)
    rendering = picture_sets.render_set(tmp_path, 12, resolution=16, z_dim=Z, seed=3)
    assert next(rendering) == 4  # then the process dies
    rendering.close()
    assert list(picture_sets.render_set(tmp_path, 12, resolution=16, z_dim=Z, seed=3)) == [8, 12]
    assert list(picture_sets.render_set(tmp_path, 12, resolution=16, z_dim=Z, seed=3)) == []
    assert np.array_equal(picture_sets.load_set(tmp_path).images, portraits.images[:12])


def test_a_part_of_another_domain_is_the_same_people(portraits, tmp_path):
    part = rendered(tmp_path, 16, world="portraits/photo", count=5)
    assert len(part) == 5
    assert torch.equal(part.z, portraits.z[:5])
    assert np.array_equal(part.images, portraits.images[:5])


def test_another_set_is_never_made_over_one_that_is_there(tmp_path, monkeypatch):
    first = rendered(tmp_path, 6).images.copy()
    with pytest.raises(StoreError, match="holds a training set with count = 6"):
        rendered(tmp_path, 6, count=4)
    assert np.array_equal(picture_sets.load_set(tmp_path).images, first)
    assert len(rendered(tmp_path, 6, count=4, force=True)) == 4
    monkeypatch.setattr(picture_sets, "CHUNK", 2)
    next(picture_sets.render_set(tmp_path, 6, resolution=16, z_dim=Z, seed=4, force=True))  # is interrupted, too
    with pytest.raises(StoreError, match="seed = 4"):
        rendered(tmp_path, 6)


def test_a_finished_set_is_used_whoever_made_it_and_wherever_it_is(portraits, tmp_path):
    shutil.copytree(portraits.folder, tmp_path / "set")
    for name in (".hrlab.json", ".hrlab.lock"):  # as before folders were marked
        (tmp_path / "set" / name).unlink()
    before = sorted((f.name, f.stat().st_mtime_ns) for f in (tmp_path / "set").iterdir())
    assert list(picture_sets.render_set(tmp_path / "set", 16, resolution=16, z_dim=Z, seed=3)) == []
    assert before == sorted((f.name, f.stat().st_mtime_ns) for f in (tmp_path / "set").iterdir())


MAKERS = {
    "render": lambda folder: picture_sets.render_set(folder, 4, resolution=16, z_dim=Z),
    "views": lambda folder: identity_set.render_views(folder, identities=8, views=1, resolution=16, seed=1),
    "heads": lambda folder: human_heads.render(folder, 4, z_dim=48, seed=0),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_no_set_is_made_among_the_users_files(make, tmp_path):
    for name in ("images.npy", "notes.txt"):
        (tmp_path / name).write_text("precious")
    with pytest.raises(StoreError, match=r"is not empty \(images.npy, notes.txt\)"):
        list(make(tmp_path))
    (tmp_path / "file").write_text("precious")
    with pytest.raises(StoreError, match="cannot be written"):
        list(make(tmp_path / "file" / "set"))
    left = {f.name: f.read_text() for f in tmp_path.iterdir()}
    assert left == dict.fromkeys(("images.npy", "notes.txt", "file"), "precious")


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_two_never_make_a_set_in_one_folder(make, tmp_path):
    first = make(tmp_path)
    next(first)
    if set_files.read_json(tmp_path / set_files.STATUS)["done"] < 4:
        with pytest.raises(StoreError, match="another run"):
            next(make(tmp_path))
    first.close()


@pytest.fixture
def full_disk():
    """From the call on, no file can grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_an_error_and_leaves_no_set_that_looks_whole(album, tmp_path, monkeypatch, full_disk):
    monkeypatch.setattr(picture_sets, "CHUNK", 2)
    making = picture_sets.render_set(tmp_path / "set", 6, resolution=16, z_dim=Z, seed=3)
    assert next(making) == 2
    full_disk(128 + 3 * 768)  # in the middle of the fourth picture
    with pytest.raises(StoreError, match=r"images.npy cannot be written"):
        next(making)
    full_disk(2000)  # less than the packed pictures
    with pytest.raises(StoreError, match="cannot be written"):
        list(picture_sets.pack_folder(album, tmp_path / "packed", 16))
    with pytest.raises(StoreError, match="no training set"):
        picture_sets.load_set(tmp_path / "packed")
    full_disk(10**7)
    assert list(picture_sets.render_set(tmp_path / "set", 6, resolution=16, z_dim=Z, seed=3)) == [4, 6]
    assert list(picture_sets.pack_folder(album, tmp_path / "packed", 16)) == [1, 2, 3]


@pytest.fixture
def no_room(monkeypatch):
    monkeypatch.setattr(
        set_files.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6)
    )


def test_room_is_looked_for_before_anything_is_rendered(tmp_path, no_room):
    with pytest.raises(StoreError, match=r"set needs 0.8 GB, and 1 MB are free there"):
        next(picture_sets.render_set(tmp_path / "set", 16_000, resolution=128, z_dim=Z))


def test_mistyped_numbers_lock_no_folder(album, tmp_path, no_room):
    for making in (
        picture_sets.render_set(tmp_path / "set", 4, resolution=16, z_dim=1),
        picture_sets.render_set(tmp_path / "set", 4, world="scenes", resolution=16, z_dim=1),
        human_heads.render(tmp_path / "set", 4, z_dim=1, seed=0),
        picture_sets.pack_folder(album, tmp_path / "set", 1_000),
    ):
        with pytest.raises((InvalidValue, StoreError), match=r"z_dim 1|needs"):
            next(making)
        assert not (tmp_path / "set").exists()


def test_nobody_waits_for_pictures_that_nobody_renders(tmp_path, monkeypatch):
    monkeypatch.setattr(picture_sets, "CHUNK", 2)
    rendering = picture_sets.render_set(tmp_path, 6, resolution=16, z_dim=Z, seed=3)
    next(rendering)
    monkeypatch.setattr(picture_sets.time, "sleep", lambda seconds: next(rendering))  # meanwhile, it goes on
    picture_sets.load_set(tmp_path).wait_for(4)
    rendering.close()
    with pytest.raises(StoreError, match=r"4 pictures in .*, and no process is rendering(.|\n)*hrlab train render"):
        picture_sets.load_set(tmp_path).wait_for(5)


@pytest.mark.parametrize(
    "file, content", [(set_files.STATUS, b"{}"), (set_files.STATUS, b"[]"), ("images.npy", b""), ("images.npy", None)]
)
def test_damaged_sets_are_named(file, content, portraits, tmp_path):
    shutil.copytree(portraits.folder, tmp_path / "set")
    damaged = (portraits.folder / file).read_bytes()[:-9] if content is None else content
    (tmp_path / "set" / file).write_bytes(damaged)
    for use in (lambda: picture_sets.load_set(tmp_path / "set"), lambda: rendered(tmp_path / "set", 16)):
        with pytest.raises(StoreError, match=f"{file} is damaged(.|\n)*--force"):
            use()
    assert len(rendered(tmp_path / "set", 16, force=True)) == 16


@pytest.mark.parametrize(
    "wrong",
    [
        {"resolution": 0},
        {"resolution": -4},
        {"seed": 10**15},
        {"seed": -1},
        {"z_dim": 0},
        {"z_dim": 10**11},
        {"count": 1.5},
    ],
)
def test_numbers_out_of_range_make_no_folder(wrong, tmp_path):
    with pytest.raises(InvalidValue, match=next(iter(wrong))):
        list(picture_sets.render_set(tmp_path / "set", 4, **{"resolution": 16, "z_dim": Z} | wrong))
    for n in (0, 10**20):
        with pytest.raises(InvalidValue, match=f"n = {n}"):
            list(picture_sets.render_set(tmp_path / "set", n, resolution=16, z_dim=Z))
    with pytest.raises(InvalidValue, match="views = 0"):
        list(identity_set.render_views(tmp_path / "set", identities=8, views=0, resolution=16, seed=1))
    with pytest.raises(InvalidValue, match="n = -1"):
        list(human_heads.render(tmp_path / "set", -1, z_dim=48, seed=0))
    assert not list(tmp_path.iterdir())


def test_unknown_worlds_and_impossible_counts(tmp_path):
    with pytest.raises(UnknownName, match="portraits/photo"):
        rendered(tmp_path, 4, world="portrait/photo")
    with pytest.raises(UnknownName, match="what to do: name one of these worlds"):
        rendered(tmp_path, 4, world="nope")
    with pytest.raises(InvalidValue, match="count=5 of n=4"):
        rendered(tmp_path, 4, count=5)
    with pytest.raises(InvalidValue, match="z_dim 3"):
        list(picture_sets.render_set(tmp_path, 4, resolution=16, z_dim=3))


def test_latents_are_standard_normal_uncorrelated_and_close_to_their_parameters():
    g = torch.Generator().manual_seed(0)
    skewed, normal = torch.rand(4000, generator=g) ** 3, torch.randn(4000, generator=g)
    values = torch.stack([skewed, (torch.rand(4000, generator=g) < 0.3).float(), normal, normal + 3 * skewed], dim=1)
    z = picture_sets.gaussianise(values, 6, seed=1)
    assert z.shape == (4000, 6)
    assert z.mean(0).abs().max() < 0.1 and (z.std(0) - 1).abs().max() < 0.1
    assert torch.corrcoef(z.T).fill_diagonal_(0).abs().max() < 0.06
    assert (z[:, :4].T.corrcoef() - torch.eye(4)).abs().max() < 1e-3
    across = torch.corrcoef(torch.cat([z[:, :4], values], dim=1).T)[:4, 4:]  # [latent, parameter]
    assert torch.equal(across.abs().argmax(1), torch.arange(4))  # each latent still follows its own parameter most
    assert across.diagonal().min() > 0.6
    assert torch.equal(z, picture_sets.gaussianise(values, 6, seed=1))


def test_missing_set(tmp_path):
    with pytest.raises(StoreError, match="hrlab train render"):
        picture_sets.load_set(tmp_path)


@pytest.fixture
def album(tmp_path):
    """Three pictures: a wide one (red | green | blue thirds), a tall one in a subfolder, a small one."""
    wide = torch.full((1, 3, 30, 90), -1.0)
    for i in range(3):
        wide[:, i, :, 30 * i : 30 * (i + 1)] = 1
    image.write(wide, tmp_path / "album/a.png")
    image.write(torch.zeros(1, 3, 80, 40), tmp_path / "album/sub/b.jpg")
    image.write(torch.full((1, 3, 7, 9), 1.0), tmp_path / "album/sub/c.bmp")
    (tmp_path / "album/notes.txt").write_text("not a picture")
    return tmp_path / "album"


def test_a_folder_is_packed_as_centred_squares(album, tmp_path):
    assert list(picture_sets.pack_folder(album, tmp_path / "set", 16)) == [1, 2, 3]
    packed = picture_sets.load_set(tmp_path / "set")
    assert packed.images.shape == (3, 3, 16, 16) and packed.z is None
    assert (packed.images[0] == np.array([0, 255, 0], np.uint8)[:, None, None]).all()  # the middle third
    assert np.abs(packed.images[1].astype(int) - 128).max() <= 1
    x, z = packed.batch(torch.tensor([2, 0]))
    assert z is None and torch.equal(x[0], torch.ones(3, 16, 16))


def test_damaged_pictures_are_all_named_and_leave_no_set(album, tmp_path):
    (album / "bad1.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    whole = (album / "sub/b.jpg").read_bytes()
    (album / "sub/bad2.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"2 of 5 pictures[\s\S]*bad1\.png[\s\S]*bad2\.jpg"):
        list(picture_sets.pack_folder(album, tmp_path / "set", 16))
    with pytest.raises(StoreError):
        picture_sets.load_set(tmp_path / "set")
    with pytest.raises(StoreError, match="no pictures"):
        list(picture_sets.pack_folder(tmp_path / "nothing", tmp_path / "set", 16))
    (album / "bad1.png").unlink()
    shutil.copyfile(album / "sub/b.jpg", album / "sub/bad2.jpg")
    assert list(picture_sets.pack_folder(album, tmp_path / "set", 16)) == [1, 2, 3, 4]


def test_packing_over_a_rendered_set_needs_force_and_forgets_its_latents(album, tmp_path):
    before = rendered(tmp_path / "set", 4).images.copy()
    with pytest.raises(StoreError, match="holds a training set"):
        list(picture_sets.pack_folder(album, tmp_path / "set", 16))
    assert np.array_equal(picture_sets.load_set(tmp_path / "set").images, before)
    list(picture_sets.pack_folder(album, tmp_path / "set", 16, force=True))
    assert picture_sets.load_set(tmp_path / "set").z is None and not list((tmp_path / "set").glob("latents*"))


def test_packed_sets_are_kept_and_say_what_is_in_them(album, tmp_path):
    pack = lambda **options: list(picture_sets.pack_folder(album, tmp_path / "set", 16, **options))
    pack()
    what = picture_sets.load_set(tmp_path / "set").what
    assert what["folder"] == "album" and (what["n"], what["resolution"]) == (3, 16)
    with pytest.raises(StoreError, match="finished"):
        pack()
    image.write(torch.zeros(1, 3, 7, 9), album / "sub/c.bmp")  # as large as before
    pack(force=True)
    assert picture_sets.load_set(tmp_path / "set").what != what
    for folder in (album, tmp_path / "set" / ".." / "album"):
        with pytest.raises(StoreError, match="is the source itself"):
            list(picture_sets.pack_folder(album, folder, 16, force=True))
    for resolution in (0, -4, 2.5, float("nan")):
        with pytest.raises(InvalidValue, match="resolution"):
            list(picture_sets.pack_folder(album, tmp_path / "other", resolution))
    assert not (tmp_path / "other").exists()
