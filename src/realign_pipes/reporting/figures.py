"""The interactive figures: what correctness costs in tokens, both against alpha, and thinking inside a budget.

The first two show any two metrics in place of correctness and tokens: what may be lost, and what is gained. Labels,
colours and markers are those of `sweep.kinds.KINDS`.
"""

import html
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    number_text,
    overall_rows,
    percent,
    reduction_text,
    tokens_text,
)
from realign_pipes.sweep.kinds import KINDS, Kind, budget_kinds, sweep_kinds, without_alpha
from realign_pipes.sweep.measures import PASS_AT_1, TOKENS, Metric
from realign_pipes.sweep.metrics import ALL_TASKS, is_reference, pareto_front

PASS_COLOUR, TOKENS_COLOUR = "#1F4E9E", "#C4570A"
GREY = "#9aa5b1"
LAYOUT = {
    "template": "plotly_white",
    "font": {"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 13, "color": "#1d2733"},
    "hoverlabel": {"align": "left"},
}
INTERVAL = ("pass_at_1", "pass_at_1_low", "pass_at_1_high")
PANELS_IN_A_ROW = 3
"""Of the alpha figure."""
ABOVE = {"orientation": "h", "y": 1.12, "yanchor": "bottom", "x": 0}
"""A legend above the titles of panels."""


@dataclass(frozen=True)
class Pair:
    """The two metrics of a figure, and what was measured of them."""

    gain: Metric = TOKENS
    loss: Metric = PASS_AT_1
    results: pd.DataFrame | None = None
    """METRIC_RESULTS, for metrics other than tokens and pass@1."""

    def rows(self, sweep_results: pd.DataFrame) -> pd.DataFrame:
        """The candidates that have both, with `gain`, `loss`, `loss_low` and `loss_high`; shares in percent."""
        rows = overall_rows(sweep_results)
        own = self.gain == TOKENS  # whose interval, which the sweep's own results lack, is not shown
        gain = rows["mean_tokens"] if own else _means(rows, self.gain, self.results)["mean"]
        columns = {"gain": gain, **_means(rows, self.loss, self.results).add_prefix("loss_")}
        scale = {name: 100 if (self.gain if name == "gain" else self.loss).unit == "share" else 1 for name in columns}
        rows = rows.assign(**{name: scale[name] * values.to_numpy() for name, values in columns.items()})
        rows = rows.rename(columns={"loss_mean": "loss"})
        return rows[rows["gain"].notna() & rows["loss"].notna()].reset_index(drop=True)


DEFAULT = Pair()


def _means(rows: pd.DataFrame, metric: Metric, results: pd.DataFrame | None) -> pd.DataFrame:
    """`mean`, `low` and `high` of a metric over all tasks, for the candidates of `rows`."""
    if metric == PASS_AT_1:
        return rows[["pass_at_1", "pass_at_1_low", "pass_at_1_high"]].set_axis(["mean", "low", "high"], axis=1)
    assert results is not None  # noqa: S101  only pass@1 has its interval in the sweep's own results
    found = results[(results["metric"] == metric.name) & (results["task"] == ALL_TASKS)].set_index("candidate")
    return found[["mean", "low", "high"]].reindex(rows["candidate"])


def pareto_figure(sweep_results: pd.DataFrame, recommended: str | None = None, pair: Pair = DEFAULT) -> go.Figure:
    """pass@1 with its 95 % interval against mean tokens, one colour and marker per kind, with the Pareto front.

    Or what may be lost against what is gained, if `pair` names others. `recommended` gets a ring. Lines join the
    candidates of one kind in the order of their alphas. The first and the last alpha are written beside their markers;
    all others show under the pointer.
    """
    rows = pair.rows(sweep_results)
    if rows.empty:
        return _note(f"No task has both, so there is no {pair.loss.label} to show against {pair.gain.label}.")
    figure = go.Figure(layout=LAYOUT)
    less = -pair.gain.sign * rows["gain"].to_numpy(), pair.loss.sign * rows["loss"].to_numpy()
    front = rows[pareto_front(*less)].sort_values("gain")
    figure.add_scatter(
        x=front["gain"],
        y=front["loss"],
        mode="lines",
        line={"shape": "vh" if pair.gain.higher_is_better else "hv", "color": GREY, "width": 2, "dash": "dash"},
        name="Pareto front",
        hoverinfo="skip",
    )
    ringed = rows[rows["candidate"] == recommended]
    if len(ringed):
        figure.add_scatter(
            x=ringed["gain"],
            y=ringed["loss"],
            mode="markers",
            marker={"symbol": "circle-open", "size": 26, "color": "#111111", "line": {"width": 2}},
            name="Recommended",
            hoverinfo="skip",
        )
    for name in sweep_kinds():
        for default in (False, True):
            one = rows[(rows["kind"] == name) & (is_default(rows) == default)]
            if len(one):
                _add_kind(figure, KINDS[name], one, pair, default=default)
    if not is_default(rows).all():
        _explain(figure, "open: the mask left out, or min-p", marker={"symbol": "circle-open", "size": 9})
    figure.update_layout(
        height=560,
        margin={"l": 70, "r": 30, "t": 60, "b": 60},
        legend={**ABOVE, "y": 1.02},
        xaxis={"title": pair.gain.axis},
        yaxis={"title": pair.loss.axis},
    )
    return figure


def alpha_figure(sweep_results: pd.DataFrame, pair: Pair = DEFAULT) -> go.Figure:
    """The paper's Fig. 4 for each method: pass@1 (left axis) and mean tokens (right axis) against alpha.

    Or what may be lost and what is gained, if `pair` names others.

    One panel per method, at most three in a row, all with the same two scales. The reference is at alpha 0, and the
    aligned model at alpha 1 unless that is an adapter or a student, or alpha is a bias. Without any candidate that has
    an alpha, there is one panel with these two.
    """
    rows = pair.rows(sweep_results)
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
        _draw_panel(figure, rows, kinds, place, pair)
    _explain_axes(figure, pair)
    if not is_default(rows[~rows["kind"].isin(without_alpha())]).all():
        _explain(figure, "dotted: the mask left out", mode="lines", line={"width": 1, "dash": "dot"})
    _scale_axes(figure, rows, places, pair)
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
                error_y=_interval(*(100 * one[name] for name in INTERVAL)) if column == 1 else None,
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


def _add_kind(figure: go.Figure, kind: Kind, rows: pd.DataFrame, pair: Pair, *, default: bool) -> None:
    """The candidates of one kind in the Pareto figure: its own, or those that show what the mask does."""
    texts, places = [""] * len(rows), ["top right"] * len(rows)
    if kind.has_alpha and default:  # the last alpha first: with one candidate, they are the same
        texts[-1], places[-1] = alpha_text(rows["alpha"].iloc[-1]), "bottom left"
        texts[0], places[0] = alpha_text(rows["alpha"].iloc[0]), "top right"
    figure.add_scatter(
        x=rows["gain"],
        y=rows["loss"],
        error_y=_interval(rows["loss"], rows["loss_low"], rows["loss_high"]),
        mode=("lines+" if kind.has_alpha and kind.joined and default else "") + "markers+text",
        text=texts,
        textposition=places,
        textfont={"size": 12, "color": kind.colour},
        line={"color": kind.colour, "width": 1},
        marker={"symbol": kind.marker + ("" if default else "-open"), "size": _size(kind), "color": kind.colour},
        name=kind.label if default else None,
        legendgroup=kind.name,
        showlegend=default,
        customdata=_hover(rows, pair),
        hovertemplate="%{customdata}<extra></extra>",
    )


def _draw_panel(figure: go.Figure, rows: pd.DataFrame, kinds: list[Kind], place: tuple[int, int], pair: Pair) -> None:
    """One panel of the alpha figure: its kinds, the reference, and the aligned model where that is alpha 1."""
    one = kinds[0].alpha_one if kinds else "aligned"
    models = {0.0: rows[is_reference(rows)], 1.0: rows[(rows["kind"] == one) & is_default(rows)]}
    models = {alpha: model.assign(alpha=alpha) for alpha, model in models.items() if len(model)}
    for kind in kinds:
        line = rows[(rows["kind"] == kind.name) & is_default(rows)]
        if kind.is_models_at_ends:
            absent = [model for alpha, model in models.items() if alpha not in set(line["alpha"])]
            line = pd.concat([line, *absent]).sort_values("alpha", kind="stable")
        _add_pair(figure, line, place, kind, pair, joined=kind.joined)
        unmasked = rows[(rows["kind"] == kind.name) & ~is_default(rows)]
        if len(unmasked):
            _add_pair(figure, unmasked, place, kind, pair, joined=kind.joined, default=False)
    for model in models.values():
        _add_pair(figure, model, place, KINDS[model["kind"].iloc[0]], pair, joined=False)
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
    figure: go.Figure,
    rows: pd.DataFrame,
    place: tuple[int, int],
    kind: Kind,
    pair: Pair,
    *,
    joined: bool,
    default: bool = True,
) -> None:
    """pass@1 on the left axis and tokens on the right one, against alpha; dotted and small without the mask."""
    for values, colour, right in ((rows["loss"], PASS_COLOUR, False), (rows["gain"], TOKENS_COLOUR, True)):
        figure.add_scatter(
            x=rows["alpha"],
            y=values,
            error_y=None if right else _interval(rows["loss"], rows["loss_low"], rows["loss_high"]),
            mode="lines+markers" if joined else "markers",
            line={"color": colour, "width": 2 if default else 1, "dash": "solid" if default else "dot"},
            marker={
                "symbol": kind.marker + "-open" if right else kind.marker,
                "size": _size(kind) if default else 6,
                "color": colour,
            },
            customdata=_hover(rows, pair),
            hovertemplate="%{customdata}<extra></extra>",
            showlegend=False,
            row=place[0],
            col=place[1],
            secondary_y=right,
        )


def _explain_axes(figure: go.Figure, pair: Pair) -> None:
    """Two entries of the legend for the two axes: what the colours mean is the same in every panel."""
    for name, colour, symbol in (
        (f"{pair.loss.label} with 95 % interval (left axis)", PASS_COLOUR, "circle"),
        (f"mean {pair.gain.label} (right axis)", TOKENS_COLOUR, "circle-open"),
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


def _scale_axes(figure: go.Figure, rows: pd.DataFrame, places: list[tuple[int, int]], pair: Pair) -> None:
    """The same two scales in all panels of the alpha figure; only the outer axes have numbers."""
    low, high = rows["loss_low"].min(), rows["loss_high"].max()
    if math.isnan(low):  # no task has answers
        low, high = 0.0, 100.0
    room = 0.06 * max(high - low, 1)
    for line, column in places:
        first, last = column == 1, (line, column + 1) not in places
        figure.update_yaxes(
            range=[low - room, high + room],
            color=PASS_COLOUR,
            title_text=pair.loss.axis if first else None,
            showticklabels=first,
            secondary_y=False,
            row=line,
            col=column,
        )
        figure.update_yaxes(
            # Below pass@1, which is at the top of its own scale.
            range=[min(0, 1.3 * rows["gain"].min()), 1.3 * rows["gain"].max()],
            color=TOKENS_COLOUR,
            title_text=pair.gain.axis if last else None,
            tickmode="auto",
            showgrid=False,
            showticklabels=last,
            secondary_y=True,
            row=line,
            col=column,
        )


def reward_figure(scores: pd.DataFrame, metrics: Sequence[Metric]) -> go.Figure:
    """A histogram for each reward model, of what it gives to right and to wrong completions of all candidates.

    A reward that tells them apart has two humps; where nothing says what is right, there is one colour. Without a
    reward model the figure says so.
    """
    rewards = [metric for metric in metrics if metric.unit == "number"]
    if not rewards:
        return _note("No reward model scored the sweep.")
    key = ["candidate", "task", "problem_id", "sample"]
    correct = scores[scores["metric"] == PASS_AT_1.name].set_index(key)["score"]
    figure = make_subplots(rows=len(rewards), subplot_titles=[metric.label for metric in rewards])
    for number, metric in enumerate(rewards, start=1):
        of_metric = scores[scores["metric"] == metric.name].set_index(key)["score"]
        graded = correct.reindex(of_metric.index)
        for name, rows, colour in (
            ("right", of_metric[graded == 1], PASS_COLOUR),
            ("wrong", of_metric[graded == 0], TOKENS_COLOUR),
            ("not known", of_metric[graded.isna()], GREY),
        ):
            if len(rows):
                figure.add_histogram(x=rows, name=name, marker={"color": colour}, opacity=0.6, histnorm="percent",
                                     legendgroup=name, showlegend=number == 1, row=number, col=1)  # fmt: skip
    figure.update_layout(**LAYOUT, barmode="overlay", height=120 + 260 * len(rewards), legend=ABOVE)
    figure.update_xaxes(title_text="reward")
    figure.update_yaxes(title_text="share of them, %")
    return figure


def _size(kind: Kind) -> int:
    """Markers of the two models are larger than those between and beyond them."""
    return 9 if kind.has_alpha else 15


def _interval(mean: pd.Series, low: pd.Series, high: pd.Series) -> dict[str, object]:
    """A 95 % interval as Plotly's error bars."""
    return {
        "type": "data",
        "symmetric": False,
        "array": high - mean,
        "arrayminus": mean - low,
        "thickness": 1,
        "width": 3,
    }


def _hover(rows: pd.DataFrame, pair: Pair) -> np.ndarray:
    """What shows when the pointer is on a point, one text per row."""
    return np.array(
        [
            f"<b>{row.candidate}</b> (alpha {alpha_text(row.alpha)}, beta {row.plausibility:g})<br>"
            f"pass@1 {percent(row.pass_at_1)} % [{percent(row.pass_at_1_low)}, {percent(row.pass_at_1_high)}]<br>"
            f"tokens {tokens_text(row.mean_tokens)}, reduction {reduction_text(row)}<br>"
            f"truncated {percent(row.truncated)} %" + _further(row, pair)
            for row in rows.itertuples()
        ]
    )


def _further(row: Any, pair: Pair) -> str:
    """What else shows there: metrics other than pass@1 and tokens."""
    shown = ((pair.loss, row.loss), (pair.gain, row.gain))
    return "".join(
        f"<br>{html.escape(metric.label)} {number_text(value)}{' %' if metric.unit == 'share' else ''}"
        for metric, value in shown
        if metric not in (PASS_AT_1, TOKENS)
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
