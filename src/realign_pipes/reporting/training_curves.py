"""The curves that trainings left in their checkpoints, read from DVCLive's files and drawn."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from realign_pipes.reporting.figures import LAYOUT

PANELS = {
    "loss": "loss (TrRa: the divergence)",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
    "tokens_per_second": "input tokens per second",
    "memory_mib": "peak memory, MiB",
}


def read_curves(checkpoint: Path) -> pd.DataFrame | None:
    """One row per logged step, with columns `step` and those of PANELS; None for a checkpoint trained elsewhere."""
    metrics = checkpoint / "curves" / "plots" / "metrics"
    if not metrics.is_dir():
        return None
    columns = [pd.read_csv(metrics / f"{name}.tsv", sep="\t", index_col="step") for name in PANELS]
    return pd.concat(columns, axis=1).reset_index()


def training_figure(curves: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Each of PANELS against the share of the steps done, with a line per training."""
    figure = make_subplots(
        rows=2, cols=3, subplot_titles=list(PANELS.values()), horizontal_spacing=0.07, vertical_spacing=0.16
    )
    for number, (name, frame) in enumerate(curves.items()):
        for panel, (figure_of, title) in enumerate(PANELS.items()):
            figure.add_scatter(
                x=frame["step"] / frame["step"].max(),
                y=frame[figure_of],
                mode="lines",
                line={"color": qualitative.Dark24[number % len(qualitative.Dark24)], "width": 1.5},
                name=name,
                legendgroup=name,
                showlegend=panel == 0,
                customdata=frame["step"],
                hovertemplate=f"<b>{name}</b>, step %{{customdata}}<br>{title} %{{y:.4g}}<extra></extra>",
                row=panel // 3 + 1,
                col=panel % 3 + 1,
            )
    figure.update_yaxes(type="log", row=1, col=1)
    figure.update_yaxes(rangemode="tozero", row=2)
    figure.update_xaxes(tickformat=".0%")
    for column in range(1, 4):
        figure.update_xaxes(title_text="share of the steps done", row=2, col=column)
    figure.update_layout(**LAYOUT, height=640, margin={"l": 60, "r": 20, "t": 60, "b": 60})
    return figure
