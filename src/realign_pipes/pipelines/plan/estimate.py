"""What a run will take, by arithmetic: tokens, memory on the device, disk and hours of each stage. Sizes are in bytes.

Nothing is loaded: a model's parameters are counted on torch's meta device, from its config.json. Two factors that do
not follow from shapes are measured ones, and say so.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from realign_pipes.paper.expansion import decoder_layers

GIB = 2**30
FLOAT32 = 4
TRAINED = 4
"""Numbers in the weights' dtype for each trained parameter: weight, gradient, and AdamW's two moments."""
SAVED = 3
"""Of these in a training state: the weight and the moments."""
STATES = 2
"""Training states on disk at the peak: the next is written before the only one that is kept is removed."""
SAMPLER_COPIES = 4
"""Tensors [rows, vocab] in float32 while a token is drawn: logits, their sorted values and order, probabilities."""
LOSS_COPIES = 6
"""Tensors [chunk, vocab] in float32 in the loss: logits of the student and both teachers, their mixture, the student's
probabilities, the gradient."""
DATASET_BYTES = 8
"""Of a token in a data set: four of its id, about four of its text."""
ROW_BYTES = 700
"""Of a row in a data set besides: ids, question, answer, tags, metadata (measured on the demo)."""
PARQUET_BYTES = 1.0
"""Of a token in a Parquet file of generations: its compressed text (measured on the demo: 0.9)."""
LINE_BYTES = 7
"""Of a token in a work file of completions: its id as JSON."""
REPORT_BYTES = 5_600_000
"""The stage reporting: nearly all of it Plotly's script in the report."""
VLLM_SHARE = 0.9
"""Of the device's memory, which vLLM takes in any case: what is left of it by the weights is for the KV cache."""


@dataclass(frozen=True)
class Model:
    """A model's shape."""

    parameters: int
    layer_parameters: int
    """Of one decoder layer."""
    layers: int
    hidden: int
    intermediate: int
    vocab: int
    queries: int
    """Width of the queries: heads times head_dim."""
    keys: int
    """Width of the keys, and of the values: key-value heads times head_dim."""
    width: int
    """Bytes of a weight as it is saved and served."""
    positions: int | None

    @classmethod
    def read(cls, config: Path) -> "Model":
        """The shape in a config.json of Transformers. ValueError, KeyError, … from the libraries for anything else."""
        about = AutoConfig.for_model(**json.loads(config.read_text(encoding="utf-8")))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(about, trust_remote_code=False)
        layers = decoder_layers(model)
        head_dim = getattr(about, "head_dim", None) or about.hidden_size // about.num_attention_heads
        return cls(
            parameters=sum(p.numel() for p in model.parameters()),
            layer_parameters=sum(p.numel() for p in layers[0].parameters()),
            layers=len(layers),
            hidden=about.hidden_size,
            intermediate=about.intermediate_size,
            vocab=about.vocab_size,
            queries=about.num_attention_heads * head_dim,
            keys=about.num_key_value_heads * head_dim,
            width=(about.dtype or torch.float32).itemsize,
            positions=getattr(about, "max_position_embeddings", None),
        )

    @property
    def weights(self) -> int:
        """parameters x width."""
        return self.parameters * self.width

    @property
    def kv_token(self) -> int:
        """Of a token in the KV cache of one stream: 2 (keys and values) x layers x keys x width."""
        return 2 * self.layers * self.keys * self.width


def decoding(models: Sequence[Model], rows: int, positions: int, *, streams: int = 1, extra_weights: int = 0) -> int:
    """Memory to decode `rows` completions together with Transformers.

    The weights; the KV cache when every row has all its `positions` (prompt and completion): rows x positions x
    kv_token x streams, of each model; SAMPLER_COPIES x rows x vocab x 4. Two models (DeRa) have a stream each, so
    `streams` is that of one model (InRa: 2).
    """
    weights = sum(model.weights for model in models) + extra_weights
    cache = sum(kv_cache(model, rows, positions, streams) for model in models)
    return weights + cache + SAMPLER_COPIES * rows * max(model.vocab for model in models) * FLOAT32


def kv_cache(model: Model, rows: int, positions: int, streams: int = 1) -> int:
    """rows x positions x streams x kv_token."""
    return rows * positions * streams * model.kv_token


def forward(model: Model, rows: int, positions: int) -> int:
    """Memory of a forward pass without gradients and without logits: weights, and one layer's activations."""
    return model.weights + rows * positions * layer_values(model) * model.width


def layer_values(model: Model) -> int:
    """Values that a decoder layer keeps of each token for its gradient, with fused attention.

    Inputs of both norms and of both residual additions and the attention's projections: 5 x hidden; queries and the
    attention's result: 2 x queries; keys and values: 2 x keys; gate, its activation, up and their product: 4 x
    intermediate.
    """
    return 5 * model.hidden + 2 * model.queries + 2 * model.keys + 4 * model.intermediate


def training(
    model: Model,
    *,
    trained: int,
    layers_trained_through: int,
    rows: int,
    positions: int,
    checkpointing: bool,
    chunk_tokens: int,
    trained_width: int = FLOAT32,
    frozen_width: int = FLOAT32,
    teachers: int = 0,
) -> int:
    """Memory of a training, on CUDA under autocast to bfloat16 if the model is saved so.

    The frozen parameters x `frozen_width`, the `trained` x TRAINED x `trained_width`, autocast's copy of the weights
    where the model's width is 2;
    activations of `rows` x `positions` tokens; LOSS_COPIES x chunk_tokens x vocab x 4; and what the `teachers` hold.
    Activations are layer_values of each layer that gradients pass (`layers_trained_through`); with checkpointing the
    input of each, and layer_values of one.
    """
    copy = model.weights if model.width < FLOAT32 else 0
    values = layers_trained_through * layer_values(model)
    if checkpointing:
        values = layers_trained_through * model.hidden + layer_values(model)
    activations = rows * positions * values * model.width
    loss = LOSS_COPIES * min(chunk_tokens, rows * positions) * model.vocab * FLOAT32
    weights = (model.parameters - trained) * frozen_width + trained * TRAINED * trained_width
    return weights + copy + activations + loss + teachers


def training_states(trained: int, steps: int, save_steps: int, width: int = FLOAT32) -> int:
    """Disk of the states of one training at its peak: at most STATES of `trained` x SAVED x width.

    Frozen weights are in none.
    """
    return min(STATES, math.ceil(steps / save_steps)) * trained * SAVED * width


def lora_parameters(model: Model, rank: int) -> int:
    """Of LoRA on all linear layers of the body: rank x (inputs + outputs) of q, k, v, o, gate, up and down."""
    attention = 2 * (model.hidden + model.queries) + 2 * (model.hidden + model.keys)
    return model.layers * rank * (attention + 3 * (model.hidden + model.intermediate))


def teacher_cache(model: Model, tokens: float, width: int) -> float:
    """Disk of a teacher cache: (tokens + vocab) x hidden x width, of the completions' states and of the head."""
    return (tokens + model.vocab) * model.hidden * width


def rows_that_fit(model: Model, memory: float, positions: int, *, streams: int = 1, weights: int) -> int:
    """How many rows `decoding` has room for in `memory`; 0 or less if not even the weights fit."""
    row = kv_cache(model, 1, positions, streams) + SAMPLER_COPIES * model.vocab * FLOAT32
    return math.floor((memory - weights) / row)
