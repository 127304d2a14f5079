"""The interactive figures: what correctness costs in tokens, both against alpha, and thinking inside a budget."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from realign_pipes.reporting.tables import (
    BUDGET_LABELS,
    KIND_LABELS,
    alpha_text,
    difference_text,
    interval_text,
    overall_rows,
    percent,
    reduction_text,
    tokens_text,
)
from realign_pipes.sweep.metrics import pareto_front

# Okabe and Ito's colours, which colour-blind readers tell apart; markers differ too.
COLOURS = {
    "reference": "#222222",
    "aligned": "#D55E00",
    "dera": "#0072B2",
    "trra": "#009E73",
    "trra_iter": "#CC79A7",
    "inra": "#B8860B",
}
MARKERS = {
    "reference": "star",
    "aligned": "diamond",
    "dera": "square",
    "trra": "circle",
    "trra_iter": "triangle-up",
    "inra": "cross",
}
SIZES = {"reference": 16, "aligned": 13}
LABELS = {"dera": "top left", "trra": "bottom right", "trra_iter": "bottom left", "inra": "top right"}
"""Where alphas stand beside their markers, if there is room."""
PLACES = (*LABELS.values(), "middle left", "middle right")
PASS_COLOUR, TOKENS_COLOUR = "#1F4E9E", "#C4570A"
LAYOUT = {
    "template": "plotly_white",
    "font": {"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 13, "color": "#1d2733"},
    "hoverlabel": {"align": "left"},
}
PANELS = {"dera": ["dera"], "trra": ["trra", "trra_iter"], "inra": ["inra"]}
"""Panels of the alpha figure and the kinds that each shows."""
BUDGET_LOOKS = {"truncation": (COLOURS["reference"], "circle"), "token_budget": (COLOURS["inra"], "cross")}
"""Colour and marker: truncation cuts off the reference, and the schedule is InRa's."""
TITLES = {**KIND_LABELS, "trra_iter": "TrRa-iter (triangles)"}


def pareto_figure(sweep_results: pd.DataFrame, recommended: str | None = None) -> go.Figure:
    """pass@1 with its 95 % interval against mean tokens, one colour and marker a kind, with the Pareto front.

    `recommended` is ringed. Lines join the candidates of one kind in the order of their alphas.
    """
    rows = _with_labels(overall_rows(sweep_results))
    figure = go.Figure(layout=LAYOUT)
    front = rows[pareto_front(rows["mean_tokens"].to_numpy(), rows["pass_at_1"].to_numpy())].sort_values("mean_tokens")
    figure.add_scatter(
        x=front["mean_tokens"],
        y=100 * front["pass_at_1"],
        mode="lines",
        line={"shape": "hv", "color": "#9aa5b1", "width": 2, "dash": "dash"},
        name="Pareto front",
        hoverinfo="skip",
    )
    ringed = rows[rows["candidate"] == recommended]
    if len(ringed):
        figure.add_scatter(
            x=ringed["mean_tokens"],
            y=100 * ringed["pass_at_1"],
            mode="markers",
            marker={"symbol": "circle-open", "size": 26, "color": "#111111", "line": {"width": 2}},
            name="Recommended",
            hoverinfo="skip",
        )
    for kind, label in KIND_LABELS.items():
        one = rows[rows["kind"] == kind]
        if one.empty:
            continue
        joined = kind in ("dera", "trra", "inra")
        figure.add_scatter(
            x=one["mean_tokens"],
            y=100 * one["pass_at_1"],
            error_y=_interval(one, thickness=1),
            mode=("lines+" if joined else "") + ("markers" if kind in SIZES else "markers+text"),
            text=one["label"],
            textposition=one["place"],
            textfont={"size": 11, "color": COLOURS[kind]},
            line={"color": COLOURS[kind], "width": 1},
            marker={"symbol": MARKERS[kind], "size": SIZES.get(kind, 10), "color": COLOURS[kind]},
            name=label,
            customdata=_hover(one),
            hovertemplate="%{customdata}<extra></extra>",
        )
    figure.update_layout(
        height=560,
        margin={"l": 70, "r": 30, "t": 60, "b": 60},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis={"title": "mean tokens per completion"},
        yaxis={"title": "pass@1, %"},
    )
    return figure


def alpha_figure(sweep_results: pd.DataFrame) -> go.Figure:
    """The paper's Fig. 4 for each method: pass@1 (left axis) and mean tokens (right axis) against alpha.

    One panel a method, all with the same two scales. The reference stands at alpha 0 and, where alpha fuses it with
    the aligned model, the aligned model at alpha 1; DeRa is those models there, so its lines run through them.
    TrRa-iter's rounds stand in TrRa's panel as triangles, not joined: they are of one alpha.
    """
    rows = overall_rows(sweep_results)
    panels = [panel for panel, kinds in PANELS.items() if rows["kind"].isin(kinds).any()] or ["dera"]
    figure = make_subplots(
        cols=len(panels),
        specs=[[{"secondary_y": True}] * len(panels)],
        subplot_titles=[", ".join(TITLES[kind] for kind in _present(rows, PANELS[panel])) for panel in panels],
        horizontal_spacing=0.05,
    )
    ends = {0.0: rows[rows["kind"] == "reference"], 1.0: rows[rows["kind"] == "aligned"]}
    for column, panel in enumerate(panels, start=1):
        marked = {alpha: end for alpha, end in ends.items() if len(end) and (alpha == 0 or panel != "inra")}
        for kind in _present(rows, PANELS[panel]):
            line = rows[rows["kind"] == kind]
            if kind == "dera":
                absent = [end.assign(alpha=alpha) for alpha, end in marked.items() if alpha not in set(line["alpha"])]
                line = pd.concat([line, *absent]).sort_values("alpha", kind="stable")
            _add_pair(figure, line, column, MARKERS[kind], 8, only_markers=kind == "trra_iter")
        for alpha, end in marked.items():
            kind = end["kind"].iloc[0]
            _add_pair(figure, end.assign(alpha=alpha), column, MARKERS[kind], SIZES[kind], only_markers=True)
        for alpha, name in ((0, "reference"), (1, "adapter" if panel == "inra" else "aligned")):
            figure.add_vline(
                x=alpha,
                line={"color": "#9aa5b1", "width": 1, "dash": "dash"},
                annotation={"text": name, "font": {"size": 11, "color": "#5b6773"}, "textangle": -90},
                annotation_position="bottom left" if alpha == 0 else "bottom right",
                col=column,
                row=1,
            )
    _legend(figure)
    low, high = 100 * rows["pass_at_1_low"].min(), 100 * rows["pass_at_1_high"].max()
    room = 0.06 * max(high - low, 1)
    figure.update_layout(
        **LAYOUT,
        height=480,
        margin={"l": 70, "r": 70, "t": 90, "b": 60},
        legend={"orientation": "h", "y": 1.12, "yanchor": "bottom", "x": 0},
    )
    figure.update_xaxes(title_text="alpha")
    for column in range(1, len(panels) + 1):
        first, last = column == 1, column == len(panels)
        figure.update_yaxes(
            range=[low - room, high + room], color=PASS_COLOUR, showticklabels=first, secondary_y=False, col=column
        )
        figure.update_yaxes(
            range=[0, 1.3 * rows["mean_tokens"].max()],  # below pass@1, which is at the top of its own scale
            color=TOKENS_COLOUR,
            tickmode="auto",
            showgrid=False,
            showticklabels=last,
            secondary_y=True,
            col=column,
        )
        if first:
            figure.update_yaxes(title_text="pass@1, %", secondary_y=False, col=column)
        if last:
            figure.update_yaxes(title_text="mean tokens per completion", secondary_y=True, col=column)
    return figure


def budget_figure(budget_results: pd.DataFrame) -> go.Figure:
    """Thinking inside a budget: pass@1 with its 95 % interval (left) and the truncated share (right) at each budget.

    One line for plain truncation and one for the schedule `TokenBudget`. Without budgets the figure says so.
    """
    if budget_results.empty:
        note = {"text": "No token budgets were measured.", "showarrow": False, "font": {"size": 16}}
        hidden = {"visible": False}
        return go.Figure(layout={**LAYOUT, "height": 160, "annotations": [note], "xaxis": hidden, "yaxis": hidden})
    figure = make_subplots(cols=2, subplot_titles=["pass@1", "Truncated completions"], horizontal_spacing=0.09)
    for kind, label in BUDGET_LABELS.items():
        one = budget_results[budget_results["kind"] == kind]
        colour, symbol = BUDGET_LOOKS[kind]
        hover = [
            f"<b>{label}</b>, budget {row.budget}<br>pass@1 % {interval_text(row)}<br>"
            f"difference {difference_text(row)}<br>tokens {tokens_text(row.mean_tokens)}<br>"
            f"truncated {percent(row.truncated)} %"
            for row in one.itertuples()
        ]
        for column, share in enumerate(("pass_at_1", "truncated"), start=1):
            figure.add_scatter(
                x=one["budget"],
                y=100 * one[share],
                error_y=_interval(one, thickness=1) if column == 1 else None,
                mode="lines+markers",
                line={"color": colour, "width": 2},
                marker={"symbol": symbol, "size": 9, "color": colour},
                name=label,
                legendgroup=kind,
                showlegend=column == 1,
                customdata=hover,
                hovertemplate="%{customdata}<extra></extra>",
                row=1,
                col=column,
            )
    figure.update_layout(
        **LAYOUT,
        height=420,
        margin={"l": 70, "r": 30, "t": 90, "b": 60},
        legend={"orientation": "h", "y": 1.12, "yanchor": "bottom", "x": 0},
    )
    figure.update_xaxes(title_text="token budget", tickvals=sorted(set(budget_results["budget"])), matches="x")
    figure.update_yaxes(title_text="pass@1, %", range=[-3, 103], col=1)
    figure.update_yaxes(title_text="truncated, %", range=[-3, 103], col=2)
    return figure


def _with_labels(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a `label`, the alpha, and its `place`, where it covers no marker, interval or other label.

    In a crowd of points, where there is no such place, a point has no label; the pointer still tells.
    """
    # In pixels, as Plotly sets text of 11 points beside a marker of 10, in a figure about as wide as the report.
    x = 1060 * rows["mean_tokens"] / max(np.ptp(rows["mean_tokens"]), 1e-9)
    scale = 400 / max(rows["pass_at_1_high"].max() - rows["pass_at_1_low"].min(), 1e-9)
    y, low, high = (scale * rows[column] for column in ("pass_at_1", "pass_at_1_low", "pass_at_1_high"))
    # boxes: left, right, bottom, top
    taken = [*zip(x - 7, x + 7, y - 7, y + 7, strict=True), *zip(x - 3, x + 3, low, high, strict=True)]
    labels, places = [], []
    for kind, alpha, across, up in zip(rows["kind"], rows["alpha"], x, y, strict=True):
        width = 6 * len(alpha_text(alpha))
        sides = {"left": (across - 7 - width, across - 7), "right": (across + 7, across + 7 + width)}
        heights = {"top": (up + 7, up + 18), "middle": (up - 6, up + 6), "bottom": (up - 18, up - 7)}
        place, label = PLACES[0], ""
        for tried in [LABELS[kind], *PLACES] if kind in LABELS else []:
            height, side = tried.split()
            box = (*sides[side], *heights[height])
            if not any(_overlap(box, other) for other in taken):
                place, label = tried, alpha_text(alpha)
                taken.append(box)
                break
        labels.append(label)
        places.append(place)
    return rows.assign(label=labels, place=places)


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two boxes (left, right, bottom, top) share more than an edge."""
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


def _present(rows: pd.DataFrame, kinds: Sequence[str]) -> list[str]:
    return [kind for kind in kinds if (rows["kind"] == kind).any()]


def _add_pair(
    figure: go.Figure,
    rows: pd.DataFrame,
    column: int,
    symbol: str,
    size: int,
    only_markers: bool = False,
) -> None:
    """pass@1 on the left axis and tokens on the right one, against alpha."""
    for values, colour, right in (
        (100 * rows["pass_at_1"], PASS_COLOUR, False),
        (rows["mean_tokens"], TOKENS_COLOUR, True),
    ):
        figure.add_scatter(
            x=rows["alpha"],
            y=values,
            error_y=None if right else _interval(rows, thickness=1),
            mode="markers" if only_markers else "lines+markers",
            line={"color": colour, "width": 2},
            marker={"symbol": symbol + "-open" if right else symbol, "size": size, "color": colour},
            customdata=_hover(rows),
            hovertemplate="%{customdata}<extra></extra>",
            showlegend=False,
            row=1,
            col=column,
            secondary_y=right,
        )


def _legend(figure: go.Figure) -> None:
    """Two entries for the two axes: what the colours mean is the same in every panel."""
    for name, colour, symbol in (
        ("pass@1 with 95 % interval (left axis)", PASS_COLOUR, "circle"),
        ("mean tokens (right axis)", TOKENS_COLOUR, "circle-open"),
    ):
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"symbol": symbol, "size": 8, "color": colour},
            name=name,
        )


def _interval(rows: pd.DataFrame, thickness: float) -> dict[str, object]:
    """The 95 % interval of pass@1 as Plotly's error bars, in percent."""
    return {
        "type": "data",
        "symmetric": False,
        "array": 100 * (rows["pass_at_1_high"] - rows["pass_at_1"]),
        "arrayminus": 100 * (rows["pass_at_1"] - rows["pass_at_1_low"]),
        "thickness": thickness,
        "width": 3,
    }


def _hover(rows: pd.DataFrame) -> np.ndarray:
    """What a point says when the pointer is on it, one text a row."""
    return np.array(
        [
            f"<b>{row.candidate}</b> (alpha {alpha_text(row.alpha)})<br>"
            f"pass@1 {percent(row.pass_at_1)} % [{percent(row.pass_at_1_low)}, {percent(row.pass_at_1_high)}]<br>"
            f"tokens {tokens_text(row.mean_tokens)}, reduction {reduction_text(row)}<br>"
            f"truncated {percent(row.truncated)} %"
            for row in rows.itertuples()
        ]
    )
