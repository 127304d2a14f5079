"""Checkpoint directories: checking, loading, comparing and fingerprinting them before any forward pass."""

import hashlib
import json
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from realign_pipes.resume import fingerprint

disable_progress_bar()  # a bar for each file of each model would bury the bars that matter


def is_adapter(path: Path) -> bool:
    """Whether `path` is a PEFT adapter: weights beside those of another checkpoint, its base."""
    return (path / "adapter_config.json").exists()


def check_checkpoint(path: Path) -> None:
    """Raise FileNotFoundError unless `path` is a checkpoint directory with a config and safetensors weights.

    It may be a PEFT adapter, whose base then has to be there.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder. Give a checkpoint directory as written by save_pretrained.")
    if is_adapter(path):
        base, revision = _base(path)
        if revision is None and not Path(base).is_dir():
            raise FileNotFoundError(
                f"{path} is an adapter for the checkpoint {base}, which is no folder in {Path.cwd()}. Put it there, or "
                "correct base_model_name_or_path in adapter_config.json."
            )
    elif not (path / "config.json").exists():
        raise FileNotFoundError(f"{path} has no config.json, so it is not a Hugging Face checkpoint directory.")
    if not any(path.glob("*.safetensors")):
        raise FileNotFoundError(f"{path} has no *.safetensors. Weights in other formats are not loaded: convert them "
                                "with model.save_pretrained of a recent Transformers.")  # fmt: skip


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The checkpoint's tokenizer, as its tokenizer.json has it. Raises FileNotFoundError if there is none, ValueError
    if there is no chat template.

    AutoTokenizer would replace parts of it by those of the architecture's own class (Transformers 5 does so for Qwen2).
    """
    if not (path / "tokenizer.json").exists():
        raise FileNotFoundError(f"{path} has no tokenizer.json: only fast tokenizers are supported.")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    if tokenizer.chat_template is None:
        raise ValueError(f"{path}: the tokenizer has no chat template, through which prompts must go.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a checkpoint's tokenizer files, as they are, into another checkpoint's folder."""
    for pattern in (
        "tokenizer*",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template*",
        "vocab.*",
        "merges.txt",
    ):
        for file in source.glob(pattern):
            shutil.copy2(file, target)


def _base(adapter: Path) -> tuple[str, str | None]:
    """The base of a PEFT adapter: a folder, or a repository of the hub and its revision."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    return config["base_model_name_or_path"], config["revision"]


def load_model(path: Path, *, device: torch.device, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """The checkpoint in eval mode on `device`; `dtype` "auto" keeps the one it was saved in.

    A PEFT adapter is loaded into its base, at the revision that it was trained for.
    """
    check_checkpoint(path)
    if is_adapter(path):
        base, revision = _base(path)
        model = AutoModelForCausalLM.from_pretrained(base, revision=revision, dtype=dtype, use_safetensors=True)
        model.load_adapter(str(path))
    else:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True)
    return model.to(device=device).eval()


def default_device() -> torch.device:
    """The accelerator that accelerate finds, else the CPU."""
    from accelerate import PartialState

    return PartialState().device


def fingerprint_model(path: Path) -> str:
    """SHA-256 (hex) over the configuration and the bytes of all weights of a checkpoint directory.

    For an adapter of the stage trra over its own, and the fingerprint of the reference beside which it was trained.
    """
    check_checkpoint(path)
    if is_adapter(path):
        config = json.loads((path / "adapter_config.json").read_text())
        made = json.loads((path / "realignment.json").read_text())
        config["base_model_name_or_path"] = made["reference"]["fingerprint"]
    else:
        config = AutoConfig.from_pretrained(path).to_dict()
    config.pop("_name_or_path", None)
    config.pop("transformers_version", None)
    weights = {}
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as stream:
            weights[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return fingerprint({"config": json.loads(json.dumps(config, default=str)), "weights": weights})


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 (hex) of the serialised tokenizer and its chat template."""
    return fingerprint({"tokenizer": tokenizer.backend_tokenizer.to_str(), "template": tokenizer.chat_template})


def check_same_tokenizer(
    reference: PreTrainedTokenizerFast, aligned: PreTrainedTokenizerFast, names: tuple[str, str]
) -> None:
    """Raise ValueError, naming the first difference, unless both map the same tokens to the same ids.

    Logits of two models can only be mixed id by id. The heads may be padded to different sizes; the tokenizers may
    not differ. The chat templates may: prompts are rendered with the reference's.
    """
    ours = {token_id: token for token, token_id in reference.get_vocab().items()}
    theirs = {token_id: token for token, token_id in aligned.get_vocab().items()}
    for token_id in sorted(ours.keys() | theirs.keys()):
        if ours.get(token_id) != theirs.get(token_id):
            raise ValueError(
                f"the tokenizers of {names[0]} and {names[1]} differ, so their logits cannot be mixed: id {token_id} "
                f"is {ours.get(token_id)!r} in the first and {theirs.get(token_id)!r} in the second "
                f"({len(ours)} and {len(theirs)} tokens)."
            )
    first, second = (json.loads(t.backend_tokenizer.to_str()) for t in (reference, aligned))
    for part in ("normalizer", "pre_tokenizer", "model"):
        if first[part] != second[part]:
            raise ValueError(f"the tokenizers of {names[0]} and {names[1]} have one vocabulary but split text "
                             f"differently: their {part} differs.")  # fmt: skip


def check_pair(reference: Path, aligned: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that two checkpoints share, after checking that their logits can be mixed.

    Reads configurations and tokenizers only. Raises FileNotFoundError for what is not a checkpoint, and ValueError for
    tokenizers that differ or a head with fewer rows than the tokenizer has tokens. Heads may be padded to different
    sizes.
    """
    for path in (reference, aligned):
        check_checkpoint(path)
    tokenizer = load_tokenizer(reference)
    check_same_tokenizer(tokenizer, load_tokenizer(aligned), (str(reference), str(aligned)))
    for path in (reference, aligned):
        rows = AutoConfig.from_pretrained(path).get_text_config().vocab_size
        if rows < len(tokenizer):
            raise ValueError(f"{path}: the head has {rows} rows, but the tokenizer {len(tokenizer)} tokens.")
        generation = path / "generation_config.json"
        if not generation.exists() or GenerationConfig.from_pretrained(path).eos_token_id is None:
            raise ValueError(f"{generation} names no eos_token_id, so that completions would never end.")
    return tokenizer
