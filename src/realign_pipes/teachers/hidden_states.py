"""The cache of final hidden states: written once for a model over a set of examples, it serves every alpha.

Since the head is linear, z = h W^T gives the exact logits back. A cache is a folder:
    index.json               what it was made from, and its shards with their checksums
    head.safetensors         "head" [V, d], the model's output embeddings
    shard-00000.safetensors  "hidden" [tokens, d]: for each completion token, in the order of the examples, the hidden
                             state (after the final norm) that predicts it
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from realign_pipes.errors import InputError
from realign_pipes.models.fingerprint import fingerprint_file
from realign_pipes.models.load import default_device, load_model
from realign_pipes.paper.trra import Example, collate, collate_flat, completion_hidden_states, decoder_inputs
from realign_pipes.runtime.files import atomic_path
from realign_pipes.runtime.progress import progress_bar
from realign_pipes.teachers.parameters import Teachers

SAFETENSORS_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
REMEDY = "Make it again: kedro run --pipeline teacher_logits"


class CacheMismatchError(InputError):
    """A cache is damaged, unfinished, or was made from something else."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class CacheFile(_Strict):
    """A file of the cache and its checksum."""

    file: str
    sha256: str


class CacheShard(CacheFile):
    """The shard of the examples from number `start` up to, but not including, number `stop`."""

    start: NonNegativeInt
    stop: NonNegativeInt


class CacheIndex(_Strict):
    """The content of index.json."""

    model: str
    tokenizer: str
    data: str
    dtype: Literal["float32", "bfloat16", "float16"]
    hidden_size: PositiveInt
    head: CacheFile
    lengths: list[NonNegativeInt]
    """Completion tokens of each example."""
    shards: list[CacheShard]
    complete: bool


def cache_dtype(dtype: str, model: PreTrainedModel) -> torch.dtype:
    """The torch dtype for a name; `auto` is the model's own."""
    found: torch.dtype = model.dtype if dtype == "auto" else getattr(torch, dtype)
    return found


def plan_shards(lengths: Sequence[int], shard_tokens: int) -> list[tuple[int, int]]:
    """The first example of each shard and the one after its last. A shard has about `shard_tokens` tokens."""
    plan, start, tokens = [], 0, 0
    for stop, length in enumerate(lengths, start=1):
        tokens += length
        if tokens >= shard_tokens or stop == len(lengths):
            plan.append((start, stop))
            start, tokens = stop, 0
    return plan


@torch.inference_mode()
def write_cache(
    folder: Path,
    model: PreTrainedModel,
    examples: Dataset,
    source: dict[str, str],
    *,
    dtype: torch.dtype,
    batch_size: int,
    shard_tokens: int,
    advance: Callable[[int], None],
    padding_free: bool = False,
) -> None:
    """Write the cache of `model` over `examples` into `folder`, keeping the good shards that are already there.

    `examples` has the columns `prompt_ids` and `completion_ids`. `source` says what the cache is made from
    (fingerprints of model, tokenizer and data); `open_cache` compares it. Process r of n writes the shards r, r + n, …
    of `plan_shards`. Each shard is written under a temporary name and renamed, followed by a note of its checksum; the
    main process merges the notes into the index when all are there. So the next run keeps the shards of an interrupted
    one, whatever its number of processes. `advance` is called with the number of this process's examples that are
    done. With `padding_free`, a batch is one row (`paper.trra.collate_flat`).
    """
    state = PartialState()
    plan = plan_shards([len(token_ids) for token_ids in examples["completion_ids"]], shard_tokens)
    if state.is_main_process:
        found = _start_index(folder, model.get_output_embeddings().weight.to(dtype), examples, source)
        for number, shard in enumerate(found):
            _write_json(_note(folder, number), shard)
    state.wait_for_everyone()
    for number, (start, stop) in list(enumerate(plan))[state.process_index :: state.num_processes]:
        if not _is_good(folder, number, start, stop):
            own = [examples[i] for i in range(start, stop)]
            hidden = _hidden_states(model, own, batch_size, padding_free, advance)
            saved = _save_tensor(folder / f"shard-{number:05d}.safetensors", "hidden", hidden.to(dtype).cpu())
            _write_json(_note(folder, number), CacheShard(**saved.model_dump(), start=start, stop=stop))
        else:
            advance(stop - start)
    state.wait_for_everyone()
    if state.is_main_process:
        notes = [_note(folder, number) for number in range(len(plan))]
        shards = [CacheShard.model_validate_json(note.read_bytes()) for note in notes]
        index = _read_index(folder / "index.json")
        _write_json(folder / "index.json", index.model_copy(update={"shards": shards, "complete": True}))
        for note in notes:
            note.unlink()
    state.wait_for_everyone()


def _start_index(folder: Path, head: torch.Tensor, examples: Dataset, source: dict[str, str]) -> Sequence[CacheShard]:
    """Write the head and an index without shards. Returns the shards of a finished index of the same cache."""
    index_path = folder / "index.json"
    folder.mkdir(parents=True, exist_ok=True)
    index = CacheIndex.model_validate(
        {
            **source,
            "dtype": str(head.dtype).removeprefix("torch."),
            "hidden_size": head.shape[1],
            "head": _save_tensor(folder / "head.safetensors", "head", head),
            "lengths": [len(token_ids) for token_ids in examples["completion_ids"]],
            "shards": [],
            "complete": False,
        }
    )
    shards: Sequence[CacheShard] = ()
    try:
        found = _read_index(index_path)
        same = found.model_copy(update={"shards": [], "complete": False}) == index
        shards = found.shards if same else ()
    except CacheMismatchError:  # missing or damaged: it is made again
        same = False
    if not same:  # the notes belong to another cache's shards
        for note in folder.glob("shard-*.json"):
            note.unlink()
    _write_json(index_path, index)
    return shards


def _note(folder: Path, number: int) -> Path:
    """Where a shard's entry of the index is kept until all shards are there."""
    return folder / f"shard-{number:05d}.json"


def _is_good(folder: Path, number: int, start: int, stop: int) -> bool:
    """Whether the shard was written completely, with exactly these examples."""
    note = _note(folder, number)
    if not note.exists():
        return False
    try:
        shard = CacheShard.model_validate_json(note.read_bytes())
    except ValidationError:
        return False
    expected = (f"shard-{number:05d}.safetensors", start, stop)
    return (shard.file, shard.start, shard.stop) == expected and _is_whole(folder, shard)


def _hidden_states(
    model: PreTrainedModel,
    examples: Sequence[Example],
    batch_size: int,
    padding_free: bool,
    advance: Callable[[int], None],
) -> torch.Tensor:
    """Hidden states [tokens, d] of the examples, in order; computed in batches of similar length."""
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i]["prompt_ids"] + examples[i]["completion_ids"]))
    states: list[torch.Tensor] = [torch.empty(0)] * len(examples)
    for first in range(0, len(order), batch_size):
        members = order[first : first + batch_size]
        some = [examples[i] for i in members]
        batch = send_to_device(collate_flat(some) if padding_free else collate(some, pad_token_id=0), model.device)
        hidden = completion_hidden_states(model, batch["labels"], **decoder_inputs(batch))
        lengths = [len(examples[i]["completion_ids"]) for i in members]
        for i, part in zip(members, torch.split(hidden, lengths), strict=True):
            states[i] = part
        advance(len(members))
    return torch.cat(states)


def _save_tensor(path: Path, name: str, tensor: torch.Tensor) -> CacheFile:
    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous()}, temporary)
    return CacheFile(file=path.name, sha256=fingerprint_file(path))


def _write_json(path: Path, content: BaseModel) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(content.model_dump_json())


def _is_whole(folder: Path, entry: CacheFile) -> bool:
    """Whether the file is there and has the index's checksum."""
    file = folder / entry.file
    return file.is_file() and fingerprint_file(file) == entry.sha256


def _read_index(path: Path) -> CacheIndex:
    """The content of index.json. CacheMismatchError, naming the first thing that is wrong, if it is not valid."""
    try:
        return CacheIndex.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CacheMismatchError(f"{path} cannot be read, so there is no teacher cache: {error}. {REMEDY}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "JSON"
        raise CacheMismatchError(f"{path} is damaged: {where}: {first['msg']}. {REMEDY}") from error


class HiddenStateCache:
    """A finished cache, opened for reading. Use `open_cache`, which checks it."""

    def __init__(self, folder: Path, index: CacheIndex) -> None:
        self.folder = folder
        self.index = index
        self._places: list[tuple[int, int, int]] = []  # for each example: its shard, its start and its end
        for number, shard in enumerate(index.shards):
            begin = 0
            for length in index.lengths[shard.start : shard.stop]:
                self._places.append((number, begin, begin + length))
                begin += length
        shards = [safe_open(folder / shard.file, framework="pt") for shard in index.shards]
        self._slices = [shard.get_slice("hidden") for shard in shards]  # type: ignore[no-untyped-call]  # of safetensors

    def head(self) -> torch.Tensor:
        """The model's output embeddings [V, d], in the cache's dtype."""
        return load_file(self.folder / self.index.head.file)["head"]

    def hidden_states(self, rows: Sequence[int]) -> torch.Tensor:
        """Hidden states [N, d] for the completion tokens of the examples numbered `rows`, one after the other."""
        parts = []
        for row in rows:
            shard, begin, end = self._places[row]
            parts.append(self._slices[shard][begin:end])
        return torch.cat(parts)

    def report(self, vocab_size: int) -> dict[str, float]:
        """Its size, compared with that of the full logits in the same dtype."""
        width, bytes_per_value = self.index.hidden_size, torch.empty(0, dtype=getattr(torch, self.index.dtype)).itemsize
        return {
            "examples": len(self.index.lengths),
            "tokens": sum(self.index.lengths),
            "bytes": sum((self.folder / shard.file).stat().st_size for shard in self.index.shards),
            "bytes_per_token": width * bytes_per_value,
            "bytes_per_token_of_full_logits": vocab_size * bytes_per_value,
            "times_smaller": vocab_size / width,
        }


def open_cache(folder: Path, source: dict[str, str], examples: Dataset) -> HiddenStateCache:
    """Open the cache in `folder` after checking that it is whole and was made from `source` for `examples`.

    Nothing in the cache is trusted: file names must be those that `write_cache` gives, and lengths and shapes are
    compared with the completions of `examples` (the column `completion_ids`).

    Raises CacheMismatchError naming what differs (model, tokenizer, data, or the dtype if `source` has one), or the
    file that is missing, truncated or altered.
    """
    index_path = folder / "index.json"
    if not index_path.is_file():
        raise CacheMismatchError(f"{folder} has no index.json, so it holds no teacher cache. {REMEDY}")
    index = _read_index(index_path)
    differing = [name for name, wanted in source.items() if getattr(index, name) != wanted]
    if differing:
        raise CacheMismatchError(
            f"the teacher cache in {folder} was made from another {' and another '.join(differing)} than this run "
            f"uses. {REMEDY}"
        )
    if not index.complete:
        raise CacheMismatchError(f"the teacher cache in {folder} was never finished. {REMEDY}")
    lengths = [len(token_ids) for token_ids in examples["completion_ids"]]
    if index.lengths != lengths:
        raise CacheMismatchError(f"{index_path} is damaged: its lengths are not those of the completions. {REMEDY}")
    _check_tensor(folder, index.head, "head.safetensors", "head", [None, index.hidden_size], index.dtype)
    done = 0
    for number, shard in enumerate(index.shards):
        if not shard.start == done < shard.stop <= len(lengths):
            raise CacheMismatchError(f"{index_path} is damaged: shard {number} does not follow on the one before it. "
                                     f"{REMEDY}")  # fmt: skip
        done = shard.stop
        shape = [sum(lengths[shard.start : done]), index.hidden_size]
        _check_tensor(folder, shard, f"shard-{number:05d}.safetensors", "hidden", shape, index.dtype)
    if done != len(lengths):
        raise CacheMismatchError(f"{index_path} is damaged: its shards hold {done} of {len(lengths)} examples. "
                                 f"{REMEDY}")  # fmt: skip
    return HiddenStateCache(folder, index)


def _check_tensor(
    folder: Path, entry: CacheFile, file: str, name: str, shape: Sequence[int | None], dtype: str
) -> None:
    """CacheMismatchError unless `entry` is for `file`, which is whole and holds such a tensor. None means any size."""
    path = folder / file
    if entry.file != file:
        raise CacheMismatchError(f"{folder / 'index.json'} is damaged: it has {entry.file!r} where {file} belongs. "
                                 f"{REMEDY}")  # fmt: skip
    if not _is_whole(folder, entry):
        raise CacheMismatchError(f"{path} is missing, truncated or altered: it does not have the checksum in the "
                                 f"index. {REMEDY}")  # fmt: skip
    try:
        with safe_open(path, framework="pt") as tensors:
            found = tensors.get_slice(name)
            sizes, found_dtype = found.get_shape(), found.get_dtype()
    except SafetensorError as error:
        raise CacheMismatchError(f"{path} holds no tensor {name!r}: {error}. {REMEDY}") from error
    fits = len(sizes) == len(shape) and all(want in (None, size) for want, size in zip(shape, sizes, strict=True))
    if not fits or found_dtype != SAFETENSORS_DTYPES[dtype]:
        raise CacheMismatchError(f"{path} holds a tensor of {found_dtype} {sizes}, and the index says {dtype} {shape}. "
                                 f"{REMEDY}")  # fmt: skip


def cache_model(
    folder: Path,
    checkpoint: Path,
    examples: Dataset,
    source: dict[str, str],
    *,
    teachers: Teachers,
    description: str,
    attn_implementation: str | None = None,
) -> HiddenStateCache:
    """The cache of a checkpoint over `examples`, written now by all processes or found finished in `folder`."""
    try:
        return open_cache(folder, source, examples)
    except CacheMismatchError:
        pass  # missing, unfinished or damaged: its good shards are kept
    model = load_model(checkpoint, device=default_device(), attn_implementation=attn_implementation)
    state = PartialState()
    plan = plan_shards([len(token_ids) for token_ids in examples["completion_ids"]], teachers.shard_tokens)
    own = sum(stop - start for start, stop in plan[state.process_index :: state.num_processes])
    with progress_bar(description, own) as advance:
        write_cache(
            folder,
            model,
            examples,
            source,
            dtype=cache_dtype(teachers.dtype, model),
            batch_size=teachers.batch_size,
            shard_tokens=teachers.shard_tokens,
            advance=advance,
            padding_free=teachers.padding_free,
        )
    return open_cache(folder, source, examples)
