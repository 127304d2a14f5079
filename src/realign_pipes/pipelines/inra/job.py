"""The job of the stage inra: train the layer adapter by SFT on replies, DPO on pairs, both, or TrRa's objective.

All train the expanded model with everything but the adapter frozen.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from pydantic import BaseModel
from safetensors.torch import load_file, save_file

from realign_pipes.errors import InputError
from realign_pipes.models.card import checkpoint_name, describe_checkpoint
from realign_pipes.models.fingerprint import fingerprint, fingerprint_model
from realign_pipes.models.load import load_tokenizer
from realign_pipes.models.trust import check_checkpoint, read_config
from realign_pipes.paper.adapters import dpo_trainer, sft_trainer
from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.pipelines.inra.parameters import InRa
from realign_pipes.pipelines.trra.job import train_trra
from realign_pipes.runtime.launch import AbsolutePath, Job, run_as_process
from realign_pipes.runtime.tracking import NOT_TRACKED, Tracking
from realign_pipes.runtime.training import (
    CURVES,
    FIRST,
    in_training_order,
    student_device,
    train,
    trainer_arguments,
    training_state,
    uses_bf16,
)
from realign_pipes.runtime.work import do_once
from realign_pipes.teachers.fused import FusedTeachers
from realign_pipes.teachers.parameters import Teachers

WEIGHTS = "adapter.safetensors"
"""The trained weights after the SFT of method sft_dpo, in the precision in which they are trained."""

TrainFunction = Callable[[InRaForCausalLM, Path], dict[str, torch.Tensor]]
"""Trains the adapter, with its state in the folder; the expanded model's state dict after that."""


class Adapter(BaseModel):
    """What the stage makes."""

    checkpoint: Path
    """The InRa checkpoint: the reference expanded by the trained layers."""


class TrainAdapter(Job[Adapter]):
    """Train the layer adapter, or find it finished in `work`. Only the data that `method` uses is read."""

    parameters: InRa
    teachers: Teachers
    reference: AbsolutePath
    aligned: AbsolutePath
    short_solutions: AbsolutePath
    """Columns `id`, `prompt_ids` and `completion_ids`."""
    preference_pairs: AbsolutePath
    """Columns `id`, `prompt_ids`, `chosen_ids` and `rejected_ids`."""
    calibration_set: AbsolutePath
    teacher_cache: AbsolutePath
    chat_template: AbsolutePath | None = None
    """A file with the chat template that the checkpoint gets; None: the reference's own."""
    attn_implementation: str | None = None
    work: AbsolutePath
    tracking: Tracking = NOT_TRACKED

    def run(self) -> Adapter:
        """The finished checkpoint. A training that was interrupted resumes from its last saved step."""
        check_checkpoint(self.reference)
        parameters = self.parameters
        train_it, facts, settings = {
            "trra": self._from_teachers,
            "sft": self._from_replies,
            "dpo": self._from_pairs,
            "sft_dpo": self._from_replies_and_pairs,
        }[parameters.method]()
        if parameters.adapter == "lora":
            settings["lora"] = parameters.lora.model_dump()
        metadata = {
            "method": f"InRa ({parameters.method})",
            "parameters": {**parameters.model_dump(exclude={"lora", "dpo", "trra", "plausibility"}), **settings},
            "reference": {"name": checkpoint_name(self.reference), "fingerprint": fingerprint_model(self.reference)},
            **facts,
        }
        if self.attn_implementation is not None:
            metadata["attn_implementation"] = self.attn_implementation
        if self.chat_template is not None:
            metadata["chat_template"] = fingerprint(self.chat_template.read_text(encoding="utf-8"))

        def do(folder: Path) -> Callable[[Path], None]:
            first = self._train_first() if parameters.method == "sft_dpo" else None
            model = self._model()
            if first is not None:
                _load_trained(model, load_file(first / WEIGHTS))
            state = train_it(model, folder)

            def write(checkpoint: Path) -> None:
                trained, save = _fresh_model(self.reference, parameters, torch.device("cpu"))
                _load_trained(trained, {name: state[name] for name in _trained_names(trained)})
                save(checkpoint)
                describe_checkpoint(
                    checkpoint,
                    self.reference,
                    folder / CURVES,
                    title="inra",
                    introduction=_introduction(metadata),
                    tags=["inra"],
                    metadata=metadata,
                    chat_template=self.chat_template,
                )
                if first is not None:
                    shutil.copytree(first / CURVES, checkpoint / FIRST / CURVES)

            return write

        return Adapter(checkpoint=do_once(self.work, "checkpoint", metadata, do))

    def _from_teachers(self) -> tuple[TrainFunction, dict[str, Any], dict[str, Any]]:
        """TrRa's objective: the training, and which models, data and parameters it uses."""
        parameters = self.parameters
        teachers = FusedTeachers(
            self.reference,
            self.aligned,
            Dataset.load_from_disk(str(self.calibration_set)),
            teachers=self.teachers,
            teacher_cache=self.teacher_cache,
            attn_implementation=self.attn_implementation,
        )

        def train_it(model: InRaForCausalLM, folder: Path) -> dict[str, torch.Tensor]:
            return train_trra(
                model.expanded,
                teachers.teacher(self.aligned, folder / "aligned_cache"),
                parameters.trra.alpha,
                teachers.examples,
                training=parameters,
                distillation=parameters.trra,
                plausibility=parameters.plausibility,
                vocab_size=len(teachers.tokenizer),
                folder=folder,
                description="training the adapter (TrRa)",
                tracking=self.tracking,
            )

        facts = {
            "aligned": {"name": checkpoint_name(self.aligned), "fingerprint": fingerprint_model(self.aligned)},
            "data_fingerprint": teachers.data_fingerprint,
        }
        settings = {
            "trra": parameters.trra.model_dump(),
            "plausibility": parameters.plausibility,
            "teachers": self.teachers.model_dump(include={"mode", "dtype"}),
        }
        return train_it, facts, settings

    def _from_replies(self) -> tuple[TrainFunction, dict[str, Any], dict[str, Any]]:
        """SFT: the training, and which data and parameters it uses."""
        examples = Dataset.load_from_disk(str(self.short_solutions))

        def train_it(model: InRaForCausalLM, folder: Path) -> dict[str, torch.Tensor]:
            return train_by_trl(model, examples, self.reference, self.parameters, folder, self.tracking)

        return train_it, {"data_fingerprint": _fingerprint_columns(examples)}, {}

    def _from_pairs(self) -> tuple[TrainFunction, dict[str, Any], dict[str, Any]]:
        """DPO, as `_from_replies`."""
        pairs = Dataset.load_from_disk(str(self.preference_pairs))
        if len(pairs) == 0:
            raise InputError("preference_pairs is empty, so inra.method cannot be "
                             f"{self.parameters.method}. Give pairs in data_prep.preference_pairs.")  # fmt: skip

        def train_it(model: InRaForCausalLM, folder: Path) -> dict[str, torch.Tensor]:
            return train_by_trl(model, pairs, self.reference, self.parameters.of_dpo(), folder, self.tracking)

        settings = {"dpo": self.parameters.dpo.model_dump()}
        return train_it, {"data_fingerprint": _fingerprint_columns(pairs)}, settings

    def _from_replies_and_pairs(self) -> tuple[TrainFunction, dict[str, Any], dict[str, Any]]:
        """SFT and then DPO, as `_from_replies`. The DPO begins with the weights of the SFT, and with its own optimizer.

        What DPO compares with is stream R, as it is where DPO is alone: alpha mixes with that one too.
        """
        _, sft_facts, _ = self._from_replies()
        train_it, dpo_facts, settings = self._from_pairs()
        facts = {f"{name}_data_fingerprint": of["data_fingerprint"]
                 for name, of in (("sft", sft_facts), ("dpo", dpo_facts))}  # fmt: skip
        return train_it, facts, settings

    def _train_first(self) -> Path:
        """The folder with the weights and curves of the SFT of method sft_dpo, trained now or found finished.

        It is beside `work`, where another DPO finds it too.
        """
        parameters = self.parameters.of_sft()
        train_it, facts, _ = self.model_copy(update={"parameters": parameters})._from_replies()
        unread = {"dpo", "trra", "plausibility"} | ({"lora"} if parameters.adapter == "full" else set())
        description = {
            "what": "SFT before DPO",
            "parameters": parameters.model_dump(exclude=unread),
            "reference": fingerprint_model(self.reference),
            "attn_implementation": self.attn_implementation,
            **facts,
        }

        def do(folder: Path) -> Callable[[Path], None]:
            model = self._model()
            names = _trained_names(model)
            state = train_it(model, folder)

            def write(result: Path) -> None:
                result.mkdir()
                save_file({name: state[name].cpu().contiguous() for name in names}, result / WEIGHTS)
                shutil.copytree(folder / CURVES, result / CURVES)

            return write

        return do_once(self.work.with_name(f"{self.work.name}_{FIRST}"), "trained", description, do)

    def _model(self) -> InRaForCausalLM:
        """The model before its training."""
        model, _ = _fresh_model(self.reference, self.parameters, student_device(), self.attn_implementation)
        _use_dtypes(model, self.reference, self.parameters)
        return model


def train_by_trl(
    model: InRaForCausalLM,
    examples: Dataset,
    reference: Path,
    parameters: InRa,
    folder: Path,
    tracking: Tracking = NOT_TRACKED,
) -> dict[str, torch.Tensor]:
    """Train stream A by SFT or DPO; the expanded model's state dict after that, as `runtime.training.train` gives it.

    DPO compares stream A with stream R, which shares all its weights.
    """
    tokenizer = load_tokenizer(reference)
    arguments = trainer_arguments(parameters, training_state(folder), tracking)
    ordered = in_training_order(examples, parameters)
    if parameters.method == "dpo":
        trainer = dpo_trainer(
            model.expanded,
            model.base_model_view(),
            ordered,
            tokenizer,
            parameters.dpo.beta,
            arguments,
            loss_type=parameters.dpo.loss_type,
            loss_weights=parameters.dpo.loss_weights,
        )
    else:
        arguments["padding_free"] = parameters.padding_free
        trainer = sft_trainer(model.expanded, ordered, tokenizer, arguments)
    return train(trainer, f"training the adapter ({parameters.method.upper()})")


def _fresh_model(
    reference: Path, parameters: InRa, device: torch.device, attn_implementation: str | None = None
) -> tuple[InRaForCausalLM, Callable[[Path], None]]:
    """The model before its training, on `device` in float32, and what saves it to a folder in the reference's dtype."""
    torch.manual_seed(parameters.seed)  # of a random initialisation, and of LoRA's: the same in every process
    model = InRaForCausalLM.from_base(
        reference,
        parameters.num_adapter_layers,
        parameters.init,
        parameters.placement,
        attn_implementation=attn_implementation,
    )
    model.to(device=device, dtype=torch.float32)
    merge = _only_adapter(model, parameters)

    def save(folder: Path) -> None:
        merge()
        model.to(dtype=read_config(reference).dtype or torch.float32)
        model.save_pretrained(folder)

    return model, save


def _trained_names(model: InRaForCausalLM) -> list[str]:
    """The names of the expanded model's weights that are trained."""
    return [name for name, weight in model.expanded.named_parameters() if weight.requires_grad]


def _load_trained(model: InRaForCausalLM, weights: dict[str, torch.Tensor]) -> None:
    """Give the trained weights their values, and leave all others. InputError unless they are exactly these."""
    if strange := set(weights) ^ set(_trained_names(model)):
        raise InputError(f"the adapter's weights do not fit the model's: {', '.join(sorted(strange)[:3])}. Delete the "
                         "work folder of the stage inra and run it again.")  # fmt: skip
    model.expanded.load_state_dict(weights, strict=False)


def _use_dtypes(model: InRaForCausalLM, reference: Path, parameters: InRa) -> None:
    """Give the adapter's weights `dtype` and the frozen ones `frozen_dtype`; LoRA's matrices stay in float32.

    InputError if the two differ in a training that does not autocast: a float32 layer cannot take bfloat16 states.
    """
    own = read_config(reference).dtype or torch.float32
    frozen, trained = (
        own if name == "auto" else getattr(torch, name) for name in (parameters.frozen_dtype, parameters.dtype)
    )
    if parameters.adapter == "lora":
        trained = torch.float32
    if frozen != trained and not uses_bf16(parameters):
        raise InputError(
            f"inra's trained weights are {trained} and its frozen ones {frozen}, which only meet under bf16. Set "
            "inra.bf16 to true, or inra.frozen_dtype and inra.dtype alike."
        )
    for weight in model.parameters():
        weight.data = weight.data.to(trained if weight.requires_grad else frozen)


def _only_adapter(model: InRaForCausalLM, parameters: InRa) -> Callable[[], object]:
    """Freeze all but the adapter (or LoRA matrices on it). Returns a function that merges these into plain layers."""
    model.requires_grad_(False)
    if parameters.adapter == "full":
        for layer in model.adapter_layers:
            layer.requires_grad_(True)
        return lambda: None
    adapters = {id(module) for layer in model.adapter_layers for module in layer.modules()}
    names = [
        name
        for name, module in model.expanded.named_modules()
        if id(module) in adapters and isinstance(module, torch.nn.Linear)
    ]
    config = LoraConfig(r=parameters.lora.rank, lora_alpha=parameters.lora.alpha, target_modules=names)
    return get_peft_model(model.expanded, config).merge_and_unload


def _fingerprint_columns(data: Dataset) -> str:
    """SHA-256 (hex) of all ids and token ids, in order."""
    return fingerprint([data["id"][:], *(data[name][:] for name in data.column_names if name.endswith("_ids"))])


def _introduction(metadata: dict[str, Any]) -> str:
    """The first paragraph of the model card."""
    parameters = metadata["parameters"]
    layers = parameters["num_adapter_layers"]
    return (
        f"{metadata['reference']['name']} with a layer adapter of {layers} {'layer' if layers == 1 else 'layers'} at "
        f'the {parameters["placement"]} (inference-time realignment, "Flexible Realignment of Language Models", '
        "arXiv 2506.12704). Loaded with stock tools it is stream A, the aligned behaviour. With "
        "`realign_pipes.paper.InRaForCausalLM` alpha is an argument of `generate`: 0 is the reference, 1 stream A, and "
        "any other number mixes or extrapolates them."
    )


if __name__ == "__main__":
    run_as_process(TrainAdapter)
