"""Curves: read back as they were written, and drawn as they were read."""

import numpy as np
import pytest
from dvclive import Live

from realign_pipes.reporting.training_curves import PANELS, read_curves, training_figure


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint with curves of five steps, logged every second step, as DVCLive writes them."""
    with Live(str(tmp_path / "curves"), report=None, save_dvc_exp=False, dvcyaml=None) as live:
        for step in (2, 4, 6, 8, 10):
            live.step = step
            for number, name in enumerate(PANELS):
                live.log_metric(name, number + 1 / step)
    return tmp_path


def test_curves_are_read_step_by_step(checkpoint):
    curves = read_curves(checkpoint)
    assert curves["step"].tolist() == [2, 4, 6, 8, 10]
    for number, name in enumerate(PANELS):
        assert curves[name].tolist() == pytest.approx([number + 1 / step for step in (2, 4, 6, 8, 10)])


def test_a_model_that_was_not_trained_here_has_none(tmp_path):
    assert read_curves(tmp_path) is None


def test_the_figure_has_every_curve_of_every_training(checkpoint):
    curves = read_curves(checkpoint)
    figure = training_figure({"one": curves, "two": curves.iloc[:3]})
    assert len(figure.data) == 2 * len(PANELS)
    for trace in figure.data[:5]:
        np.testing.assert_allclose(trace.x, [0.2, 0.4, 0.6, 0.8, 1.0])
    for trace, name in zip(figure.data[5:], PANELS, strict=True):
        np.testing.assert_allclose(trace.y, curves[name][:3])
    assert [trace.name for trace in figure.data if trace.showlegend] == ["one", "two"]
    assert {annotation.text for annotation in figure.layout.annotations} == set(PANELS.values())
