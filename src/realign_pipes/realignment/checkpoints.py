"""Checkpoint directories: checking, loading, comparing and fingerprinting them before any forward pass."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from realign_pipes.resume import fingerprint

disable_progress_bar()  # a bar for each file of each model would bury the bars that matter


WEIGHTS_INDEX = "model.safetensors.index.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
QUESTION = "QUESTION-OF-THE-USER"
SIZES = ("hidden_size", "intermediate_size", "vocab_size", "head_dim")
IMPLEMENTATIONS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


class CheckpointError(ValueError):
    """A checkpoint directory has a file that is damaged, does not fit the others, or asks for what is not done here."""


@contextmanager
def _reading(what: Path | str) -> Iterator[None]:
    """Say of what a library cannot make sense: their errors are of all types, and rarely name the file."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise CheckpointError(f"{what} is damaged or not supported: {type(error).__name__}: {reason}") from error


def _read_json(path: Path) -> dict[str, Any]:
    with _reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"a JSON object is expected, and this is a {type(content).__name__}")
    return content


def is_adapter(path: Path) -> bool:
    """Whether `path` is a PEFT adapter: weights beside those of another checkpoint, its base."""
    return (path / "adapter_config.json").exists()


def check_checkpoint(path: Path) -> None:
    """Raise FileNotFoundError unless `path` is a checkpoint directory with a config and safetensors weights.

    It may be a PEFT adapter, whose base then has to be there.

    Raises CheckpointError for weights that are not whole, or that the config does not fit, and for a config that asks
    to load files from elsewhere or to run code from the hub. Reads the headers of the weights, not the weights.
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
    if is_adapter(path):
        if not (path / ADAPTER_WEIGHTS).exists():  # PEFT would take a .bin in its place
            raise FileNotFoundError(f"{path} is an adapter and has no {ADAPTER_WEIGHTS}.")
        return
    _check_config(path)
    if (path / WEIGHTS_INDEX).exists():
        with _reading(path / WEIGHTS_INDEX):
            named = set(_read_json(path / WEIGHTS_INDEX)["weight_map"].values())
            for strange in sorted(map(str, named - {file.name for file in path.glob("*.safetensors")})):
                raise CheckpointError(
                    f"{path / WEIGHTS_INDEX} names {strange!r}, which is no *.safetensors of the folder."
                )


def _check_config(path: Path) -> None:
    """What in config.json would be read from elsewhere or executed, or would build a model out of all proportion."""
    tensors, largest = 0, 0
    for file in path.glob("*.safetensors"):
        with _reading(file), safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  it is no dictionary
                tensors += 1
                largest = max(largest, torch.Size(weights.get_slice(name).get_shape()).numel())
    bounds = {"num_hidden_layers": tensors, **dict.fromkeys(SIZES, largest)}
    todo: list[Any] = [_read_json(path / "config.json")]
    while todo:
        part = todo.pop()
        if isinstance(part, list):
            todo += part
        if not isinstance(part, dict):
            continue
        todo += part.values()
        for name, bound in bounds.items():
            value = part.get(name)
            if isinstance(value, int) and not 0 <= value <= bound:
                raise CheckpointError(f"{path / 'config.json'} has {name} {value}, which does not fit the weights.")
        for name in IMPLEMENTATIONS:
            if "/" in json.dumps(part.get(name)):
                raise CheckpointError(f"{path / 'config.json'} asks for {name} {part[name]!r}: code from the hub, "
                                      "which is not run. Remove it from there.")  # fmt: skip
        weights_file = part.get("transformers_weights")
        if weights_file is not None and not str(weights_file).endswith((".safetensors", WEIGHTS_INDEX)):
            raise CheckpointError(
                f"{path / 'config.json'} names the weights {weights_file!r}, which are no safetensors."
            )


def read_config(path: Path) -> PreTrainedConfig:
    """The configuration of a checkpoint directory; CheckpointError if it is damaged or of no known architecture.

    Code that came with a checkpoint (`auto_map`) is never run.
    """
    with _reading(path / "config.json"):
        return AutoConfig.from_pretrained(path, trust_remote_code=False)


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The checkpoint's tokenizer, as its tokenizer.json has it. Raises FileNotFoundError if there is none, ValueError
    if it is damaged, or if there is no chat template or one that fails.

    AutoTokenizer would replace parts of it by those of the architecture's own class (Transformers 5 does so for Qwen2).
    """
    if not (path / "tokenizer.json").exists():
        raise FileNotFoundError(f"{path} has no tokenizer.json: only fast tokenizers are supported.")
    with _reading(path / "tokenizer.json"):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path, trust_remote_code=False)
        tokenizer("?")
    if tokenizer.chat_template is None:
        raise ValueError(f"{path}: the tokenizer has no chat template, through which prompts must go.")
    if QUESTION not in render_chat(tokenizer, [{"role": "user", "content": QUESTION}], add_generation_prompt=True):
        raise CheckpointError(f"the chat template of {path} leaves out what the user says.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def render_chat(tokenizer: PreTrainedTokenizerFast, chat: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    """The text of `chat` through the chat template. CheckpointError if the template fails.

    Transformers renders it in Jinja's sandbox: it can neither reach Python's objects nor read files.
    """
    with _reading(f"the chat template of {tokenizer.name_or_path}"):
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=add_generation_prompt)


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
    config = _read_json(adapter / "adapter_config.json")
    base, revision = (config.get(name) for name in ("base_model_name_or_path", "revision"))
    if not isinstance(base, str) or not isinstance(revision, str | None):
        raise CheckpointError(f"{adapter / 'adapter_config.json'} does not say what the adapter is for: "
                              f"base_model_name_or_path {base!r}, revision {revision!r}")  # fmt: skip
    return base, revision


def load_model(path: Path, *, device: torch.device, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """The checkpoint in eval mode on `device`; `dtype` "auto" keeps the one it was saved in.

    A PEFT adapter is loaded into its base, at the revision that it was trained for.
    """
    check_checkpoint(path)
    if is_adapter(path):
        base, revision = _base(path)
        if revision is None:
            check_checkpoint(Path(base))
        model = read_model(base, dtype, revision)
        with _reading(path):
            model.load_adapter(str(path), use_safetensors=True)
    else:
        model = read_model(path, dtype)
    return model.to(device=device).eval()


def read_model(path: Path | str, dtype: torch.dtype | str = "auto", revision: str | None = None) -> PreTrainedModel:
    """The checkpoint on the CPU, from safetensors only. CheckpointError if it is damaged or lacks any weight.

    Transformers would draw what is missing at random. With a `revision`, `path` is a repository of the hub.
    """
    options = {} if revision is None else {"revision": revision}
    with _reading(path):
        model, found = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
        )
    if missing := sorted(found["missing_keys"]):
        raise CheckpointError(f"{path} lacks {len(missing)} of the weights that its config.json asks for: {missing[0]}"
                              f"{', …' if len(missing) > 1 else ''}")  # fmt: skip
    return model


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
        config = _read_json(path / "adapter_config.json")
        with _reading(path / "realignment.json"):
            config["base_model_name_or_path"] = _read_json(path / "realignment.json")["reference"]["fingerprint"]
    else:
        config = read_config(path).to_dict()
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


def _check_stops(generation: Path, rows: int) -> None:
    """Raise ValueError unless the generation config names tokens that end a completion."""
    stops = None
    if generation.exists():
        with _reading(generation):
            stops = GenerationConfig.from_pretrained(generation.parent).eos_token_id
    if stops is None or stops == []:
        raise ValueError(f"{generation} names no eos_token_id, so that completions would never end.")
    for stop in stops if isinstance(stops, list) else [stops]:
        if type(stop) is not int or not 0 <= stop < rows:
            raise ValueError(f"{generation}: the eos_token_id {stop!r} is none of the head's {rows} tokens.")


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
        rows = read_config(path).get_text_config().vocab_size
        if rows < len(tokenizer):
            raise ValueError(f"{path}: the head has {rows} rows, but the tokenizer {len(tokenizer)} tokens.")
        _check_stops(path / "generation_config.json", rows)
    return tokenizer
