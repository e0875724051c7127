"""The live widget, progress and exercises, without a browser."""

from __future__ import annotations

import threading
import time

import ipywidgets
import numpy as np
import pytest
import torch

from hrlib import lab
from hrlib.errors import BatchError, InvalidValue, ShapeError
from hrlib.lab.widgets import picture

ALT = "a square that gets brighter from step to step"


def live(iterate, render=lambda x: torch.full((3, 4, 4), float(x)), **options):
    controls = {"n": ipywidgets.IntSlider(3, 1, 1000)}
    return lab.Live(iterate, controls=controls, render=render, alt=ALT, **options)


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def test_a_run_from_start_to_end():
    drawn, threads = [], set()

    def iterate(n):
        for i in range(n):
            threads.add(threading.current_thread().name)
            yield i / n

    widget = live(iterate, lambda x: (drawn.append(x), torch.full((3, 4, 4), x))[1])
    assert widget.stop_button.disabled and widget.controls["n"].continuous_update is False
    assert widget.controls["n"].description == "n", "the label of the control"
    widget.start_button.click()
    assert widget.wait(10)
    assert drawn[-1] == pytest.approx(2 / 3), "the last item is always drawn"
    assert widget.image.value == picture(torch.full((3, 4, 4), 2 / 3))
    assert "done after 3 steps" in widget.status.value
    assert threads == {"hrlab-live"} and widget.stop_button.disabled


def test_a_loop_that_exits_leaves_a_widget_that_starts_again():
    def iterate(n):
        yield 0.0
        if n == 3:
            raise SystemExit

    widget = live(iterate)
    widget.start()
    assert widget.wait(10) and "SystemExit" in widget.status.value and widget.start_button.description == "Start"
    widget.controls["n"].value = 4
    widget.start()
    assert widget.wait(10) and "done after 1 step" in widget.status.value


def test_start_returns_at_once_and_stop_ends_at_the_next_item():
    closed = threading.Event()

    def iterate(n):
        try:
            while True:
                time.sleep(0.02)
                yield 0.0
        finally:
            closed.set()

    widget = live(iterate)
    begun = time.perf_counter()
    widget.start()
    assert time.perf_counter() - begun < 0.1
    until(lambda: widget.image.value)
    assert not widget.stop_button.disabled and widget.start_button.description == "Restart"
    widget.stop_button.click()
    assert widget.wait(2) and closed.is_set()
    assert "stopped after" in widget.status.value and widget.stop_button.disabled


def test_the_latest_request_wins_and_only_one_worker_runs():
    runs, at_once, most = [], 0, 0

    def iterate(n):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        runs.append(n)
        try:
            for i in range(10_000 if n < 100 else 2):
                time.sleep(0.01)
                yield 0.0
        finally:
            at_once -= 1

    widget = live(iterate, auto=True)
    widget.start()
    until(lambda: runs)
    for n in (10, 20, 30, 100):
        widget.controls["n"].value = n
    assert widget.wait(10)
    assert runs[0] == 3 and runs[-1] == 100 and len(runs) <= 5 and most == 1
    assert "done after 2 steps" in widget.status.value


def test_at_most_ten_pictures_a_second():
    drawn = []

    def iterate(n):
        end = time.perf_counter() + 0.55
        while time.perf_counter() < end:
            yield 0.0

    widget = live(iterate, lambda x: (drawn.append(1), torch.zeros(3, 4, 4))[1])
    begun = time.perf_counter()
    widget.start()
    assert widget.wait(10)
    assert 2 <= len(drawn) <= (time.perf_counter() - begun) / 0.1 + 2


@pytest.mark.parametrize("where", ["iterate", "render"])
def test_errors_are_shown_in_place_and_the_widget_lives_on(where):
    broken = True

    def iterate(n):
        if broken and where == "iterate":
            raise ValueError("<no such image>")
        yield 0.0

    def render(x):
        if broken and where == "render":
            raise ValueError("<no such image>")
        return torch.zeros(3, 4, 4)

    widget = live(iterate, render)
    widget.start()
    assert widget.wait(10)
    assert "ValueError: &lt;no such image&gt;" in widget.status.value and widget.stop_button.disabled
    broken = False
    widget.start()
    assert widget.wait(10) and "done after 1 step" in widget.status.value


def test_static_picture():
    seen = []

    def iterate(n):
        for i in range(n):
            seen.append(i)
            yield 0.0

    widget = live(iterate, headless_steps=2)
    page = widget.static()
    assert f'alt="{ALT}"' in page and "data:image/png;base64" in page and "after 2 steps (n = 3)" in page
    assert seen == [0, 1]
    with pytest.raises(InvalidValue, match="yielded nothing"):
        live(lambda n: iter(())).static()
    with pytest.raises(ZeroDivisionError):
        live(lambda n: iter([1 / 0])).static()
    with pytest.raises(InvalidValue, match="alt text"):
        lab.Live(iterate, controls={}, render=None, alt="short")


def test_show_follows_the_front_end(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    monkeypatch.setenv("HRLAB_LIVE", "0")
    live(lambda n: iter([0.0])).show()
    assert "<figure" in shown[0].data
    monkeypatch.delenv("HRLAB_LIVE")
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/00.ipynb")
    widget = live(lambda n: iter([0.0]))
    widget.show()
    assert shown[1] is widget.box


def test_pictures_of_three_kinds():
    head = b"\x89PNG"
    fig, _ = lab.subplots(width=1, height=1)
    assert all(picture(x).startswith(head) for x in (fig, torch.zeros(3, 4, 4), np.zeros((4, 4, 3), np.uint8)))
    with pytest.raises(ShapeError, match="float64"):
        picture(np.zeros((4, 4, 3)))


# --- progress ---------------------------------------------------------------------------------------------------------


def test_progress_is_one_line_without_an_audience(monkeypatch, capsys):
    monkeypatch.setenv("HRLAB_LIVE", "0")
    assert list(lab.progress(range(40), label="inverting", status=lambda i: f"item {i}")) == list(range(40))
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and out.startswith("inverting: 40 steps in ") and out.endswith(" · item 39\n")


def test_progress_of_a_loop_left_early_or_broken(monkeypatch, capsys):
    monkeypatch.setenv("HRLAB_LIVE", "0")
    for i in lab.progress(iter(range(9)), total=9):
        if i == 1:
            break
    assert "2/9 steps" in capsys.readouterr().out

    def broken():
        yield 1
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        list(lab.progress(broken()))
    assert "1 step in" in capsys.readouterr().out
    assert list(lab.progress([])) == []


def test_progress_refreshes_one_line_in_a_live_front_end(monkeypatch):
    updates = []

    class Handle:
        def update(self, data, raw):
            updates.append(data["text/plain"])

    monkeypatch.setenv("HRLAB_LIVE", "1")
    monkeypatch.setattr("IPython.display.display", lambda *a, **k: Handle())
    begun = time.perf_counter()
    for _ in lab.progress(range(100)):
        time.sleep(0.004)
    assert 2 <= len(updates) <= (time.perf_counter() - begun) / 0.1 + 2 and "100 steps" in updates[-1]


# --- exercises --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected", "mark"),
    [
        (..., 1.0, "○"),
        (1.0 + 1e-9, 1.0, "✓"),
        (1.1, 1.0, "✗"),
        ("conv", "conv", "✓"),
        ("relu", "conv", "✗"),
        (torch.tensor([1.0, 2.0]), [1, 2], "✓"),
        (torch.zeros(2), torch.zeros(3), "✗"),
        (None, 1.0, "✗"),
        (["a", "b"], ["a", "b"], "✓"),
    ],
)
def test_check_against_an_expected_value(capsys, value, expected, mark):
    lab.check("scale", value, expected, hint="square it")
    out = capsys.readouterr().out
    assert out.startswith(f"{mark} scale") and ("square it" in out) == (mark == "✗")


def test_check_with_a_predicate(capsys):
    lab.check("better", 2.0, that=lambda v: v < 3)
    lab.check("better", "text", that=lambda v: v < 3, hint="a number")
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith("✓") and "TypeError" in out and "a number" in out
    with pytest.raises(InvalidValue, match="either"):
        lab.check("better", 1)


def test_a_wrong_solution_is_an_error():
    lab.check("scale", 0.25, 0.25, solution=True)
    for wrong in (0.5, ...):
        with pytest.raises(BatchError, match="solution of 'scale'"):
            lab.check("scale", wrong, 0.25, solution=True)
