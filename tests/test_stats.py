"""Means and intervals against closed forms, and the forest plot that shows them."""

from __future__ import annotations

import numpy as np
import pytest

from hrlib import lab, stats
from hrlib.errors import InvalidValue, ShapeError, UnknownName


def test_the_interval_of_a_large_sample_is_the_normal_one():
    x = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    found = stats.summary(x)
    half = 1.96 * x.std(ddof=1) / len(x) ** 0.5
    assert found.mean == pytest.approx(x.mean()) and found.spread == pytest.approx(x.std(ddof=1)) and found.n == 2000
    assert found.low == pytest.approx(x.mean() - half, abs=0.06 * half)
    assert found.high == pytest.approx(x.mean() + half, abs=0.06 * half)
    assert stats.summary(x) == found, "the same values give the same interval"


def test_coverage_with_eleven_values():
    rng = np.random.default_rng(1)
    held = np.mean([low < 0 < high for low, high in (stats.interval(rng.normal(size=11)) for _ in range(200))])
    assert 0.87 < held < 0.97


def test_few_or_equal_values():
    assert stats.interval([1.0, 2.0]) == (-np.inf, np.inf)
    assert stats.summary([0.5] * 5) == stats.Mean(0.5, 0.5, 0.5, 0.0, 5)
    assert stats.summary([2.0]).spread == 0.0
    for bad in ([], [[1.0, 2.0]]):
        with pytest.raises(ShapeError, match="one number an image"):
            stats.summary(bad)
    with pytest.raises(InvalidValue, match="1 of 2 finite"):
        stats.summary([1.0, np.nan])


def test_groups_are_resampled_whole():
    x, groups = np.random.default_rng(2).normal(size=12), np.repeat(["a", "b", "c", "d"], 3)
    low, high = stats.interval(x, groups)
    means = x.reshape(4, 3).mean(1)
    assert (low, high) == pytest.approx(stats.interval(means)), "groups of one size: as their means"
    assert stats.interval(x, range(12)) == pytest.approx(stats.interval(x))
    assert stats.interval(np.ones(6), list("aabbcc")) == (1, 1)
    assert stats.interval(x[:6], groups[:6]) == (-np.inf, np.inf), "two groups"
    assert stats.summary(x, groups).low == low
    with pytest.raises(ShapeError, match="3 groups for 12 values"):
        stats.interval(x, "abc")


def test_a_bootstrap_of_several_statistics_at_once():
    """[T, R] statistics, whatever the chunks; against normal intervals."""
    a = np.random.default_rng(0).normal(size=(200, 2))
    low, high = stats.bootstrap(lambda items: a[items].mean(-2).T, 200, resamples=2000)
    assert stats.bootstrap(lambda items: a[items, 0].mean(-1), 200, resamples=2000, seed=1) != (low[0], high[0])
    np.testing.assert_allclose((high - low) / 2, 1.96 * a.std(0) / np.sqrt(200), rtol=0.1)
    with pytest.raises(InvalidValue, match="choose 2 <= n"):
        stats.bootstrap(np.mean, 1)


def test_forest_marks_what_excludes_zero():
    ax = lab.subplots()[1]
    lab.forest(ax, {"sure": [1.0, 1.1, 0.9, 1.2], "not sure": [-1.0, 1.2, -0.8, 0.9]}, xlabel="dB", better="better")
    bars = [line for line in ax.lines if line.get_linewidth() == 3]
    assert [bar.get_color() for bar in bars] == [lab.COLOURS[0], "0.45"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["sure", "not sure"] and ax.get_ylim()[0] > ax.get_ylim()[1]
    assert ax.get_xlim()[0] < ax.get_xlim()[1], "more is right"
    turned = lab.subplots()[1]
    lab.forest(turned, {"a": [1.0, 1.1]}, xlabel="LPIPS", less_is_better=True)
    assert turned.get_xlim()[0] > turned.get_xlim()[1], "less is right"


def test_lists_of_pictures(repo):
    for name in ("b.png", "a.JPG", "notes.txt"):
        (repo / "data" / name).touch()
    assert lab.listed(["portrait:3..5", "photo:coffee", "portrait:4"]) == [
        "portrait:3", "portrait:4", "portrait:5", "photo:coffee",
    ]  # fmt: skip
    assert lab.listed(["folder:data"]) == ["file:data/a.JPG", "file:data/b.png"]
    assert lab.listed(["folder:data"], 1) == ["file:data/a.JPG"]
    with pytest.raises(UnknownName, match="no picture there"):
        lab.listed(["folder:notebooks"])
    with pytest.raises(UnknownName, match="no picture at all"):
        lab.listed([])
