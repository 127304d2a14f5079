"""The figures hold the table's values; how they look was judged by eye."""

from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import plotly.graph_objects as go
import pytest

from realign_pipes.reporting.figures import alpha_figure, budget_figure, pareto_figure
from realign_pipes.reporting.tables import budget_cells, sweep_cells
from realign_pipes.sweep.kinds import KINDS, Kind
from realign_pipes.sweep.metrics import summarise_sweep


def traces(figure: go.Figure) -> dict[str, go.Scatter]:
    return {trace.name: trace for trace in figure.data if trace.name}


def overall(sweep_results: pd.DataFrame, kind: str) -> pd.DataFrame:
    return sweep_results[(sweep_results["task"] == "all") & (sweep_results["kind"] == kind)]


def test_pareto_figure_shows_every_candidate_with_its_interval(sweep_results: pd.DataFrame):
    shown = traces(pareto_figure(sweep_results, "trra_1.5"))
    assert list(shown) == [
        "Pareto front", "Recommended", "Reference", "Aligned", "DeRa", "TrRa", "TrRa-iter", "InRa",
    ]  # fmt: skip
    for kind, name in (("reference", "Reference"), ("trra", "TrRa"), ("inra", "InRa")):
        rows, trace = overall(sweep_results, kind), shown[name]
        assert list(trace.x) == rows["mean_tokens"].tolist()
        assert list(trace.y) == pytest.approx(100 * rows["pass_at_1"])
        assert list(trace.y + trace.error_y.array) == pytest.approx(100 * rows["pass_at_1_high"])
        assert list(trace.y - trace.error_y.arrayminus) == pytest.approx(100 * rows["pass_at_1_low"])
        named = zip(rows["candidate"], trace.customdata, strict=True)
        assert all(f"<b>{candidate}</b>" in text for candidate, text in named)
    ringed = overall(sweep_results, "trra").query("candidate == 'trra_1.5'")
    assert list(shown["Recommended"].x) == ringed["mean_tokens"].tolist()
    looks = {(trace.marker.symbol, trace.marker.color) for name, trace in shown.items() if name != "Pareto front"}
    assert len(looks) == 7


def test_pareto_front_rises_with_tokens(sweep_results: pd.DataFrame):
    front = traces(pareto_figure(sweep_results))["Pareto front"]
    assert sorted(front.x) == list(front.x) and sorted(front.y) == list(front.y)
    assert front.x[0] == overall(sweep_results, "inra")["mean_tokens"].min()
    assert front.y[-1] == pytest.approx(100 * sweep_results["pass_at_1"].max())


def test_alpha_figure_has_two_axes_for_each_method(sweep_results: pd.DataFrame):
    figure = alpha_figure(sweep_results)
    assert [note.text for note in figure.layout.annotations][:3] == ["DeRa", "TrRa, TrRa-iter (not joined)", "InRa"]
    lines = {(trace.yaxis, trace.marker.symbol): trace for trace in figure.data if trace.mode == "lines+markers"}
    inra = overall(sweep_results, "inra")
    correct, tokens = lines["y5", "cross"], lines["y6", "cross-open"]
    assert list(correct.x) == list(tokens.x) == [-0.25, 0, 0.25, 0.5, 0.75, 1, 1.25]
    assert list(correct.y) == pytest.approx(100 * inra["pass_at_1"])
    assert list(tokens.y) == inra["mean_tokens"].tolist()
    assert figure.layout.yaxis6.overlaying == "y5" and figure.layout.yaxis6.side == "right"
    assert list(lines["y3", "circle"].x) == [0.5, 1, 1.5, 2, 3]
    scales = {(axis.range, axis.overlaying is None) for axis in figure.select_yaxes()}
    assert len(scales) == 2  # one for pass@1, one for tokens, in all panels


def test_alpha_figure_marks_the_ends(sweep_results: pd.DataFrame):
    figure = alpha_figure(sweep_results)
    reference, aligned = overall(sweep_results, "reference").iloc[0], overall(sweep_results, "aligned").iloc[0]
    stars = [trace for trace in figure.data if trace.marker.symbol == "star-open"]
    diamonds = [trace for trace in figure.data if trace.marker.symbol == "diamond-open"]
    assert [(trace.x[0], trace.y[0]) for trace in stars] == [(0, reference["mean_tokens"])] * 3
    # InRa's alpha 1 is its adapter, not the aligned model
    assert [(trace.x[0], trace.y[0]) for trace in diamonds] == [(1, aligned["mean_tokens"])] * 2
    assert [shape.x0 for shape in figure.layout.shapes] == [0, 1] * 3
    # DeRa at 0 and 1 is the two models: its line runs through them
    dera = next(t for t in figure.data if t.marker.symbol == "square-open" and t.mode == "lines+markers")
    assert list(dera.x) == [0, 0.25, 0.5, 1, 1.5, 2, 3]
    assert (dera.y[0], dera.y[3]) == (reference["mean_tokens"], aligned["mean_tokens"])


def test_a_sweep_of_the_two_models_alone_draws(make_sweep: Callable):
    pair = {name: frame for name, frame in make_sweep(problems=3).items() if name in ("reference", "aligned")}
    results = summarise_sweep(pair, bootstrap_samples=20, bootstrap_seed=0)
    assert "Aligned" in traces(pareto_figure(results))
    assert [trace.x[0] for trace in alpha_figure(results).data if trace.x[0] is not None] == [0, 0, 1, 1]


def test_only_the_first_and_last_alpha_of_a_kind_are_written_beside_their_points(sweep_results: pd.DataFrame):
    shown = traces(pareto_figure(sweep_results))
    assert shown["InRa"].text == ("−0.25", "", "", "", "", "", "1.25")
    assert shown["DeRa"].text == ("0.25", "", "", "", "3") and shown["TrRa"].text == ("0.5", "", "", "", "3")
    assert set(shown["Reference"].text) == set(shown["Aligned"].text) == {""}
    one = sweep_results[sweep_results["candidate"].isin(["reference", "dera_1.5"])]
    assert traces(pareto_figure(one))["DeRa"].text == ("1.5",)


def test_a_row_in_the_table_of_kinds_is_all_that_a_new_kind_needs(
    make_sweep: Callable, budget_results: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
):
    merged = Kind("merged", "Merged weights", "#56B4E9", "hexagon", open=None, about="A mean of weights.")
    capped = replace(merged, name="capped", label="Capped", marker="pentagon", of_budgets=True)
    beside = replace(merged, name="beside", label="Beside", marker="x", panel="merged", joined=False)
    for kind in (merged, capped, beside):
        monkeypatch.setitem(KINDS, kind.name, kind)
    generations = make_sweep(problems=5)
    for name, kind, alpha in (("merged-0.5", "merged", 0.5), ("merged-2", "merged", 2.0), ("beside-1", "beside", 1.0)):
        generations[name] = generations["trra_1.5"].assign(candidate=name, kind=kind, alpha=alpha)
    results = summarise_sweep(generations, bootstrap_samples=20, bootstrap_seed=0)
    assert {"merged-0.5", "merged-2", "beside-1"} < {row[0] for row in sweep_cells(results).rows}
    drawn = traces(pareto_figure(results))["Merged weights"]
    assert list(drawn.x) == overall(results, "merged")["mean_tokens"].tolist() and len(drawn.x) == 2
    assert (drawn.marker.symbol, drawn.marker.color, drawn.mode) == ("hexagon", "#56B4E9", "lines+markers+text")
    assert traces(pareto_figure(results))["Beside"].mode == "markers+text"
    panels = alpha_figure(results)
    assert panels.layout.annotations[3].text == "Merged weights, Beside (not joined)"
    last = [trace for trace in panels.data if trace.xaxis == "x4" and not trace.marker.symbol.endswith("-open")]
    assert {(trace.marker.symbol, tuple(trace.x)) for trace in last} == {
        ("hexagon", (0.5, 2.0)), ("x", (1.0,)), ("star", (0.0,)), ("diamond", (1.0,)),
    }  # fmt: skip

    budgets = pd.concat([budget_results, budget_results.iloc[[1]].assign(candidate="capped-24", kind="capped")])
    assert ["24", "Capped"] in [row[:2] for row in budget_cells(budgets).rows]
    assert [trace.name for trace in budget_figure(budgets).data if trace.showlegend][-1] == "Capped"


def test_the_panel_of_a_bias_has_the_reference_at_0_and_nothing_at_1(make_sweep: Callable):
    generations = make_sweep(problems=5)
    for bias in (2.0, 4.0):
        name = f"close-bias-{bias:g}"
        generations[name] = generations["trra_1.5"].assign(candidate=name, kind="close_bias", alpha=bias)
    generations["prompt-brief"] = generations["aligned"].assign(candidate="prompt-brief", kind="prompt")
    results = summarise_sweep(generations, bootstrap_samples=20, bootstrap_seed=0)
    shown = traces(pareto_figure(results))
    assert shown["Closing bias"].text == ("2", "4") and shown["Prompt"].text == ("",)
    figure = alpha_figure(results)
    assert [note.text for note in figure.layout.annotations][:4] == [
        "DeRa", "TrRa, TrRa-iter (not joined)", "InRa", "Closing bias",
    ]  # fmt: skip
    titles = [figure.layout[f"xaxis{number}"].title.text for number in ("", 2, 3, 4)]
    assert titles == ["alpha", "alpha", "alpha", "bias"]
    last = [trace for trace in figure.data if trace.xaxis == "x4" and not trace.marker.symbol.endswith("-open")]
    assert {(trace.marker.symbol, tuple(trace.x)) for trace in last} == {
        ("hourglass", (0.0, 2.0, 4.0)), ("star", (0.0,)),
    }  # fmt: skip
    assert [shape.x0 for shape in figure.layout.shapes if shape.xref == "x4"] == [0]


def test_rows_that_show_the_mask_s_effect_are_open_and_not_joined(wide_results: pd.DataFrame):
    figure = pareto_figure(wide_results, "trra_1.5")
    drawn = {(trace.legendgroup, trace.marker.symbol): trace for trace in figure.data if trace.legendgroup}
    unmasked = wide_results.query("kind == 'dera' and plausibility == 0 and task == 'all'")
    assert list(drawn["dera", "square-open"].x) == unmasked["mean_tokens"].tolist() and len(unmasked) == 2
    assert drawn["dera", "square-open"].mode == "markers+text" and set(drawn["dera", "square-open"].text) == {""}
    assert len(drawn["dera", "square"].x) == 5 and len(drawn["trra", "circle-open"].x) == 2
    assert len(drawn["reference", "star"].x) == len(drawn["reference", "star-open"].x) == 1
    assert ("merge", "hexagon-open") not in drawn and len(drawn["merge", "hexagon"].x) == 5
    entries = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert len(entries) == len(set(entries)) == 12 and entries[-1].startswith("open: ")
    assert len({(trace.marker.symbol, trace.marker.color) for trace in drawn.values()}) == len(drawn)


def test_alpha_figure_breaks_into_rows_of_three(wide_results: pd.DataFrame):
    figure = alpha_figure(wide_results)
    assert [note.text for note in figure.layout.annotations][:5] == [
        "DeRa", "Merged weights, TIES (not joined)", "Scaled LoRA", "TrRa, TrRa-iter (not joined)", "InRa",
    ]  # fmt: skip
    dotted = {
        trace.marker.symbol: trace for trace in figure.data if trace.line.dash == "dot" and trace.x[0] is not None
    }
    assert {symbol: tuple(trace.x) for symbol, trace in dotted.items()} == {
        "square": (2, 5), "square-open": (2, 5), "circle": (2, 5), "circle-open": (2, 5),
    }  # fmt: skip
    stars = [trace for trace in figure.data if trace.marker.symbol == "star"]
    plain = wide_results.query("candidate == 'reference' and task == 'all'")["pass_at_1"].iloc[0]
    assert [trace.y[0] for trace in stars] == pytest.approx([100 * plain] * 5), "and not the row with a min-p"
    assert len({(axis.range, axis.overlaying is None) for axis in figure.select_yaxes()}) == 2
    assert [axis.showticklabels for axis in figure.select_yaxes()] == [
        True, False, False, False, False, True, True, False, False, True,
    ]  # fmt: skip


def test_budget_figure_holds_the_tables_values(budget_results: pd.DataFrame):
    figure = budget_figure(budget_results)
    assert [(trace.name, trace.yaxis) for trace in figure.data] == [
        (label, axis) for label in ("Plain truncation", "Forced closing", "TokenBudget") for axis in ("y", "y2")
    ]
    pairs = {"truncation": figure.data[:2], "forced_close": figure.data[2:4], "token_budget": figure.data[4:]}
    for kind, (correct, truncated) in pairs.items():
        rows = budget_results[budget_results["kind"] == kind]
        assert list(correct.x) == list(truncated.x) == rows["budget"].tolist() == [24, 48, 96]
        assert list(correct.y) == pytest.approx(100 * rows["pass_at_1"])
        assert list(correct.y + correct.error_y.array) == pytest.approx(100 * rows["pass_at_1_high"])
        assert list(correct.y - correct.error_y.arrayminus) == pytest.approx(100 * rows["pass_at_1_low"])
        assert list(truncated.y) == pytest.approx(100 * rows["truncated"]) and truncated.error_y.array is None
        assert all(
            f"budget {row.budget}" in text for row, text in zip(rows.itertuples(), correct.customdata, strict=True)
        )
    assert list(figure.data[1].y) == pytest.approx([95, 40, 0]) and list(figure.data[5].y) == pytest.approx([10, 5, 0])
    for looks in ("symbol", "color"):
        assert len({trace.marker[looks] for trace in figure.data}) == 3
    shown = [trace.name for trace in figure.data if trace.showlegend]
    assert shown == ["Plain truncation", "Forced closing", "TokenBudget"]
    assert figure.layout.xaxis2.matches == "x"


def test_budget_figure_without_budgets_says_so(no_budgets: pd.DataFrame):
    figure = budget_figure(no_budgets)
    assert not figure.data and figure.layout.annotations[0].text == "No token budgets were measured."
