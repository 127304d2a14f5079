"""The layer adapter of InRa, inference-time realignment, of "Flexible Realignment of Language Models"
(https://arxiv.org/abs/2506.12704): a stock decoder of L layers becomes one of L + n.

Here are the identity initialisation (output projections set to zero; Table 4 compares it with a random one), the
expanded configuration, and what is noted beside the checkpoint on disk.
"""

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict, FiniteFloat, PositiveInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from transformers import PreTrainedConfig, PreTrainedModel

from realign_pipes.errors import InputError
from realign_pipes.models.trust import CheckpointError

CONFIG_NAME = "inra_config.json"


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class InRaConfig:
    """Which layers of an expanded checkpoint are the adapter, and whose checkpoint it was."""

    num_adapter_layers: PositiveInt = 1
    placement: Literal["bottom", "top"] = "bottom"
    """Below layer 0 (the paper), or above the last layer (its ablation, Table 3)."""
    base_fingerprint: str | None = None
    """`fingerprint_model` of the checkpoint that was expanded; None if unknown."""
    default_alpha: FiniteFloat | None = None
    """The alpha of a request that names none, where the model is served; None: 1."""

    def save(self, folder: Path) -> None:
        """Write inra_config.json into a checkpoint folder."""
        noted = {name: value for name, value in asdict(self).items() if name != "default_alpha" or value is not None}
        (folder / CONFIG_NAME).write_text(json.dumps(noted, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "InRaConfig":
        """That of a checkpoint folder. One without it (the authors' released form) has one adapter layer below.

        CheckpointError if it is damaged.
        """
        path = folder / CONFIG_NAME
        try:
            return TypeAdapter(cls).validate_json(path.read_bytes()) if path.exists() else cls()
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "JSON"
            raise CheckpointError(f"{path} is damaged: {where}: {first['msg']}") from error


def expanded_config(base: PreTrainedConfig, inra: InRaConfig) -> PreTrainedConfig:
    """The stock configuration with the adapter's layers: L + n, every per-layer list extended by its own first entry
    (or its last one, for an adapter on top)."""
    layers = base.num_hidden_layers
    config = copy.deepcopy(base)
    for name, value in _per_layer_lists(base).items():
        adapter = (value[:1] if inra.placement == "bottom" else value[-1:]) * inra.num_adapter_layers
        setattr(config, name, adapter + value if inra.placement == "bottom" else value + adapter)
    config.num_hidden_layers = layers + inra.num_adapter_layers
    return config


def base_config(expanded: PreTrainedConfig, inra: InRaConfig) -> PreTrainedConfig:
    """The stock configuration without the adapter's layers: what was expanded."""
    layers = expanded.num_hidden_layers - inra.num_adapter_layers
    if layers < 1:
        raise InputError(f"a model of {expanded.num_hidden_layers} layers has no {inra.num_adapter_layers} to spare")
    kept = slice(inra.num_adapter_layers, None) if inra.placement == "bottom" else slice(0, layers)
    config = copy.deepcopy(expanded)
    for name, value in _per_layer_lists(expanded).items():
        setattr(config, name, value[kept])
    config.num_hidden_layers = layers
    return config


def _per_layer_lists(config: PreTrainedConfig) -> dict[str, list[Any]]:
    """Attributes with one entry per layer (`layer_types`, and any others that an architecture has)."""
    layers = config.num_hidden_layers
    return {name: value for name, value in vars(config).items() if isinstance(value, list) and len(value) == layers}


def decoder_layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The stack of decoder layers. ValueError, naming the architecture, if the model has none."""
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, torch.nn.ModuleList) or len(layers) != model.config.num_hidden_layers:
        raise InputError(
            f"{type(model).__name__} is not supported: its decoder has no stack `layers` of decoder layers."
        )
    return layers


def zero_output_projections(layer: torch.nn.Module, architecture: str) -> None:
    """Make a decoder layer the identity: set what its attention and its MLP add to the hidden states to zero.

    ValueError, naming the `architecture`, for a layer without `self_attn.o_proj` and `mlp.down_proj`.
    """
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        try:
            projection = layer.get_submodule(name)
        except AttributeError as error:
            raise InputError(f"{architecture} is not supported: its layers have no {name}.") from error
        for parameter in projection.parameters():
            torch.nn.init.zeros_(parameter)


def set_config(model: PreTrainedModel, config: Any) -> None:
    """Give the model and every part of it that shares the model's configuration the new one."""
    old = model.config
    for module in model.modules():
        if vars(module).get("config") is old:
            module.config = config
