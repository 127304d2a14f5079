"""InRa's second KV cache: how far the two streams' keys and values differ, and in how little stream A's can be stored.

    python benchmarks/inra_kv_cache.py
    python benchmarks/inra_kv_cache.py --name demo --model data/06_models/inra \\
        --evaluation-set data/05_model_input/evaluation_set --calibration-set data/05_model_input/search_problems

Needs the data of a finished run in the environment `--env`, or an InRa checkpoint and two sets of problems by path; the
environment then gives the tasks and the sampling. Each way of storing stream A is compared with exact InRa: by the KL
divergence of the next token's distribution, teacher-forced along completions of the exact model, and by pass@1 and
mean tokens of completions drawn with the same random numbers. Completions are drawn for `int8` and `int4`, and (one for
each problem, if not `--draw all`) for each other kind's largest within 1.5 times the base's bytes. What is fitted (low-rank bases, scales for each channel)
is fitted on the calibration set's completions. int8 and int4 run the code of `generate(aligned_cache_dtype=...)`;
the others are simulated, with their bytes by formula. Finished parts are kept in the folder `inra_kv_cache` of the
run's work folder. Figures go to benchmarks/results/inra_kv_cache/NAME.json and docs/images/inra_kv_cache-NAME.png, and
docs/inra_kv_cache.md is made from all such files.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

PROJECT = Path(__file__).parents[1]
bootstrap_project(PROJECT)  # settings.py sets up OpenMP, which has to come before torch is imported

import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from transformers.cache_utils import DynamicLayer  # noqa: E402

from realign_pipes.generation.graded import Question, sample_and_grade  # noqa: E402
from realign_pipes.generation.parameters import Sampling  # noqa: E402
from realign_pipes.generation.transformers_engine import TransformersEngine  # noqa: E402
from realign_pipes.models.fingerprint import fingerprint, fingerprint_model  # noqa: E402
from realign_pipes.models.load import default_device, load_tokenizer  # noqa: E402
from realign_pipes.paper.inra import InRaForCausalLM  # noqa: E402
from realign_pipes.paper.quantized_cache import LIMITS, SCALE_BYTES  # noqa: E402
from realign_pipes.paper.streams import StreamsCache  # noqa: E402
from realign_pipes.reporting.tables import Cells, alpha_text, markdown_table  # noqa: E402
from realign_pipes.tasks.completion import ThinkingTags  # noqa: E402

RESULTS = PROJECT / "benchmarks" / "results" / "inra_kv_cache"
PAGE = PROJECT / "docs" / "inra_kv_cache.md"
WRITTEN_AT = (-0.5, 0.0, 0.5, 1.0)
"""The alphas of the completions along which the streams are compared."""
ALPHAS = (-0.5, 0.5, 1.0)
"""Where stream A counts. At 1 it has all the weight, and its cache is the only one that does."""
RESAMPLES = 10_000
TARGET = 1.5
NARROW = 16
"""Bits of a key's or value's number in the models that people deploy."""


# -- ways to store stream A --------------------------------------------------------------------------------------------
@dataclass
class Shape:
    """What a token's keys and values take."""

    layers: int
    adapter_layers: int
    heads: int
    size: int
    """Of a head."""
    bits: int
    """Of a number, in the checkpoint's dtype."""

    @property
    def numbers(self) -> int:
        """Of one layer's keys, or values."""
        return self.heads * self.size


class Scheme:
    """Exact: stream A's keys and values are stored as they are. The others override what they do otherwise."""

    family = "exact"
    dtype = "auto"
    """Of generate's `aligned_cache_dtype`."""
    simulated = False
    in_one_pass = True
    """Whether what a token sees depends on that token and the ones before it alone, not on how they came in."""

    def __init__(self, name: str) -> None:
        self.name = name

    def bits(self, shape: Shape, width: int, layer: int | None) -> float:
        """Stored for one token's keys (or values) of stream A, where a number of the model has `width` bits.

        `layer` is the base's, None an adapter's.
        """
        return shape.numbers * width

    def base(self, aligned: torch.Tensor, reference: torch.Tensor, layer: int, which: str) -> torch.Tensor:
        """Stream A's keys or values [B, H, T, D] of one of the base's layers, as they come back from the store."""
        return aligned

    def adapter(self, states: torch.Tensor, layer: int, which: str) -> torch.Tensor:
        """The same of an adapter layer, which has no counterpart in stream R."""
        return states

    def ratio(self, shape: Shape, width: int, length: float) -> float:
        """KV bytes of both streams over the base's, for sequences of `length` tokens."""
        one = shape.numbers * width
        own = [self.bits(shape, width, layer) for layer in range(shape.layers)]
        own += [self.bits(shape, width, None)] * shape.adapter_layers
        return 1 + sum(own) / (shape.layers * one)


class Shipped(Scheme):
    """`generate(aligned_cache_dtype=...)`."""

    family = "n bits"

    def __init__(self, dtype: str) -> None:
        super().__init__(dtype)
        self.dtype = dtype

    def bits(self, shape: Shape, width: int, layer: int | None) -> float:
        return shape.heads * (shape.size * int(self.dtype.removeprefix("int")) + 8 * SCALE_BYTES)


def rounded(states: torch.Tensor, bits: int) -> torch.Tensor:
    """As the shipped code stores and returns it, for any number of bits."""
    limit = 2 ** (bits - 1) - 1
    scale = (states.float().abs().amax(-1, keepdim=True) / limit).bfloat16().float().clamp(min=1e-30)
    return ((states / scale).round().clamp(-limit, limit) * scale).to(states.dtype)


class Bits(Scheme):
    """A scale for each token and head, as shipped; of stream A itself, or of its difference from stream R."""

    simulated = True

    def __init__(self, bits: int, difference: bool) -> None:
        super().__init__(f"int{bits}" + (" difference" if difference else ""))
        self.width, self.difference = bits, difference
        self.family = "n-bit difference" if difference else "n bits"

    def bits(self, shape: Shape, width: int, layer: int | None) -> float:
        return shape.heads * (shape.size * self.width + 8 * SCALE_BYTES)

    def base(self, aligned: torch.Tensor, reference: torch.Tensor, layer: int, which: str) -> torch.Tensor:
        return reference + rounded(aligned - reference, self.width) if self.difference else rounded(aligned, self.width)

    def adapter(self, states: torch.Tensor, layer: int, which: str) -> torch.Tensor:
        return rounded(states, self.width)


class ZeroPoint(Scheme):
    """The smallest number of each token and head beside the scale, so that the codes cover the range and no more."""

    family = "n bits, zero point"
    simulated = True

    def __init__(self, bits: int) -> None:
        super().__init__(f"uint{bits} with zero point")
        self.width = bits

    def bits(self, shape: Shape, width: int, layer: int | None) -> float:
        return shape.heads * (shape.size * self.width + 2 * 8 * SCALE_BYTES)

    def base(self, aligned: torch.Tensor, reference: torch.Tensor, layer: int, which: str) -> torch.Tensor:
        low, high = (bound.bfloat16().float() for bound in aligned.float().aminmax(dim=-1, keepdim=True))
        step = ((high - low) / (2**self.width - 1)).bfloat16().float().clamp(min=1e-30)
        codes = ((aligned - low) / step).round().clamp(0, 2**self.width - 1)
        return (codes * step + low).to(aligned.dtype)

    def adapter(self, states: torch.Tensor, layer: int, which: str) -> torch.Tensor:
        return self.base(states, states, layer, which)


class PerChannel(Scheme):
    """A fixed range for each channel, the calibration set's, so that nothing but the codes is stored."""

    family = "n bits, scale per channel"
    simulated = True

    def __init__(self, bits: int, fitted: "Fitted") -> None:
        super().__init__(f"int{bits} per channel")
        self.width, self.fitted = bits, fitted

    def bits(self, shape: Shape, width: int, layer: int | None) -> float:
        return shape.numbers * self.width

    def base(self, aligned: torch.Tensor, reference: torch.Tensor, layer: int, which: str) -> torch.Tensor:
        low, high = (bound[:, None] for bound in self.fitted.ranges[layer, which])
        step = (high - low) / (2**self.width - 1)
        return ((aligned - low) / step).round().clamp(0, 2**self.width - 1) * step + low

    def adapter(self, states: torch.Tensor, layer: int, which: str) -> torch.Tensor:
        return self.base(states, states, layer, which)


class LowRank(Scheme):
    """The difference from stream R, projected on the calibration set's main directions; the coefficients are stored."""

    family = "low-rank difference"
    simulated = True

    def __init__(self, share: float, shape: Shape, fitted: "Fitted") -> None:
        self.rank, self.fitted = round(share * shape.numbers), fitted
        super().__init__(f"difference of rank {self.rank}")

    def bits(self, shape: Shape, width: int, layer: int | None) -> float:
        return shape.numbers * width if layer is None else self.rank * width

    def base(self, aligned: torch.Tensor, reference: torch.Tensor, layer: int, which: str) -> torch.Tensor:
        mean, directions = self.fitted.directions[layer, which]
        directions = directions[:, : self.rank]
        difference = (aligned - reference).transpose(1, 2).flatten(2) - mean
        kept = (difference @ directions) @ directions.T + mean
        return reference + kept.unflatten(2, (aligned.shape[1], -1)).transpose(1, 2)


class SharedLayers(Scheme):
    """Stream A reads stream R's keys and values in some layers, and has none of its own there."""

    family = "shared layers"
    simulated = True

    def __init__(self, name: str, layers: Sequence[int]) -> None:
        super().__init__(name)
        self.layers = set(layers)

    def bits(self, shape: Shape, width: int, layer: int | None) -> float:
        return 0 if layer in self.layers else shape.numbers * width

    def base(self, aligned: torch.Tensor, reference: torch.Tensor, layer: int, which: str) -> torch.Tensor:
        return reference if layer in self.layers else aligned


class LastTokens(Scheme):
    """Stream A keeps its own keys and values of the last tokens; of older ones it reads stream R's.

    Of an adapter layer, which stream R does not have, it keeps all.
    """

    family = "last tokens"
    simulated = True
    in_one_pass = False

    def __init__(self, window: int) -> None:
        super().__init__(f"last {window} tokens")
        self.window = window

    def ratio(self, shape: Shape, width: int, length: float) -> float:
        kept = min(self.window / length, 1)
        return 1 + kept + shape.adapter_layers / shape.layers


class SimulatedLayer(DynamicLayer):
    """Keeps what the store would give back."""

    def __init__(self, scheme: Scheme, place: int, of_adapter: bool) -> None:
        super().__init__()
        self.scheme, self.place, self.of_adapter = scheme, place, of_adapter

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        rebuilt = []
        for which, states in (("keys", keys), ("values", values)):
            if self.of_adapter:
                rebuilt.append(self.scheme.adapter(states, self.place, which))
            else:
                aligned, reference = states.chunk(2)  # every row runs through both streams
                rebuilt.append(torch.cat([self.scheme.base(aligned, reference, self.place, which), reference]))
        seen = super().update(*rebuilt)
        if isinstance(self.scheme, LastTokens) and not self.of_adapter:
            self.keys, self.values = (self._forget(states, self.scheme.window) for states in seen)
        return seen

    def _forget(self, states: torch.Tensor, window: int) -> torch.Tensor:
        """For the next token, which itself is one of the window's."""
        aligned, reference = states.chunk(2)
        old = max(states.shape[2] - (window - 1), 0)
        return torch.cat([torch.cat([reference[:, :, :old], aligned[:, :, old:]], dim=2), reference])


class Measured(InRaForCausalLM):
    """InRa whose new caches store stream A by `scheme`."""

    scheme = Scheme("exact")

    def _new_cache(self, aligned_dtype: Any = "auto") -> StreamsCache:
        cache = super()._new_cache(self.scheme.dtype)
        if self.scheme.simulated:
            count = self.config.num_hidden_layers
            cache.layers = [SimulatedLayer(self.scheme, n, n >= count) for n in range(len(cache.layers))]
            cache.adapter_layers = cache.layers[count:]
        return cache


# -- completions -------------------------------------------------------------------------------------------------------
@dataclass
class Batch:
    """Prompts and completions, padded on the right."""

    ids: torch.Tensor
    """int64 [B, T]."""
    mask: torch.Tensor
    written: torch.Tensor
    """bool [B, T]: the tokens of the completions."""
    shortest: int
    """Tokens of the shortest prompt."""


def batches(pairs: Sequence[tuple[list[int], list[int]]], size: int, device: torch.device) -> Iterator[Batch]:
    """Of (prompt, completion), those with prompts of one length together."""
    ordered = sorted(pairs, key=lambda pair: (len(pair[0]), len(pair[1])))
    for start in range(0, len(ordered), size):
        some = ordered[start : start + size]
        width = max(len(prompt) + len(completion) for prompt, completion in some)
        ids = torch.zeros(len(some), width, dtype=torch.long)
        mask, written = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for row, (prompt, completion) in enumerate(some):
            end = len(prompt) + len(completion)
            ids[row, :end] = torch.tensor(prompt + completion)
            mask[row, :end] = 1
            written[row, len(prompt) : end] = True
        yield Batch(ids.to(device), mask.to(device), written.to(device), min(len(prompt) for prompt, _ in some))


class Completions:
    """Draws and grades, once: what is in the folder `work` is read."""

    def __init__(self, model: Measured, tokenizer: Any, tasks: Any, sampling: Sampling, work: Path) -> None:
        self.model, self.tokenizer, self.tasks, self.sampling, self.work = model, tokenizer, tasks, sampling, work

    def draw(self, problems: Any, scheme: Scheme, alpha: float, samples: int) -> pd.DataFrame:
        """One row for each completion: id, sample, task, prompt_ids, token_ids, tokens and correct."""
        questions = [
            Question(
                row["id"], self.tasks[row["task"]], row["prompt"], row["prompt_ids"], row["answer"], row["metadata"],
                ThinkingTags(open=row["think_open"], close=row["think_close"]),
            )
            for row in problems
        ]  # fmt: skip
        sampling = self.sampling.model_copy(update={"samples": samples})
        engine = TransformersEngine(self.model)
        engine.options = {"both_streams": True}
        self.model.scheme = scheme
        key = fingerprint([list(problems["prompt_ids"]), sampling.model_dump(), alpha])[:12]
        file = self.work / scheme.name.replace(" ", "-") / f"{key}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        drawn = list(
            sample_and_grade(
                lambda: engine, questions, self.tokenizer, sampling, file,
                description=f"{scheme.name}, alpha {alpha:g}", alpha=alpha,
            )
        )  # fmt: skip
        prompts, task = (dict(zip(problems["id"], problems[name], strict=True)) for name in ("prompt_ids", "task"))
        rows = [(one.id, one.sample, task[one.id], prompts[one.id], one.token_ids, len(one.token_ids), one.correct)
                for one in drawn]  # fmt: skip
        return pd.DataFrame(rows, columns=["id", "sample", "task", "prompt_ids", "token_ids", "tokens", "correct"])

    def pairs(self, problems: Any, alpha: float) -> list[tuple[list[int], list[int]]]:
        """(prompt, completion) by the exact model, one for each problem."""
        frame = self.draw(problems, Scheme("exact"), alpha, samples=1)
        return list(zip(frame["prompt_ids"], frame["token_ids"], strict=True))


# -- how far the streams differ ----------------------------------------------------------------------------------------
@dataclass
class Moments:
    """Sums over tokens of one layer's keys or values, heads concatenated [n]."""

    tokens: int = 0
    reference: float = 0.0
    """Squared norms."""
    cosine: float = 0.0
    mean: Any = 0.0
    """Of the difference [n]."""
    second: Any = 0.0
    """Its products [n, n]."""
    low: Any = None
    high: Any = None
    """Of stream A, each channel's [H, D]."""

    def add(self, aligned: torch.Tensor, reference: torch.Tensor, heads: int) -> None:
        """Of tokens [N, n]."""
        difference = (aligned - reference).double()
        self.tokens += len(aligned)
        self.reference += float(reference.double().square().sum())
        self.cosine += float(torch.cosine_similarity(aligned, reference, dim=-1).sum())
        self.mean = self.mean + difference.sum(0)
        self.second = self.second + difference.T @ difference
        low, high = (bound.unflatten(0, (heads, -1)) for bound in aligned.aminmax(dim=0))
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def figures(self) -> dict[str, float]:
        """Relative norm and mean cosine; the effective rank (the exponential of the entropy of the normalised singular
        values) and the rank that holds 95 % of the squared norm, both of the difference."""
        energies = torch.linalg.eigvalsh(self.second).clamp(min=0).flip(0)
        shares = energies.sqrt() / energies.sqrt().sum()
        return {
            "relative_norm": float((energies.sum() / self.reference).sqrt()),
            "cosine": self.cosine / self.tokens,
            "effective_rank": float(torch.special.entr(shares).sum().exp()),
            "rank_95": int((energies.cumsum(0) < 0.95 * energies.sum()).sum()) + 1,
        }


Places = dict[tuple[int, str], Moments]
"""By place in the cache (the base's layers, then the adapter's), and keys or values."""


@torch.inference_mode()
def compare_streams(model: Measured, pairs: Sequence[tuple[list[int], list[int]]], alpha: float, size: int) -> Places:
    """Both streams' keys and values at the completions' tokens. An adapter layer is compared with the layer of stream R
    that it is a copy of."""
    model.scheme = Scheme("exact")
    base = model.config.num_hidden_layers
    copied = 0 if model.inra.placement == "bottom" else base - 1
    found: Places = {}
    for batch in batches(pairs, size, model.device):
        cache = model(batch.ids, attention_mask=batch.mask, alpha=alpha, both_streams=True, use_cache=True,
                      logits_to_keep=1).past_key_values  # fmt: skip
        for place, layer in enumerate(cache.layers):
            for which in ("keys", "values"):
                states = getattr(layer, which)
                aligned = states[: len(batch.ids)]
                reference = getattr(cache.layers[place if place < base else copied], which)[len(batch.ids) :]
                heads = states.shape[1]
                of_tokens = (x.transpose(1, 2).flatten(2)[batch.written].float() for x in (aligned, reference))
                found.setdefault((place, which), Moments()).add(*of_tokens, heads)
    return found


@dataclass
class Fitted:
    """What the calibration set's completions say of each place."""

    directions: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """The difference's mean [n] and principal directions [n, n], the main one first."""
    ranges: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """Each channel's smallest and largest number [H, D]."""

    @classmethod
    def to(cls, several: Sequence[Places], dtype: torch.dtype) -> "Fitted":
        fitted = cls()
        for place in several[0]:
            of_place = [places[place] for places in several]
            tokens = sum(one.tokens for one in of_place)
            mean = sum(one.mean for one in of_place) / tokens
            covariance = sum(one.second for one in of_place) / tokens - torch.outer(mean, mean)
            directions = torch.linalg.eigh(covariance).eigenvectors.flip(1)
            fitted.directions[place] = mean.to(dtype), directions.to(dtype)
            low = torch.stack([one.low for one in of_place]).amin(0)
            high = torch.stack([one.high for one in of_place]).amax(0)
            fitted.ranges[place] = low.to(dtype), high.to(dtype)
        return fitted


# -- agreement with exact InRa -----------------------------------------------------------------------------------------
@torch.inference_mode()
def log_probabilities(model: Measured, scheme: Scheme, batch: Batch, alpha: float) -> torch.Tensor:
    """Of the tokens that follow, where completions are written [N, V], float32."""
    model.scheme = scheme
    before = batch.written[:, 1:]
    cache = model._new_cache()
    options = {"alpha": alpha, "both_streams": True, "past_key_values": cache, "use_cache": True}
    if scheme.in_one_pass:
        logits = model(batch.ids, attention_mask=batch.mask, **options).logits[:, :-1]
        return torch.log_softmax(logits[before].float(), dim=-1)
    parts, start = [], 0
    for end in (batch.shortest, *range(batch.shortest + 1, batch.ids.shape[1])):
        parts.append(model(batch.ids[:, start:end], attention_mask=batch.mask[:, :end], **options).logits)
        start = end
    return torch.log_softmax(torch.cat(parts, dim=1)[before].float(), dim=-1)


def divergences(
    model: Measured, schemes: Sequence[Scheme], pairs: Sequence[tuple[list[int], list[int]]], alpha: float, size: int
) -> dict[str, dict[str, float]]:
    """Scheme -> mean KL(exact || scheme) of a token in nats, and the share of tokens with the same likeliest one."""
    sums = {scheme.name: np.zeros(2) for scheme in schemes}
    tokens = 0
    for batch in batches(pairs, size, model.device):
        exact = log_probabilities(model, Scheme("exact"), batch, alpha)
        tokens += len(exact)
        for scheme in schemes:
            other = log_probabilities(model, scheme, batch, alpha)
            divergence = torch.nn.functional.kl_div(other, exact, reduction="sum", log_target=True)
            same = (other.argmax(-1) == exact.argmax(-1)).sum()
            sums[scheme.name] += [float(divergence), float(same)]
    return {name: {"kl": max(total[0] / tokens, 0.0), "same_argmax": total[1] / tokens} for name, total in sums.items()}


def differences(exact: pd.DataFrame, other: pd.DataFrame) -> dict[str, float]:
    """pass@1 and mean tokens, and their differences from exact InRa with paired 95 % intervals over resampled problems.

    All are means over tasks.
    """
    columns = ["correct", "tokens"]
    rng = np.random.default_rng(60)
    both = [frame.groupby(["task", "id"])[columns].mean() for frame in (exact, other)]
    means, resampled = [], []
    for _, rows in (both[1] - both[0]).groupby("task"):
        values = rows.to_numpy(dtype=float)
        counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), RESAMPLES)
        means.append(values.mean(0))
        resampled.append(counts @ values / len(values))
    low, high = np.quantile(np.mean(resampled, axis=0), [0.025, 0.975], axis=0)
    found = {}
    for number, (name, column) in enumerate(zip(("pass_at_1", "mean_tokens"), columns, strict=True)):
        found[name] = float(both[1][column].groupby("task").mean().mean())
        found[f"{name}_difference"] = float(np.mean(means, axis=0)[number])
        found[f"{name}_low"], found[f"{name}_high"] = float(low[number]), float(high[number])
    return found


# -- the page ----------------------------------------------------------------------------------------------------------
def signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def scientific(value: float) -> str:
    return "0" if value < 1e-12 else f"{value:.2g}" if value >= 0.01 else f"{value:.0e}".replace("e-0", "e−")


def place_name(row: dict[str, Any]) -> str:
    return f"{row['layer']}" if row["layer"] is not None else "adapter"


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
        if "pass_at_1" in of_alphas[0]:
            quality.append(
                [
                    row["scheme"],
                    f"{row['ratio_16']:.2f}",
                    f"{of_alphas[0]['samples']}",
                    *(
                        f"{100 * one['pass_at_1']:.1f} ({signed(100 * one['pass_at_1_difference'], 1)} "
                        f"[{signed(100 * one['pass_at_1_low'], 1)}, {signed(100 * one['pass_at_1_high'], 1)}]) / "
                        f"{one['mean_tokens']:.1f} ({signed(one['mean_tokens_difference'], 1)} "
                        f"[{signed(one['mean_tokens_low'], 1)}, {signed(one['mean_tokens_high'], 1)}])"
                        for one in of_alphas
                    ),
                ]
            )
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
        "pass@1 in percent (difference from exact InRa in points [95 %]) / mean tokens (difference [95 %]). `samples` is",
        "for each problem; differences are from the same samples of exact InRa.",
        "",
        markdown_table(Cells(["stream A's", "× base, 16 bits", "samples", *at], quality, left=1), None),
    ]


def draw(found: dict[str, Any], target: Path) -> None:
    """KL and the difference of pass@1 against bytes, a column for each alpha."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

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
    axes[1, 0].set_yscale("symlog", linthresh=2)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(target, dpi=110)
    pyplot.close(figure)


def write_page() -> None:
    """docs/inra_kv_cache.md from the results of all models."""
    lines = [
        "# InRa: the second KV cache",
        "",
        "Made by `python benchmarks/inra_kv_cache.py`. Two streams take (2L + n) / L times the KV bytes of a base of L",
        "layers, n being the adapter's. Stream R must stay exact, as alpha = 0 is the base model; these are ways to",
        "store stream A in less:",
        "",
        "- `int8`, `int4`: a code of 8 or 4 bits for each number and a scale for each token and head (a bfloat16), in",
        "  all layers and in the adapter. These are `generate(aligned_cache_dtype=...)`; other numbers of bits are",
        "  simulated. `per channel`: a fixed range for each channel, fitted on other problems, and no scale to store.",
        "- `difference`: the same of the difference from stream R (of the adapter, which R lacks, of its states).",
        "- `difference of rank r`: its coefficients in the r main directions, fitted on other problems; basis not",
        "  counted, adapter exact.",
        "- `R's from layer k up`, `below layer k`: stream A reads R's keys and values there; adapter exact.",
        "- `last N tokens`: of older tokens stream A reads R's keys and values; the prompt is read exactly; adapter",
        "  exact; bytes at the average length.",
        "",
        "At alpha 1 both streams are kept here, as for a conversation that goes on at another alpha: stream A has all",
        "of the weight. Completions are drawn with the same random numbers; intervals are paired, over problems.",
        "",
    ]
    for file in sorted(RESULTS.glob("*.json")):
        lines += section(json.loads(file.read_text()))
    PAGE.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


# -- the run -----------------------------------------------------------------------------------------------------------
def schemes_of(shape: Shape, fitted: Fitted, windows: Sequence[int]) -> list[Scheme]:
    cuts = sorted({max(1, round(shape.layers * share)) for share in (0.25, 0.5, 0.75)} - {shape.layers})
    layers = range(shape.layers)
    return [
        Scheme("exact"),
        *(Shipped(dtype) for dtype in LIMITS),
        *(Bits(bits, difference=False) for bits in (6, 5, 3, 2)),
        *(Bits(bits, difference=True) for bits in (8, 4, 3, 2)),
        *(ZeroPoint(bits) for bits in (4, 3)),
        *(PerChannel(bits, fitted) for bits in (8, 4)),
        *(LowRank(share, shape, fitted) for share in (0.75, 0.5, 0.25, 0.125)),
        *(SharedLayers(f"R's from layer {k} up", layers[k:]) for k in reversed(cuts)),
        *(SharedLayers(f"R's below layer {k}", layers[:k]) for k in cuts),
        SharedLayers("R's in all layers", layers),
        *(LastTokens(window) for window in windows),
    ]


def chosen(schemes: Sequence[Scheme], shape: Shape, length: float) -> list[Scheme]:
    """Exact, what is shipped, and of every other family the largest within the target."""
    found = [scheme for scheme in schemes if not scheme.simulated]
    for family in dict.fromkeys(scheme.family for scheme in schemes if scheme.simulated):
        within = [scheme for scheme in schemes
                  if scheme.family == family and scheme.ratio(shape, NARROW, length) <= TARGET]  # fmt: skip
        found += [one for one in within if one.simulated and one.ratio(shape, NARROW, length)
                  == max(other.ratio(shape, NARROW, length) for other in within)]  # fmt: skip
    return found


def main(given: argparse.Namespace) -> None:
    from datasets import load_from_disk

    with KedroSession.create(PROJECT, env=given.env) as session:
        catalog = session.load_context().catalog
        sampling = catalog.load("params:alpha_sweep").sampling
        tasks = catalog.load("params:data_prep").tasks
        checkpoint = given.model or catalog.load("inra_checkpoint")
        problems, calibration = (
            load_from_disk(path) if path else catalog.load(name)
            for path, name in ((given.evaluation_set, "evaluation_set"), (given.calibration_set, "search_problems"))
        )
        work = given.work or catalog.load("params:folders").work / "inra_kv_cache"
    if given.problems:
        problems, calibration = (one.select(range(min(given.problems, len(one)))) for one in (problems, calibration))
    samples = given.samples or sampling.samples
    model = Measured.from_pretrained(checkpoint).to(default_device())
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = Shape(config.num_hidden_layers, model.inra.num_adapter_layers, config.num_key_value_heads, head,
                  8 * model.dtype.itemsize)  # fmt: skip
    completions = Completions(model, load_tokenizer(checkpoint), tasks, sampling, work / fingerprint_model(checkpoint))
    size = given.batch_size

    pairs = {alpha: completions.pairs(problems, alpha) for alpha in WRITTEN_AT}
    figures = {alpha: {place: moments.figures() for place, moments in compare_streams(model, pairs[alpha], alpha, size)
                       .items()} for alpha in WRITTEN_AT}  # fmt: skip
    streams = [
        {"layer": place if place < shape.layers else None, "which": which,
         **{f"{alpha:g}": figures[alpha][place, which] for alpha in WRITTEN_AT}}
        for place, which in figures[WRITTEN_AT[0]]
    ]  # fmt: skip
    other = [compare_streams(model, completions.pairs(calibration, alpha), alpha, size) for alpha in ALPHAS]
    schemes = schemes_of(shape, Fitted.to(other, model.dtype), given.windows)
    length = float(np.mean([len(prompt) + len(completion) for alpha in ALPHAS for prompt, completion in pairs[alpha]]))
    kls = {alpha: divergences(model, schemes, pairs[alpha][:: given.every], alpha, size) for alpha in ALPHAS}
    for scheme in schemes:
        print(f"{scheme.name:28} {scheme.ratio(shape, NARROW, length):.3f}",
              *(f"{kls[alpha][scheme.name]['kl']:.2e}" for alpha in ALPHAS), file=sys.stderr, flush=True)  # fmt: skip
    if given.draw == "none":
        return
    exact = {alpha: completions.draw(problems, schemes[0], alpha, samples) for alpha in ALPHAS}
    drawn = schemes if given.draw == "all" else chosen(schemes, shape, length)
    base_bytes = 2 * shape.layers * shape.numbers * shape.bits / 8
    rows = []
    for scheme in schemes:
        count = samples if given.draw == "all" or not scheme.simulated else 1
        of_alphas = {f"{alpha:g}": dict(kls[alpha][scheme.name]) for alpha in ALPHAS}
        for alpha in ALPHAS if scheme in drawn else ():
            first = exact[alpha][exact[alpha]["sample"] < count]
            other = completions.draw(problems, scheme, alpha, count)
            of_alphas[f"{alpha:g}"] |= {"samples": count, **differences(first, other)}
        ratio = scheme.ratio(shape, shape.bits, length)
        rows.append({"scheme": scheme.name, "family": scheme.family, "ratio_16": scheme.ratio(shape, NARROW, length),
                     "ratio": ratio, "bytes": ratio * base_bytes, "alphas": of_alphas})  # fmt: skip
        if scheme in drawn:
            print(scheme.name, {key: signed(100 * one["pass_at_1_difference"], 2) for key, one in of_alphas.items()},
                  file=sys.stderr, flush=True)  # fmt: skip
    found = {
        "name": given.name, "shape": vars(shape), "dtype": str(model.dtype).removeprefix("torch."),
        "problems": len(problems), "compared": len(pairs[1.0][:: given.every]), "length": length, "streams": streams, "schemes": rows,
    }  # fmt: skip
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{given.name}.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, PROJECT / "docs" / "images" / f"inra_kv_cache-{given.name}.png")
    write_page()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="base", help="environment of conf/ (default: base)")
    parser.add_argument("--name", default="demo", help="of the model, on the page and in file names")
    parser.add_argument("--model", type=Path, help="InRa checkpoint (default: the environment's)")
    parser.add_argument("--evaluation-set", type=Path, help="saved dataset (default: the environment's)")
    parser.add_argument("--calibration-set", type=Path, help="other problems (default: the environment's search set)")
    parser.add_argument("--work", type=Path, help="folder for finished parts")
    parser.add_argument("--problems", type=int, help="only the first ones of each set")
    parser.add_argument("--samples", type=int, help="of each problem (default: the environment's)")
    parser.add_argument("--every", type=int, default=1, help="compare on every nth problem only")
    parser.add_argument("--draw", choices=["all", "some", "none"], default="some", help="completions (see above)")
    parser.add_argument("--batch-size", type=int, default=100, help="sequences compared at a time")
    parser.add_argument("--windows", type=int, nargs="+", default=[4, 8, 16, 32], help="of `last N tokens`")
    main(parser.parse_args())
