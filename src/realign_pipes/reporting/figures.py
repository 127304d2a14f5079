"""The interactive figures: what correctness costs in tokens, both against alpha, and thinking inside a budget.

Labels, colours and markers are those of `sweep.kinds.KINDS`.
"""

import itertools
import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from realign_pipes.reporting.tables import (
    alpha_text,
    difference_text,
    forced_difference_text,
    interval_text,
    is_default,
    overall_rows,
    percent,
    reduction_text,
    tokens_text,
)
from realign_pipes.sweep.kinds import KINDS, Kind, budget_kinds, sweep_kinds, without_alpha
from realign_pipes.sweep.metrics import is_reference, pareto_front

PASS_COLOUR, TOKENS_COLOUR = "#1F4E9E", "#C4570A"
GREY = "#9aa5b1"
LAYOUT = {
    "template": "plotly_white",
    "font": {"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 13, "color": "#1d2733"},
    "hoverlabel": {"align": "left"},
}
PANELS_IN_A_ROW = 3
"""Of the alpha figure."""
ABOVE = {"orientation": "h", "y": 1.12, "yanchor": "bottom", "x": 0}
"""A legend above the titles of panels."""


def pareto_figure(sweep_results: pd.DataFrame, recommended: str | None = None) -> go.Figure:
    """pass@1 with its 95 % interval against mean tokens, one colour and marker per kind, with the Pareto front.

    `recommended` gets a ring. Lines join the candidates of one kind in the order of their alphas. The first and the
    last alpha are written beside their markers; all others show under the pointer.
    """
    rows = overall_rows(sweep_results)
    if rows["pass_at_1"].isna().all():
        return _note("No task has answers, so there is no pass@1 to show against tokens.")
    figure = go.Figure(layout=LAYOUT)
    front = rows[pareto_front(rows["mean_tokens"].to_numpy(), rows["pass_at_1"].to_numpy())].sort_values("mean_tokens")
    figure.add_scatter(
        x=front["mean_tokens"],
        y=100 * front["pass_at_1"],
        mode="lines",
        line={"shape": "hv", "color": GREY, "width": 2, "dash": "dash"},
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
    for name in sweep_kinds():
        for default in (False, True):
            one = rows[(rows["kind"] == name) & (is_default(rows) == default)]
            if len(one):
                _add_kind(figure, KINDS[name], one, default=default)
    if not is_default(rows).all():
        _explain(figure, "open: the mask left out, or min-p", marker={"symbol": "circle-open", "size": 9})
    figure.update_layout(
        height=560,
        margin={"l": 70, "r": 30, "t": 60, "b": 60},
        legend={**ABOVE, "y": 1.02},
        xaxis={"title": "mean tokens per completion"},
        yaxis={"title": "pass@1, %"},
    )
    return figure


def alpha_figure(sweep_results: pd.DataFrame) -> go.Figure:
    """The paper's Fig. 4 for each method: pass@1 (left axis) and mean tokens (right axis) against alpha.

    One panel per method, at most three in a row, all with the same two scales. The reference is at alpha 0, and the
    aligned model at alpha 1 unless that is an adapter or a student, or alpha is a bias. Without any candidate that has
    an alpha, there is one panel with these two.
    """
    rows = overall_rows(sweep_results)
    panels: dict[str, list[Kind]] = {}
    for name in sweep_kinds():
        if KINDS[name].has_alpha and (rows["kind"] == name).any():
            panels.setdefault(KINDS[name].panel or name, []).append(KINDS[name])
    drawn = list(panels.values()) or [[]]
    titles = [
        ", ".join(kind.label if kind.joined else f"{kind.label} (not joined)" for kind in kinds) for kinds in drawn
    ]
    lines, columns = math.ceil(len(drawn) / PANELS_IN_A_ROW), min(len(drawn), PANELS_IN_A_ROW)
    places = list(itertools.product(range(1, lines + 1), range(1, columns + 1)))[: len(drawn)]
    figure = make_subplots(
        rows=lines,
        cols=columns,
        specs=[[{"secondary_y": True} if (line, column) in places else None for column in range(1, columns + 1)]
               for line in range(1, lines + 1)],
        subplot_titles=titles,
        horizontal_spacing=0.05,
        vertical_spacing=0.16,
    )  # fmt: skip
    for kinds, place in zip(drawn, places, strict=True):
        _draw_panel(figure, rows, kinds, place)
    _explain_axes(figure)
    if not is_default(rows[~rows["kind"].isin(without_alpha())]).all():
        _explain(figure, "dotted: the mask left out", mode="lines", line={"width": 1, "dash": "dot"})
    _scale_axes(figure, rows, places)
    legend = {**ABOVE, "y": 1 + 0.12 / lines}  # a share of the height
    figure.update_layout(**LAYOUT, height=80 + 400 * lines, margin={"l": 70, "r": 70, "t": 90, "b": 60}, legend=legend)
    return figure


def budget_figure(budget_results: pd.DataFrame) -> go.Figure:
    """Thinking inside a budget: pass@1 with its 95 % interval (left) and the truncated share (right) at each budget.

    A line for each kind: plain truncation, forced closing, `TokenBudget`. Without budgets the figure says so.
    """
    if budget_results.empty:
        return _note("No token budgets were measured.")
    figure = make_subplots(cols=2, subplot_titles=["pass@1", "Truncated completions"], horizontal_spacing=0.09)
    for name in budget_kinds():
        kind, one = KINDS[name], budget_results[budget_results["kind"] == name]
        for column, share in enumerate(("pass_at_1", "truncated"), start=1):
            figure.add_scatter(
                x=one["budget"],
                y=100 * one[share],
                error_y=_interval(one) if column == 1 else None,
                mode="lines+markers",
                line={"color": kind.colour, "width": 2},
                marker={"symbol": kind.marker, "size": 9, "color": kind.colour},
                name=kind.label,
                legendgroup=name,
                showlegend=column == 1,
                customdata=_budget_hover(one),
                hovertemplate="%{customdata}<extra></extra>",
                row=1,
                col=column,
            )
    figure.update_layout(**LAYOUT, height=420, margin={"l": 70, "r": 30, "t": 90, "b": 60}, legend=ABOVE)
    figure.update_xaxes(title_text="token budget", tickvals=sorted(set(budget_results["budget"])), matches="x")
    figure.update_yaxes(title_text="pass@1, %", range=[-3, 103], col=1)
    figure.update_yaxes(title_text="truncated, %", range=[-3, 103], col=2)
    return figure


def _note(text: str) -> go.Figure:
    """A figure of one sentence."""
    note = {"text": text, "showarrow": False, "font": {"size": 16}}
    hidden = {"visible": False}
    return go.Figure(layout={**LAYOUT, "height": 160, "annotations": [note], "xaxis": hidden, "yaxis": hidden})


def _add_kind(figure: go.Figure, kind: Kind, rows: pd.DataFrame, *, default: bool) -> None:
    """The candidates of one kind in the Pareto figure: its own, or those that show what the mask does."""
    texts, places = [""] * len(rows), ["top right"] * len(rows)
    if kind.has_alpha and default:  # the last alpha first: with one candidate, they are the same
        texts[-1], places[-1] = alpha_text(rows["alpha"].iloc[-1]), "bottom left"
        texts[0], places[0] = alpha_text(rows["alpha"].iloc[0]), "top right"
    figure.add_scatter(
        x=rows["mean_tokens"],
        y=100 * rows["pass_at_1"],
        error_y=_interval(rows),
        mode=("lines+" if kind.has_alpha and kind.joined and default else "") + "markers+text",
        text=texts,
        textposition=places,
        textfont={"size": 12, "color": kind.colour},
        line={"color": kind.colour, "width": 1},
        marker={"symbol": kind.marker + ("" if default else "-open"), "size": _size(kind), "color": kind.colour},
        name=kind.label if default else None,
        legendgroup=kind.name,
        showlegend=default,
        customdata=_hover(rows),
        hovertemplate="%{customdata}<extra></extra>",
    )


def _draw_panel(figure: go.Figure, rows: pd.DataFrame, kinds: list[Kind], place: tuple[int, int]) -> None:
    """One panel of the alpha figure: its kinds, the reference, and the aligned model where that is alpha 1."""
    one = kinds[0].alpha_one if kinds else "aligned"
    models = {0.0: rows[is_reference(rows)], 1.0: rows[(rows["kind"] == one) & is_default(rows)]}
    models = {alpha: model.assign(alpha=alpha) for alpha, model in models.items() if len(model)}
    for kind in kinds:
        line = rows[(rows["kind"] == kind.name) & is_default(rows)]
        if kind.is_models_at_ends:
            absent = [model for alpha, model in models.items() if alpha not in set(line["alpha"])]
            line = pd.concat([line, *absent]).sort_values("alpha", kind="stable")
        _add_pair(figure, line, place, kind, joined=kind.joined)
        unmasked = rows[(rows["kind"] == kind.name) & ~is_default(rows)]
        if len(unmasked):
            _add_pair(figure, unmasked, place, kind, joined=kind.joined, default=False)
    for model in models.values():
        _add_pair(figure, model, place, KINDS[model["kind"].iloc[0]], joined=False)
    for alpha, name, side in ((0, "reference", "left"), (1, one, "right")):
        if name is None:
            continue
        figure.add_vline(
            x=alpha,
            line={"color": GREY, "width": 1, "dash": "dash"},
            annotation={"text": name, "font": {"size": 11, "color": "#5b6773"}, "textangle": -90},
            annotation_position=f"bottom {side}",
            row=place[0],
            col=place[1],
        )
    figure.update_xaxes(title_text="bias" if kinds and kinds[0].biases_close else "alpha", row=place[0], col=place[1])


def _add_pair(
    figure: go.Figure, rows: pd.DataFrame, place: tuple[int, int], kind: Kind, *, joined: bool, default: bool = True
) -> None:
    """pass@1 on the left axis and tokens on the right one, against alpha; dotted and small without the mask."""
    for values, colour, right in (
        (100 * rows["pass_at_1"], PASS_COLOUR, False),
        (rows["mean_tokens"], TOKENS_COLOUR, True),
    ):
        figure.add_scatter(
            x=rows["alpha"],
            y=values,
            error_y=None if right else _interval(rows),
            mode="lines+markers" if joined else "markers",
            line={"color": colour, "width": 2 if default else 1, "dash": "solid" if default else "dot"},
            marker={
                "symbol": kind.marker + "-open" if right else kind.marker,
                "size": _size(kind) if default else 6,
                "color": colour,
            },
            customdata=_hover(rows),
            hovertemplate="%{customdata}<extra></extra>",
            showlegend=False,
            row=place[0],
            col=place[1],
            secondary_y=right,
        )


def _explain_axes(figure: go.Figure) -> None:
    """Two entries of the legend for the two axes: what the colours mean is the same in every panel."""
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


def _explain(figure: go.Figure, name: str, *, mode: str = "markers", **look: dict[str, object]) -> None:
    """An entry of the legend in grey, for what means the same in every colour."""
    look = {part: {"color": GREY, **values} for part, values in look.items()}
    figure.add_scatter(x=[None], y=[None], mode=mode, name=name, **look)


def _scale_axes(figure: go.Figure, rows: pd.DataFrame, places: list[tuple[int, int]]) -> None:
    """The same two scales in all panels of the alpha figure; only the outer axes have numbers."""
    low, high = 100 * rows["pass_at_1_low"].min(), 100 * rows["pass_at_1_high"].max()
    if math.isnan(low):  # no task has answers
        low, high = 0.0, 100.0
    room = 0.06 * max(high - low, 1)
    for line, column in places:
        first, last = column == 1, (line, column + 1) not in places
        figure.update_yaxes(
            range=[low - room, high + room],
            color=PASS_COLOUR,
            title_text="pass@1, %" if first else None,
            showticklabels=first,
            secondary_y=False,
            row=line,
            col=column,
        )
        figure.update_yaxes(
            range=[0, 1.3 * rows["mean_tokens"].max()],  # below pass@1, which is at the top of its own scale
            color=TOKENS_COLOUR,
            title_text="mean tokens per completion" if last else None,
            tickmode="auto",
            showgrid=False,
            showticklabels=last,
            secondary_y=True,
            row=line,
            col=column,
        )


def _size(kind: Kind) -> int:
    """Markers of the two models are larger than those between and beyond them."""
    return 9 if kind.has_alpha else 15


def _interval(rows: pd.DataFrame) -> dict[str, object]:
    """The 95 % interval of pass@1 as Plotly's error bars, in percent."""
    return {
        "type": "data",
        "symmetric": False,
        "array": 100 * (rows["pass_at_1_high"] - rows["pass_at_1"]),
        "arrayminus": 100 * (rows["pass_at_1"] - rows["pass_at_1_low"]),
        "thickness": 1,
        "width": 3,
    }


def _hover(rows: pd.DataFrame) -> np.ndarray:
    """What shows when the pointer is on a point, one text per row."""
    return np.array(
        [
            f"<b>{row.candidate}</b> (alpha {alpha_text(row.alpha)}, beta {row.plausibility:g})<br>"
            f"pass@1 {percent(row.pass_at_1)} % [{percent(row.pass_at_1_low)}, {percent(row.pass_at_1_high)}]<br>"
            f"tokens {tokens_text(row.mean_tokens)}, reduction {reduction_text(row)}<br>"
            f"truncated {percent(row.truncated)} %"
            for row in rows.itertuples()
        ]
    )


def _budget_hover(rows: pd.DataFrame) -> list[str]:
    """The same for completions inside a budget."""
    return [
        f"<b>{KINDS[row.kind].label}</b>, budget {row.budget}<br>pass@1 % {interval_text(row)}<br>"
        f"difference {difference_text(row)}, to forced closing {forced_difference_text(row)}<br>"
        f"tokens {tokens_text(row.mean_tokens)}<br>"
        f"truncated {percent(row.truncated)} %"
        for row in rows.itertuples()
    ]
