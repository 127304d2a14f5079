"""Loading checkpoint directories, tokenizers and pairs of them, with every check before any forward pass."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_default_handler, disable_progress_bar, enable_propagation

from realign_pipes.errors import InputError, MissingFileError
from realign_pipes.models.trust import (
    CheckpointError,
    base_of_adapter,
    check_checkpoint,
    is_adapter,
    read_config,
    read_json,
    reading,
)

disable_progress_bar()  # a bar for each file of each model would bury the bars that matter
disable_default_handler()  # its warnings go where all others go: in a run, to the log file
enable_propagation()

QUESTION = "QUESTION-OF-THE-USER"


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer exactly as in the checkpoint's tokenizer.json; its chat template may be anything, or missing.

    AutoTokenizer would replace parts of it with the architecture's own (Transformers 5 does so for Qwen2).
    Raises MissingFileError if there is no tokenizer.json, CheckpointError if it is damaged.
    """
    if not (path / "tokenizer.json").exists():
        raise MissingFileError(f"{path} has no tokenizer.json: only fast tokenizers are supported.")
    with reading(path / "tokenizer.json"):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path, trust_remote_code=False)
        tokenizer("?")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_chat_tokenizer(path: Path, chat_template: Path | None = None) -> PreTrainedTokenizerFast:
    """The checkpoint's tokenizer for chats with the model, with its own chat template or the one in a file.

    Raises what `load_tokenizer` raises, and InputError if there is no template, or if it fails or leaves out what the
    user says.
    """
    tokenizer = load_tokenizer(path)
    if chat_template is not None:
        with reading(chat_template):
            tokenizer.chat_template = chat_template.read_text(encoding="utf-8")
    if tokenizer.chat_template is None:
        raise InputError(
            f"the tokenizer of {path} has no chat template, and prompts have to go through one. Write it to a file (in "
            "Jinja, as Transformers' chat templates are) and name the file in your environment's parameters.yml: "
            "`models: {chat_template: conf/<environment>/chat_template.jinja}`."
        )
    source = f"the chat template of {path}" if chat_template is None else f"the chat template {chat_template}"
    with reading(source):
        chat = [{"role": "user", "content": QUESTION}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    if QUESTION not in text:
        raise CheckpointError(f"{source} leaves out what the user says.")
    return tokenizer


def render_chat(tokenizer: PreTrainedTokenizerFast, chat: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    """The text of `chat` through the chat template. CheckpointError if the template fails.

    Transformers renders it in Jinja's sandbox: it can neither reach Python's objects nor read files.
    """
    with reading(f"the chat template of {tokenizer.name_or_path}"):
        text: str = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=add_generation_prompt)
    return text


def render_prompts(tokenizer: PreTrainedTokenizerFast, questions: Sequence[str]) -> list[list[int]]:
    """Ids of the chat template's text for one user turn with the assistant's opened, of each question."""
    return render_chats(tokenizer, [[{"role": "user", "content": question}] for question in questions])


def render_chats(tokenizer: PreTrainedTokenizerFast, chats: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[int]]:
    """Ids of the chat template's text for each chat, which ends with the user, with the assistant's turn opened."""
    texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def copy_tokenizer(source: Path, target: Path, chat_template: Path | None = None) -> None:
    """Copy a checkpoint's tokenizer files into another checkpoint's folder, with another chat template if one is given.

    The files are copied as they are; Transformers takes chat_template.jinja before any template in them.
    """
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
    if chat_template is not None:
        shutil.copy2(chat_template, target / "chat_template.jinja")


def load_model(
    path: Path, *, device: torch.device, dtype: torch.dtype | str = "auto", attn_implementation: str | None = None
) -> PreTrainedModel:
    """The checkpoint in eval mode on `device`; `dtype` "auto" keeps the one it was saved in.

    `attn_implementation` is Transformers' name of how attention is computed; None leaves it the choice. A PEFT adapter
    is loaded into its base, at the revision that it was trained for.
    """
    check_checkpoint(path)
    if is_adapter(path):
        base, revision = base_of_adapter(path)
        if revision is None:
            check_checkpoint(Path(base))
        model = read_model(base, dtype, revision, attn_implementation)
        with reading(path):
            model.load_adapter(str(path), use_safetensors=True)
    else:
        model = read_model(path, dtype, attn_implementation=attn_implementation)
    return model.to(device=device).eval()


def load_classifier(path: Path, *, device: torch.device) -> PreTrainedModel:
    """A sequence classifier in eval mode on `device`, in the dtype that it was saved in.

    CheckpointError if it is damaged, or lacks any weight, as a language model lacks the classifier's.
    """
    check_checkpoint(path)
    return _read(AutoModelForSequenceClassification, path, "auto", {}).to(device=device).eval()


def resolve_adapter(path: Path) -> Path | None:
    """The folder of the checkpoint that a PEFT adapter is for; None if `path` is a checkpoint of its own."""
    if not is_adapter(path):
        return None
    base, revision = base_of_adapter(path)
    if revision is None:
        return Path(base)
    with reading(path):
        return Path(snapshot_download(base, revision=revision, local_files_only=True))


def read_model(
    path: Path | str,
    dtype: torch.dtype | str = "auto",
    revision: str | None = None,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """The checkpoint on the CPU, from safetensors only. CheckpointError if it is damaged or lacks any weight.

    Transformers would initialise missing weights at random. With a `revision`, `path` is a repository of the hub.
    """
    given = {"revision": revision, "attn_implementation": attn_implementation}
    return _read(AutoModelForCausalLM, path, dtype, {name: one for name, one in given.items() if one is not None})


def _read(auto: Any, path: Path | str, dtype: torch.dtype | str, options: dict[str, str]) -> PreTrainedModel:
    with reading(path):
        model, found = auto.from_pretrained(
            path, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
        )
    if missing := sorted(found["missing_keys"]):
        raise CheckpointError(f"{path} lacks {len(missing)} of the weights that its config.json asks for: {missing[0]}"
                              f"{', …' if len(missing) > 1 else ''}")  # fmt: skip
    return model


def default_device() -> torch.device:
    """The accelerator that accelerate finds, or the CPU."""
    from accelerate import PartialState

    device: torch.device = PartialState().device
    return device


def check_same_tokenizer(
    reference: PreTrainedTokenizerFast, aligned: PreTrainedTokenizerFast, names: tuple[str, str]
) -> None:
    """Raise InputError, naming the first difference, unless both map the same tokens to the same ids.

    Logits of two models can only be mixed id by id. The heads may be padded to different sizes; the tokenizers may
    not differ. The chat templates may: prompts are rendered with the reference's.
    """
    ours = {token_id: token for token, token_id in reference.get_vocab().items()}
    theirs = {token_id: token for token, token_id in aligned.get_vocab().items()}
    for token_id in sorted(ours.keys() | theirs.keys()):
        if ours.get(token_id) != theirs.get(token_id):
            raise InputError(
                f"the tokenizers of {names[0]} and {names[1]} differ, so their logits cannot be mixed: id {token_id} "
                f"is {ours.get(token_id)!r} in the first and {theirs.get(token_id)!r} in the second "
                f"({len(ours)} and {len(theirs)} tokens)."
            )
    first, second = (json.loads(t.backend_tokenizer.to_str()) for t in (reference, aligned))
    for part in ("normalizer", "pre_tokenizer", "model"):
        if first[part] != second[part]:
            raise InputError(f"the tokenizers of {names[0]} and {names[1]} have one vocabulary but split text "
                             f"differently: their {part} differs.")  # fmt: skip


def read_dtype(checkpoint: Path) -> str:
    """The name of the dtype that a checkpoint was saved in: from its config, or else from its weights."""
    check_checkpoint(checkpoint)
    config = read_json(checkpoint / "config.json")
    named = config.get("dtype") or config.get("torch_dtype")  # the name until Transformers 4
    if isinstance(named, str):
        return named.removeprefix("torch.")
    with safe_open(min(checkpoint.glob("*.safetensors")), framework="pt") as weights:
        return str(weights.get_tensor(next(iter(weights.keys()))).dtype).removeprefix("torch.")


def read_stops(path: Path) -> list[int]:
    """The ids that end a completion of a checkpoint, from its generation config; empty if it names none."""
    file = path / "generation_config.json"
    if not file.exists():
        return []
    with reading(file):
        stops = GenerationConfig.from_pretrained(path).eos_token_id
    return [] if stops is None else stops if isinstance(stops, list) else [stops]


def _check_stops(path: Path, rows: int) -> None:
    """Raise InputError unless the generation config names tokens that end a completion."""
    file, stops = path / "generation_config.json", read_stops(path)
    if not stops:
        raise InputError(f"{file} names no eos_token_id, so completions would never end.")
    for stop in stops:
        if type(stop) is not int or not 0 <= stop < rows:
            raise InputError(f"{file}: the eos_token_id {stop!r} is not one of the head's {rows} tokens.")


def max_positions(path: Path) -> int | None:
    """How many tokens of prompt and completion a checkpoint has positions for; None if there is no limit."""
    return getattr(read_config(path).get_text_config(), "max_position_embeddings", None)  # ALiBi, Mamba: no limit


def check_pair(reference: Path, aligned: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that two checkpoints share, after checking that their logits can be mixed.

    Reads only configurations and tokenizers. Raises MissingFileError if either is not a checkpoint, and InputError if
    the tokenizers differ or a head has fewer rows than the tokenizer has tokens. Heads may be padded to different
    sizes.
    """
    for path in (reference, aligned):
        check_checkpoint(path)
    tokenizer = load_tokenizer(reference)
    check_same_tokenizer(tokenizer, load_tokenizer(aligned), (str(reference), str(aligned)))
    for path in (reference, aligned):
        rows = read_config(path).get_text_config().vocab_size
        if rows < len(tokenizer):
            raise InputError(f"{path}: the head has {rows} rows, but the tokenizer {len(tokenizer)} tokens.")
        _check_stops(path, rows)
    return tokenizer
