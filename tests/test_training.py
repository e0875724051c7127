"""Training sets on disk: rendered ones, their latents, and packed folders."""

import numpy as np
import pytest
import torch

from hrlib import image
from hrlib.errors import ImageError, StoreError, UnknownName
from hrlib.training import data

Z = 70


def rendered(folder, n, **options):
    for done in data.render_set(folder, n, resolution=16, z_dim=Z, seed=3, **options):
        pass
    return data.load_set(folder)


@pytest.fixture(scope="module")
def portraits(tmp_path_factory):
    return rendered(tmp_path_factory.mktemp("set"), 16)


def test_rendering_resumes_and_does_not_depend_on_n(portraits, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 4)
    rendering = data.render_set(tmp_path, 12, resolution=16, z_dim=Z, seed=3)
    assert next(rendering) == 4  # then the process dies
    rendering.close()
    assert list(data.render_set(tmp_path, 12, resolution=16, z_dim=Z, seed=3)) == [8, 12]
    assert list(data.render_set(tmp_path, 12, resolution=16, z_dim=Z, seed=3)) == []
    assert np.array_equal(data.load_set(tmp_path).images, portraits.images[:12])


def test_a_part_of_another_domain_is_the_same_people(portraits, tmp_path):
    part = rendered(tmp_path, 16, world="portraits/photo", count=5)
    assert len(part) == 5
    assert torch.equal(part.z, portraits.z[:5])
    assert np.array_equal(part.images, portraits.images[:5])


def test_another_set_in_the_same_folder_is_made_anew(tmp_path):
    first = rendered(tmp_path, 6)
    assert not np.array_equal(rendered(tmp_path, 6, count=4).images, first.images)
    assert len(data.load_set(tmp_path)) == 4


def test_unknown_worlds_and_impossible_counts(tmp_path):
    with pytest.raises(UnknownName, match="portraits/photo"):
        rendered(tmp_path, 4, world="portrait/photo")
    with pytest.raises(StoreError, match="count=5 of n=4"):
        rendered(tmp_path, 4, count=5)
    with pytest.raises(StoreError, match="z_dim 3"):
        list(data.render_set(tmp_path, 4, resolution=16, z_dim=3))


def test_latents_are_standard_normal_uncorrelated_and_close_to_their_parameters():
    g = torch.Generator().manual_seed(0)
    skewed, normal = torch.rand(4000, generator=g) ** 3, torch.randn(4000, generator=g)
    values = torch.stack([skewed, (torch.rand(4000, generator=g) < 0.3).float(), normal, normal + 3 * skewed], dim=1)
    z = data.gaussianise(values, 6, seed=1)
    assert z.shape == (4000, 6)
    assert z.mean(0).abs().max() < 0.1 and (z.std(0) - 1).abs().max() < 0.1
    assert torch.corrcoef(z.T).fill_diagonal_(0).abs().max() < 0.06
    assert (z[:, :4].T.corrcoef() - torch.eye(4)).abs().max() < 1e-3
    across = torch.corrcoef(torch.cat([z[:, :4], values], dim=1).T)[:4, 4:]  # [latent, parameter]
    assert torch.equal(across.abs().argmax(1), torch.arange(4))  # each latent still follows its own parameter most
    assert across.diagonal().min() > 0.6
    assert torch.equal(z, data.gaussianise(values, 6, seed=1))


def test_missing_set(tmp_path):
    with pytest.raises(StoreError, match="hrlab train render"):
        data.load_set(tmp_path)


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
    assert list(data.pack_folder(album, tmp_path / "set", 16)) == [1, 2, 3]
    packed = data.load_set(tmp_path / "set")
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
        list(data.pack_folder(album, tmp_path / "set", 16))
    with pytest.raises(StoreError):
        data.load_set(tmp_path / "set")
    with pytest.raises(StoreError, match="no pictures"):
        list(data.pack_folder(tmp_path / "nothing", tmp_path / "set", 16))


def test_packing_over_a_rendered_set_forgets_its_latents(album, tmp_path):
    rendered(tmp_path / "set", 4)
    list(data.pack_folder(album, tmp_path / "set", 16))
    assert data.load_set(tmp_path / "set").z is None
