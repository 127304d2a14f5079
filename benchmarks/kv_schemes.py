"""Ways to store InRa's stream A in less, and how far each is from exact InRa: for inra_kv_cache.py."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers.cache_utils import DynamicLayer

from realign_pipes.generation.graded import Question, sample_and_grade
from realign_pipes.generation.parameters import Sampling
from realign_pipes.generation.transformers_engine import TransformersEngine
from realign_pipes.models.fingerprint import fingerprint
from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.paper.streams import StreamsCache
from realign_pipes.tasks.completion import ThinkingTags

WRITTEN_AT = (-0.5, 0.0, 0.5, 1.0)
"""The alphas of the completions along which the streams are compared."""
ALPHAS = (-0.5, 0.5, 1.0)
"""Where stream A counts. At 1 it has all the weight, and its cache is the only one that does."""
RESAMPLES = 10_000
SCALE_BYTES = 2
"""A scale is a bfloat16."""
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


def rounded(states: torch.Tensor, bits: int) -> torch.Tensor:
    """What codes of so many bits and a scale for each token and head give back."""
    limit = 2 ** (bits - 1) - 1
    scale = (states.float().abs().amax(-1, keepdim=True) / limit).bfloat16().float().clamp(min=1e-30)
    return ((states / scale).round().clamp(-limit, limit) * scale).to(states.dtype)


class Bits(Scheme):
    """A scale for each token and head; of stream A itself, or of its difference from stream R."""

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

    def _new_cache(self) -> StreamsCache:
        cache = super()._new_cache()
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

    def fit(self, calibration: Any, size: int) -> "Fitted":
        """On the exact model's completions of other problems."""
        places = [compare_streams(self.model, self.pairs(calibration, alpha), alpha, size) for alpha in ALPHAS]
        return Fitted.to(places, self.model.dtype)

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


# -- which are measured ------------------------------------------------------------------------------------------
def schemes_of(shape: Shape, fitted: Fitted, windows: Sequence[int]) -> list[Scheme]:
    cuts = sorted({max(1, round(shape.layers * share)) for share in (0.25, 0.5, 0.75)} - {shape.layers})
    layers = range(shape.layers)
    return [
        Scheme("exact"),
        *(Bits(bits, difference=False) for bits in (8, 6, 5, 4, 3, 2)),
        *(Bits(bits, difference=True) for bits in (8, 4, 3, 2)),
        *(ZeroPoint(bits) for bits in (4, 3)),
        *(PerChannel(bits, fitted) for bits in (8, 4)),
        *(LowRank(share, shape, fitted) for share in (0.75, 0.5, 0.25, 0.125)),
        *(SharedLayers(f"R's from layer {k} up", layers[k:]) for k in reversed(cuts)),
        *(SharedLayers(f"R's below layer {k}", layers[:k]) for k in cuts),
        SharedLayers("R's in all layers", layers),
        *(LastTokens(window) for window in windows),
    ]


def chosen(rows: Sequence[dict[str, Any]], wanted: Sequence[str]) -> set[str]:
    """Names of those that draw completions: exact and the `wanted`, where `all` are all, and `some` are of every
    family the largest within the target. `rows` are those of `compare`."""
    names = {"exact", *wanted} - {"all", "some"}
    names |= {row["scheme"] for row in rows if "all" in wanted}
    for family in {row["family"] for row in rows if "some" in wanted and row["simulated"]}:
        within = [row for row in rows if row["family"] == family and row["ratio_16"] <= TARGET]
        if within:
            names.add(max(within, key=lambda row: row["ratio_16"])["scheme"])
    return names


def compare(
    completions: "Completions", problems: Any, calibration: Any, every: int, windows: Sequence[int], size: int
) -> dict[str, Any]:
    """How far the streams differ, and each scheme's bytes and divergence from exact InRa, on every nth problem."""
    model = completions.model
    head = getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads
    shape = Shape(model.config.num_hidden_layers, model.inra.num_adapter_layers, model.config.num_key_value_heads, head,
                  8 * model.dtype.itemsize)  # fmt: skip
    pairs = {alpha: completions.pairs(problems, alpha) for alpha in WRITTEN_AT}
    figures = {alpha: {place: moments.figures() for place, moments in compare_streams(model, pairs[alpha], alpha, size)
                       .items()} for alpha in WRITTEN_AT}  # fmt: skip
    streams = [
        {"layer": place if place < shape.layers else None, "which": which,
         **{f"{alpha:g}": figures[alpha][place, which] for alpha in WRITTEN_AT}}
        for place, which in figures[WRITTEN_AT[0]]
    ]  # fmt: skip
    schemes = schemes_of(shape, completions.fit(calibration, size), windows)
    length = float(np.mean([len(prompt) + len(completion) for alpha in ALPHAS for prompt, completion in pairs[alpha]]))
    kls = {alpha: divergences(model, schemes, pairs[alpha][::every], alpha, size) for alpha in ALPHAS}
    base_bytes = 2 * shape.layers * shape.numbers * shape.bits / 8
    rows = []
    for scheme in schemes:
        ratio = scheme.ratio(shape, shape.bits, length)
        rows.append({"scheme": scheme.name, "family": scheme.family, "simulated": scheme.simulated,
                     "ratio_16": scheme.ratio(shape, NARROW, length), "ratio": ratio, "bytes": ratio * base_bytes,
                     "alphas": {f"{alpha:g}": kls[alpha][scheme.name] for alpha in ALPHAS}})  # fmt: skip
    return {
        "shape": vars(shape), "dtype": str(model.dtype).removeprefix("torch."), "problems": len(problems),
        "compared": len(pairs[1.0][::every]), "length": length, "streams": streams, "schemes": rows,
    }  # fmt: skip
