"""Training InRa's layer adapter: SFT on short solutions, DPO on preference pairs, or TrRa's objective.

All three train the expanded model with everything but the adapter frozen. `kedro run --pipeline inra` runs it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from realign_pipes.parameters import InRa, Teachers
from realign_pipes.realignment.checkpoints import (
    check_checkpoint,
    fingerprint_model,
    load_tokenizer,
    read_config,
)
from realign_pipes.realignment.inra.modeling_inra import InRaForCausalLM
from realign_pipes.realignment.model_card import checkpoint_name
from realign_pipes.realignment.teachers import FusedTeachers
from realign_pipes.realignment.training import (
    in_training_order,
    student_device,
    train,
    trainer_arguments,
    training_state,
)
from realign_pipes.realignment.trra import finish_checkpoint, train_trra
from realign_pipes.resume import fingerprint, open_work

disable_progress_bars()  # TRL maps over its data; a bar for each map would bury the bar of the training


def make_adapter(
    reference: Path,
    aligned: Path,
    *,
    parameters: InRa,
    teachers: Teachers,
    short_solutions: Dataset,
    preference_pairs: Dataset,
    calibration_set: Dataset,
    teacher_cache: Path,
    work: Path,
) -> Path:
    """The finished InRa checkpoint folder, trained now or found finished in `work`.

    Of the data, only what `parameters.method` learns from is read. A training that was interrupted goes on from its
    last saved step.
    """
    check_checkpoint(reference)
    tokenizer = load_tokenizer(reference)
    settings = parameters.model_dump(exclude={"lora", "dpo", "trra"})
    if parameters.adapter == "lora":
        settings["lora"] = parameters.lora.model_dump()
    if parameters.method == "trra":
        fused = FusedTeachers(reference, aligned, calibration_set, teachers=teachers, teacher_cache=teacher_cache)
        fingerprint_of_reference = fused.fingerprint(reference)
    else:
        fingerprint_of_reference = fingerprint_model(reference)
    metadata: dict[str, Any] = {
        "method": f"InRa ({parameters.method})",
        "reference": {"name": checkpoint_name(reference), "fingerprint": fingerprint_of_reference},
    }
    if parameters.method == "trra":
        metadata["aligned"] = {"name": checkpoint_name(aligned), "fingerprint": fused.fingerprint(aligned)}
        metadata["data_fingerprint"] = fused.data_fingerprint
        settings["trra"] = parameters.trra.model_dump()
        settings["teachers"] = teachers.model_dump(include={"mode", "dtype"})
    elif parameters.method == "dpo":
        metadata["data_fingerprint"] = _fingerprint_columns(preference_pairs)
        settings["dpo"] = parameters.dpo.model_dump()
    else:
        metadata["data_fingerprint"] = _fingerprint_columns(short_solutions)
    metadata["parameters"] = settings
    with PartialState().main_process_first():
        work = open_work(work, metadata)
    finished, folder = work / "checkpoint", training_state(work)
    if not finished.exists():
        model, _ = _fresh_model(reference, parameters, student_device())
        if parameters.method == "trra":
            state = train_trra(
                model.expanded,
                fused.teacher(aligned, work / "aligned_cache"),
                parameters.trra.alpha,
                fused.examples,
                training=parameters,
                distillation=parameters.trra,
                vocab_size=len(tokenizer),
                work=folder,
                description="training the adapter (TrRa)",
            )
        elif parameters.method == "dpo":
            state = train_dpo(model, preference_pairs, tokenizer, parameters, folder)
        else:
            state = train_sft(model, short_solutions, tokenizer, parameters, folder)
        if PartialState().is_main_process:
            model, save = _fresh_model(reference, parameters, torch.device("cpu"))
            model.expanded.load_state_dict(state)
            finish_checkpoint(
                finished,
                reference,
                save,
                title="inra",
                introduction=_introduction(metadata),
                tags=["inra"],
                metadata=metadata,
            )
        PartialState().wait_for_everyone()
    return finished


def train_sft(
    model: InRaForCausalLM, examples: Dataset, tokenizer: PreTrainedTokenizerFast, parameters: InRa, folder: Path
) -> dict[str, torch.Tensor]:
    """Minimise the cross-entropy of `completion_ids` after `prompt_ids` in stream A. TRL's SFTTrainer.

    Returns the expanded model's trained state dict, as `train` does.
    """
    rows = [
        {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}
        for prompt, completion in zip(examples["prompt_ids"], examples["completion_ids"], strict=True)
    ]
    arguments = SFTConfig(
        **trainer_arguments(parameters, folder),
        max_length=None,
    )
    trainer = SFTTrainer(
        model=model.expanded,
        args=arguments,
        train_dataset=in_training_order(Dataset.from_list(rows), parameters),
        processing_class=tokenizer,
    )
    return train(trainer, "training the adapter (SFT)")


class _TokenisedDPOTrainer(DPOTrainer):
    """TRL's trainer for pairs whose ids we have: `prompt_ids`, `chosen_ids` and `rejected_ids`."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        # TRL would tokenise prompt and completion together and learn on other ids than the model generates.
        return dataset


def train_dpo(
    model: InRaForCausalLM, pairs: Dataset, tokenizer: PreTrainedTokenizerFast, parameters: InRa, folder: Path
) -> dict[str, torch.Tensor]:
    """Direct preference optimisation of stream A against stream R, which shares all its weights. TRL's DPOTrainer.

    Returns the expanded model's trained state dict, as `train` does.
    """
    arguments = DPOConfig(
        **trainer_arguments(parameters, folder),
        beta=parameters.dpo.beta,
        max_length=None,
    )
    trainer = _TokenisedDPOTrainer(
        model=model.expanded,
        ref_model=model.base_model_view(),
        args=arguments,
        train_dataset=in_training_order(pairs.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"]), parameters),
        processing_class=tokenizer,
    )
    return train(trainer, "training the adapter (DPO)")


def _fresh_model(
    reference: Path, parameters: InRa, device: torch.device
) -> tuple[InRaForCausalLM, Callable[[Path], None]]:
    """The model before its training, on `device` in float32, and what saves it to a folder in the reference's dtype."""
    torch.manual_seed(parameters.seed)  # of a random initialisation, and of LoRA's: the same in every process
    model = InRaForCausalLM.from_base(reference, parameters.num_adapter_layers, parameters.init, parameters.placement)
    model.to(device=device, dtype=torch.float32)
    merge = _only_adapter(model, parameters)

    def save(folder: Path) -> None:
        merge()
        model.to(dtype=read_config(reference).dtype or torch.float32)
        model.save_pretrained(folder)

    return model, save


def _only_adapter(model: InRaForCausalLM, parameters: InRa) -> Callable[[], object]:
    """Freeze all but the adapter, or but LoRA matrices on it; what it returns makes plain layers of them again."""
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
    """What the model card says first."""
    parameters = metadata["parameters"]
    layers = parameters["num_adapter_layers"]
    return (
        f"{metadata['reference']['name']} with a layer adapter of {layers} {'layer' if layers == 1 else 'layers'} at "
        f'the {parameters["placement"]} (inference-time realignment, "Flexible Realignment of Language Models", '
        "arXiv 2506.12704). Loaded with stock tools it is stream A, the aligned behaviour. With "
        "`realign_pipes.realignment.inra.InRaForCausalLM` alpha is an argument of `generate`: 0 is the reference, 1 "
        "stream A, and any other number mixes or extrapolates them."
    )
