"""Words and numbers for any metric: its values, what is gained of it, and what is lost."""

from realign_pipes.reporting.tables import number_text, percent, points, value_text
from realign_pipes.sweep.bounds import CONFIDENCE
from realign_pipes.sweep.measures import Metric


def change_text(metric: Metric, change: float) -> str:
    """A difference or a margin: points of a share, percent of a count."""
    if metric.unit == "share":
        return points(change)
    return f"{percent(change)} %" if metric.unit == "count" else number_text(change)


def gain_cell(metric: Metric, gain: float) -> str:
    """What is gained, in a table; a loss is negative."""
    return f"{percent(gain)} points" if metric.unit == "share" else change_text(metric, gain)


def gain_header(metric: Metric) -> str:
    """The head of that column."""
    return "reduction" if _is_saving(metric) else f"{metric.label} gained"


def gain_noun(metric: Metric) -> str:
    """What a gain is called."""
    return "saving" if _is_saving(metric) else f"gain in {metric.label}"


def gains(metric: Metric) -> str:
    """What a candidate does that gains."""
    if _is_saving(metric):
        return f"saves {metric.label}"
    return f"{'raises' if metric.higher_is_better else 'lowers'} {metric.label}"


def short_gain(metric: Metric, gain: float, *, again: bool = False) -> str:
    """How much a candidate gains; `again` after a sentence that named the metric."""
    if _is_saving(metric):
        return f"saves {percent(gain)} %" + ("" if again else f" of the {metric.label}")
    verb = "raises" if metric.higher_is_better else "lowers"
    return f"{verb} {'it' if again else metric.label} by {change_text(metric, gain)}"


def full_gain(metric: Metric, gain: float, value: float, reference: float) -> str:
    """How much a candidate gains, with both means."""
    both = f"{value_text(metric, value)} instead of {value_text(metric, reference)}"
    if _is_saving(metric):
        return f"saves {percent(gain)} % of the reference's {metric.label} ({both} per completion)"
    return f"{short_gain(metric, gain)} ({both})"


def bound_text(metric: Metric, low: float) -> str:
    """The bound on what is lost, in words."""
    worse = "below" if metric.higher_is_better else "above"
    if low >= 0:
        return f"its {metric.label} is not {worse} the reference's"
    return f"its {metric.label} is at most {change_text(metric, -low)} {worse} the reference's"


def better(metric: Metric) -> str:
    """Which of two values is the better one."""
    return "higher" if metric.higher_is_better else "lower"


def rule_text(gain: Metric, loss: Metric) -> str:
    """What decides between gains that do not differ."""
    return (
        f"Of {gain_noun(gain).replace('saving', 'savings').replace('gain in', 'gains in')} that do not differ with "
        f"{100 * CONFIDENCE:g} % confidence, the {better(loss)} {loss.label} was taken, then the smaller move."
    )


def _is_saving(metric: Metric) -> bool:
    return metric.unit == "count" and not metric.higher_is_better
