"""Every cell of every notebook runs, at the smoke profile, through the same batch run that makes the figures."""

import pytest

from hrlib.lab import batch, notebook


@pytest.mark.parametrize("name", sorted(notebook.catalogue()))
def test_runs_at_smoke(name):
    outcomes = batch.run(batch.plan([name], "smoke"))  # those it needs, too
    assert name in {outcome.name for outcome in outcomes}
    assert all(outcome.state in ("done", "cached") for outcome in outcomes), [o.error for o in outcomes]


def test_notebooks_are_there():
    assert {"00_start_here", "01_style_inr_gan", "02_loss_diagnostics"} <= set(notebook.catalogue())
