"""The difference of two models' weights as a LoRA adapter: one rung of a ladder that stock servers load, untrained.

    adapted, held = truncated_difference(reference, aligned, rank=64)
    save_rung(adapted, folder, alpha=1.5)

Each linear layer's difference W_aligned - W_ref is cut to its `rank` largest singular values (Eckart and Young: no
matrix of that rank is nearer in the Frobenius norm), B A = U_r S_r V_r^T. With LoRA's scale as alpha, the layer then is
W_ref + alpha B A: `merging.merge` of the linear layers, up to what was cut. LoRA has no place for what else differs.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from realign_pipes.errors import InputError
from realign_pipes.paper.merging import check_mergeable

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Held:
    """How much of the difference of two models' weights an adapter holds.

    The shares are those of the squared Frobenius norm, and add up to 1.
    """

    norm: float
    """The Frobenius norm of the whole difference."""
    kept: float
    """In the adapter."""
    cut: float
    """Of linear layers, beyond the rank."""
    left_out: dict[str, float]
    """What LoRA cannot hold: biases, embeddings, norms, output head, others."""

    @property
    def relative_error(self) -> float:
        """||D - D_r|| / ||D|| over all linear layers, in the Frobenius norm; at every alpha the same."""
        return math.sqrt(self.cut / (self.kept + self.cut)) if self.kept + self.cut else 0.0

    def error(self, alpha: float) -> float:
        """||alpha D - alpha D_r|| over all linear layers."""
        return abs(alpha) * self.norm * math.sqrt(self.cut)


def linear_layers(model: PreTrainedModel) -> dict[str, torch.nn.Linear]:
    """The linear layers of the body, by name: all but the output head, which PEFT and servers leave alone too."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def lora_size(model: PreTrainedModel, rank: int) -> int:
    """Parameters of an adapter of `rank` on all linear layers: rank x (inputs + outputs) of each."""
    return sum(rank * (layer.in_features + layer.out_features) for layer in linear_layers(model).values())


def truncated_difference(
    reference: PreTrainedModel,
    aligned: PreTrainedModel,
    rank: int,
    *,
    device: torch.device | str = "cpu",
    after_layer: Callable[[], object] = lambda: None,
) -> tuple[PeftModel, Held]:
    """`reference` with LoRA matrices that hold the difference to `aligned` cut to `rank`, and how much that is.

    The matrices are added to `reference` itself. They have its dtype, the scale 1, and equal norms, A [rank, inputs]
    and B [outputs, rank]; a layer of a smaller rank has zeros in the rows that it does not need. Layer after layer is
    decomposed on `device`, in float32 or the weights' own dtype if that is wider; `after_layer` is called after each.

    InputError for models whose weights do not fit together, for those without linear layers, as GPT-2, which has
    convolutions in their place, and for two models that are the same. ValueError for a
    rank below 1.
    """
    if rank < 1:
        raise ValueError(f"the rank must be at least 1, not {rank}.")
    check_mergeable(reference, aligned)
    layers, theirs = linear_layers(reference), linear_layers(aligned)
    if not layers:
        raise InputError(f"a {type(reference).__name__} has no linear layers (torch.nn.Linear) below its output head, "
                         "and only of these a difference can be held in LoRA matrices.")  # fmt: skip
    left_out = _left_out(reference, aligned, {id(layer.weight) for layer in layers.values()})
    adapted = get_peft_model(
        reference,
        LoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules=sorted({name.rpartition(".")[2] for name in layers}),
            task_type="CAUSAL_LM",
        ),
        autocast_adapter_dtype=False,
    )
    kept = cut = 0.0
    for name, theirs_here in theirs.items():
        layer = reference.get_submodule(name)
        assert isinstance(layer, LoraLayer)  # noqa: S101  the targets are these layers' names
        ours = layers[name].weight  # of the linear layer that LoRA's has inside
        wide = torch.promote_types(ours.dtype, torch.float32)
        difference = theirs_here.weight.detach().to(device, wide) - ours.detach().to(device, wide)
        u, s, vh = torch.linalg.svd(difference, full_matrices=False)
        squares, most = s.double().square(), min(rank, len(s))
        kept, cut = kept + squares[:most].sum().item(), cut + squares[most:].sum().item()
        root = s[:most].sqrt()
        with torch.no_grad():
            for matrices, values in ((layer.lora_A, root[:, None] * vh[:most]), (layer.lora_B, u[:, :most] * root)):
                weight = matrices.get_parameter("default.weight")
                weight.zero_()
                weight[: values.shape[0], : values.shape[1]] = values.to(weight)
        after_layer()
    whole = kept + cut + sum(left_out.values())
    if whole == 0:
        raise InputError("the reference and the aligned model have the same weights: there is no difference to hold.")
    return adapted, Held(
        norm=math.sqrt(whole),
        kept=kept / whole,
        cut=cut / whole,
        left_out={name: squares / whole for name, squares in left_out.items()},
    )


def save_rung(adapted: PeftModel, folder: Path, alpha: float, base: tuple[str, str | None] | None = None) -> None:
    """Write the adapter with LoRA's scale as `alpha`. `base` names the checkpoint and revision that it is for."""
    config = adapted.peft_config["default"]
    unscaled, config.lora_alpha = config.lora_alpha, config.lora_alpha * alpha
    if base is not None:
        config.base_model_name_or_path, config.revision = base
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    config.lora_alpha = unscaled


def copy_scaled(adapter: Path, folder: Path, alpha: float) -> None:
    """Copy an adapter's folder, with its matrices' product scaled by `alpha`: a server does not scale."""
    copytree(adapter, folder)
    file = folder / ADAPTER_CONFIG
    config = json.loads(file.read_text())
    # An adapter adds lora_alpha / r times the product of its matrices.
    file.write_text(json.dumps({**config, "lora_alpha": config["lora_alpha"] * alpha}))


def merge_scaled(model: PreTrainedModel, alpha: float) -> None:
    """Add alpha times the matrices of the model's LoRA layers to their weights, which are then as fast as any."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for adapter in layer.active_adapters:
                layer.set_scale(adapter, alpha)
            layer.merge()


def _left_out(reference: PreTrainedModel, aligned: PreTrainedModel, held: set[int]) -> dict[str, float]:
    """Squared norms of the differences of all other weights, by what they are."""
    theirs = aligned.state_dict()
    head = reference.get_output_embeddings()
    places = {id(reference.get_input_embeddings().weight): "embeddings"}
    if head is not None:
        places.setdefault(id(head.weight), "output head")  # tied heads are the embeddings
    found: dict[str, float] = {}
    for name, ours in reference.named_parameters():
        if id(ours) in held:
            continue
        kind = places.get(id(ours)) or ("biases" if name.endswith(".bias") else "norms" if ours.ndim == 1 else "others")
        difference = theirs[name].double() - ours.detach().double()
        found[kind] = found.get(kind, 0.0) + difference.square().sum().item()
    return dict(sorted(found.items()))
