"""What `find_alpha` found, in figures, in a sentence and in a picture."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from realign_pipes.reporting.figures import ABOVE, GREY, LAYOUT
from realign_pipes.reporting.tables import percent
from realign_pipes.sweep.kinds import KINDS
from realign_pipes.sweep.search import LoseAtMost, Measured, Wish


def summarise_search(
    wish: Wish,
    knob: str,
    steps: list[Measured],
    confirmed: Measured,
    *,
    problems: int,
    completions_drawn: int,
    sweep_completions: int,
) -> dict[str, Any]:
    """Plain data for JSON. All shares are in [0, 1].

    `alpha`; `wish`, `{"save": 0.4}` or `{"lose_at_most": 0.01}`; of the TrRa student on the `problems` (a number) that
    confirm it `saved` with its 95 % interval (`saved_low`, `saved_high`), `pass_at_1`, `difference` from
    `reference_pass_at_1` and its one-sided lower bound `difference_low`; `knob`, the kind that was searched on;
    `completions_drawn` in all, and `sweep_completions`, those of the stage alpha_sweep with the same parameters;
    `sentence`; and `steps`, everything that was measured on the problems of the search, in order.
    """
    missed = wish.missed_by(confirmed)
    if isinstance(wish, LoseAtMost):
        wished = f"To lose at most {percent(wish.loss)} points was the wish: "
        wished += "kept" if missed == 0 else f"missed by {percent(missed)} points"
    else:
        wished = f"The wish was {percent(wish.share)} %: missed by {percent(missed)} points"
    return {
        "alpha": confirmed.alpha,
        "wish": {"lose_at_most": wish.loss} if isinstance(wish, LoseAtMost) else {"save": wish.share},
        "knob": knob,
        **confirmed.model_dump(exclude={"kind", "alpha"}),
        "reference_pass_at_1": confirmed.pass_at_1 - confirmed.difference,
        "problems": problems,
        "completions_drawn": completions_drawn,
        "sweep_completions": sweep_completions,
        "sentence": (
            f"TrRa at alpha {confirmed.alpha:g} saves {percent(confirmed.saved)} % of the reference's tokens "
            f"[{percent(confirmed.saved_low)}, {percent(confirmed.saved_high)}] at pass@1 "
            f"{percent(confirmed.pass_at_1)} % against {percent(confirmed.pass_at_1 - confirmed.difference)} % "
            f"({percent(confirmed.difference)} points, with 95 % confidence above "
            f"{percent(confirmed.difference_low)}), on {problems} problems that had no part in the search. {wished}. "
            f"It took {completions_drawn:,} completions, searching on {knob}; the sweep draws "
            f"{sweep_completions:,}."
        ),
        "steps": [step.model_dump() for step in steps],
    }


def search_figure(found: Mapping[str, Any]) -> go.Figure:
    """What was measured against alpha, from what `summarise_search` returns, and the wish as a line.

    Tokens saved for the wish to save; pass@1 lost, in points, for the wish to lose no more.
    """
    ((kind, value),) = found["wish"].items()
    saves = kind == "save"
    figure = go.Figure(layout=LAYOUT)
    for name in dict.fromkeys(step["kind"] for step in found["steps"]):
        steps = sorted((step for step in found["steps"] if step["kind"] == name), key=lambda step: step["alpha"])
        figure.add_scatter(
            x=[step["alpha"] for step in steps],
            y=[100 * (step["saved"] if saves else -step["difference"]) for step in steps],
            mode="lines+markers" if name != "trra" else "markers",
            marker={"symbol": KINDS[name].marker, "size": 10, "color": KINDS[name].colour},
            name=KINDS[name].label,
        )
    y = 100 * (found["saved"] if saves else -found["difference"])
    ends = [100 * found["saved_high"] - y, y - 100 * found["saved_low"]]
    figure.add_scatter(
        x=[found["alpha"]],
        y=[y],
        error_y={"type": "data", "symmetric": False, "array": ends[:1], "arrayminus": ends[1:]} if saves else None,
        mode="markers",
        marker={"symbol": "circle-open", "size": 18, "color": KINDS["trra"].colour, "line": {"width": 3}},
        name="TrRa, confirmed",
    )
    figure.add_hline(y=100 * value, line={"color": GREY, "dash": "dash"}, annotation_text="the wish")
    figure.update_layout(
        height=480,
        margin={"l": 70, "r": 30, "t": 60, "b": 60},
        legend={**ABOVE, "y": 1.02},
        xaxis={"title": "alpha"},
        yaxis={"title": "tokens saved, %" if saves else "pass@1 lost, points"},
    )
    return figure
