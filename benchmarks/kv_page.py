"""docs/inra_kv_cache.md and its pictures from benchmarks/results/inra_kv_cache/*.json: for inra_kv_cache.py."""

import json
from pathlib import Path
from typing import Any

from kv_schemes import ALPHAS, TARGET, WRITTEN_AT
from matplotlib import pyplot

from realign_pipes.reporting.tables import NONE, Cells, alpha_text, markdown_table

PROJECT = Path(__file__).parents[1]
RESULTS = PROJECT / "benchmarks" / "results" / "inra_kv_cache"
PAGE = PROJECT / "docs" / "inra_kv_cache.md"


def signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def scientific(value: float) -> str:
    return "0" if value < 1e-12 else f"{value:.2g}" if value >= 0.01 else f"{value:.0e}".replace("e-0", "e−")


def place_name(row: dict[str, Any]) -> str:
    return f"{row['layer']}" if row["layer"] is not None else "adapter"


def drawn(one: dict[str, float]) -> str:
    """pass@1 and mean tokens, and how far they are from exact InRa's."""
    return (
        f"{100 * one['pass_at_1']:.1f} ({signed(100 * one['pass_at_1_difference'], 1)} "
        f"[{signed(100 * one['pass_at_1_low'], 1)}, {signed(100 * one['pass_at_1_high'], 1)}]) / "
        f"{one['mean_tokens']:.1f} ({signed(one['mean_tokens_difference'], 1)} "
        f"[{signed(one['mean_tokens_low'], 1)}, {signed(one['mean_tokens_high'], 1)}])"
    )


def section(found: dict[str, Any]) -> list[str]:
    """One model's part of the page."""
    shape, width = found["shape"], found["shape"]["bits"]
    streams = [
        [
            place_name(row),
            row["which"],
            *(
                f"{row[f'{alpha:g}']['relative_norm']:.2f} / {row[f'{alpha:g}']['cosine']:.2f} / "
                f"{row[f'{alpha:g}']['effective_rank']:.0f}"
                for alpha in WRITTEN_AT
            ),
        ]
        for row in found["streams"]
    ]
    table, quality = [], []
    for row in found["schemes"]:
        sizes = [f"{row['ratio_16']:.2f}", f"{row['ratio']:.2f}", f"{row['bytes']:.0f}"]
        of_alphas = [row["alphas"][f"{alpha:g}"] for alpha in ALPHAS]
        table.append([row["scheme"], *sizes, *(scientific(one["kl"]) for one in of_alphas)])
        if samples := {one["samples"] for one in of_alphas if "samples" in one}:
            cells = [drawn(one) if "samples" in one else NONE for one in of_alphas]
            quality.append([row["scheme"], f"{row['ratio_16']:.2f}", f"{samples.pop()}", *cells])
    at = [f"alpha {alpha_text(alpha)}" for alpha in ALPHAS]
    return [
        f"## {found['name']}",
        "",
        f"{shape['layers']} layers and {shape['adapter_layers']} of the adapter, {shape['heads']} key-value heads of "
        f"{shape['size']}, {found['dtype']}; {found['problems']} problems, KL on {found['compared']} of them; "
        f"sequences of {found['length']:.0f} tokens on average.",
        "",
        "### How far the streams differ",
        "",
        "Relative norm of A − R (over that of R) / mean cosine of A and R / effective rank of A − R, which is at most "
        f"{shape['heads'] * shape['size']}, along completions written at each alpha. The adapter is compared with the "
        "layer of stream R that it is a copy of.",
        "",
        markdown_table(Cells(["layer", "", *(f"alpha {alpha_text(a)}" for a in WRITTEN_AT)], streams, left=2), None),
        "### Bytes against agreement",
        "",
        f"![Bytes against agreement](images/inra_kv_cache-{found['name']}.png)",
        "",
        "KL divergence per token from exact InRa, in nats.",
        "",
        markdown_table(
            Cells(["stream A's", "× base, 16 bits", f"× base, {width} bits", "bytes a token", *at], table, left=1), None
        ),
        "pass@1 in percent (difference from exact InRa in points [95 %]) / mean tokens (difference [95 %]). `samples`",
        "is for each problem; differences are from the same samples of exact InRa; a dash: not drawn.",
        "",
        markdown_table(Cells(["stream A's", "× base, 16 bits", "samples", *at], quality, left=1), None),
    ]


def draw(found: dict[str, Any], target: Path) -> None:
    """KL and the difference of pass@1 against bytes, a column for each alpha."""
    families = list(dict.fromkeys(row["family"] for row in found["schemes"]))
    figure, axes = pyplot.subplots(2, len(ALPHAS), figsize=(13, 7.5), sharex=True, sharey="row", layout="constrained")
    for column, alpha in enumerate(ALPHAS):
        above, below = axes[:, column]
        for number, family in enumerate(families):
            rows = sorted((row for row in found["schemes"] if row["family"] == family), key=lambda r: r["ratio_16"])
            x = [row["ratio_16"] for row in rows]
            figures = [row["alphas"][f"{alpha:g}"] for row in rows]
            style = {"color": f"C{number}", "marker": "o^sDvPX*"[number], "label": family, "markersize": 5}
            line = {"linestyle": "none" if family == "shared layers" else "-", "linewidth": 1}
            above.plot(x, [max(one["kl"], 1e-7) for one in figures], **style, **line)
            x = [number for number, one in zip(x, figures, strict=True) if "pass_at_1" in one]
            figures = [one for one in figures if "pass_at_1" in one]
            points = [100 * one["pass_at_1_difference"] for one in figures]
            spread = [[100 * (one["pass_at_1_difference"] - one["pass_at_1_low"]) for one in figures],
                      [100 * (one["pass_at_1_high"] - one["pass_at_1_difference"]) for one in figures]]  # fmt: skip
            below.errorbar(x, points, spread, **style, **line, elinewidth=1, capsize=2)
        above.set_yscale("log")
        above.set_title(f"alpha {alpha_text(alpha)}")
        below.axhline(0, color="grey", linewidth=0.8)
        for axis in (above, below):
            axis.axvline(TARGET, color="grey", linewidth=0.8, linestyle=":")
            axis.grid(alpha=0.25)
        below.set_xlabel("KV bytes, × the base's (16-bit numbers)")
    axes[0, 0].set_ylabel("KL per token from exact InRa, nats (at least 1e-7)")
    axes[1, 0].set_ylabel("pass@1 less exact InRa's, points [95 %]")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(target, dpi=110)
    pyplot.close(figure)


def write_page() -> None:
    """docs/inra_kv_cache.md from the results of all models."""
    lines = [
        "# InRa: the second KV cache",
        "",
        "Made by `python benchmarks/inra_kv_cache.py` (demo: `--every 3 --draw int8 int4`, after `make run` and",
        "`kedro run --pipelines find_alpha --params find_alpha.save=0.4`, which makes the problems). Two streams take",
        "(2L + n) / L times the KV bytes of a base of L layers, n being the adapter's. Stream R must stay exact, as",
        "alpha = 0 is the base model; these are ways to store stream A in less:",
        "",
        "- `int8`, `int4` and so on: a code of so many bits for each number and a scale for each token and head (a",
        "  bfloat16), in all layers and in the adapter. `with zero point`: the smallest number is stored too.",
        "  `per channel`: a fixed range for each channel, fitted on other problems, and no scale to store.",
        "- `difference`: the same of the difference from stream R (of the adapter, which R lacks, of its states).",
        "- `difference of rank r`: its coefficients in the r main directions, fitted on other problems; basis not",
        "  counted, adapter exact.",
        "- `R's from layer k up`, `below layer k`: stream A reads R's keys and values there; adapter exact.",
        "- `last N tokens`: of older tokens stream A reads R's keys and values; the prompt is read exactly; adapter",
        "  exact; bytes at the average length.",
        "",
        "None of them is an option of InRa. It would have to take at most 1.5 times the base's bytes in 16 bits, at no",
        "measurable loss of pass@1; on the demo, int8 takes more, and int4 answers fewer problems right at alpha 1.",
        "The streams differ by about as much as they are large, so there is little to share.",
        "",
        "At alpha 1 both streams are kept here, as for a conversation that goes on at another alpha: stream A has all",
        "of the weight. Completions are drawn with the same random numbers; intervals are paired, over problems.",
        "",
    ]
    for file in sorted(RESULTS.glob("*.json")):
        lines += section(json.loads(file.read_text()))
    PAGE.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def write(found: dict[str, Any]) -> None:
    """One model's results, its picture, and the page."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{found['name']}.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, PROJECT / "docs" / "images" / f"inra_kv_cache-{found['name']}.png")
    write_page()
