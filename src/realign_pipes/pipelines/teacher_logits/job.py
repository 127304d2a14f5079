"""The job of the stage teacher_logits: write both models' final hidden states for every completion token."""

from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from pydantic import BaseModel

from realign_pipes.models.fingerprint import fingerprint_model, fingerprint_tokenizer, read_in_main_process
from realign_pipes.models.load import check_pair, load_model
from realign_pipes.runtime.launch import AbsolutePath, Job, run_as_process
from realign_pipes.runtime.work import open_work
from realign_pipes.teachers.hidden_states import cache_model
from realign_pipes.teachers.parameters import Teachers
from realign_pipes.teachers.signals import check_examples, check_linear_head, fingerprint_examples


class Caches(BaseModel):
    """What the stage makes."""

    folder: Path
    """Holds a cache for each model (`reference`, `aligned`); nothing with online teachers."""
    report: dict[str, Any]
    """What each cache costs, for JSON."""


class WriteCaches(Job[Caches]):
    """Write the caches of both models over one set of examples, keeping the shards that an interrupted run finished."""

    teachers: Teachers
    reference: AbsolutePath
    aligned: AbsolutePath
    examples: AbsolutePath
    """Columns `id`, `prompt`, `prompt_ids` and `completion_ids`."""
    attn_implementation: str | None = None
    work: AbsolutePath

    def run(self) -> Caches:
        """The caches. If anything does not fit, CacheMismatchError or ValueError before any model runs."""
        examples = Dataset.load_from_disk(str(self.examples))
        tokenizer = check_pair(self.reference, self.aligned)
        check_examples(examples, tokenizer)
        report: dict[str, Any]
        if self.teachers.mode == "online":
            report = {"mode": "online", "note": "nothing cached: both models run at every step of trra"}
            with PartialState().main_process_first():
                return Caches(folder=open_work(self.work / "teacher_logits_online", report), report=report)
        data = fingerprint_examples(examples)
        read_in_main_process([self.reference, self.aligned])
        models = {"reference": self.reference, "aligned": self.aligned}
        sources = {
            name: {"model": fingerprint_model(path), "tokenizer": fingerprint_tokenizer(tokenizer), "data": data}
            for name, path in models.items()
        }
        description = {"sources": sources, "dtype": self.teachers.dtype, "shard_tokens": self.teachers.shard_tokens}
        with PartialState().main_process_first():
            folder = open_work(self.work / "teacher_logits", description)
        for name, path in models.items():
            check_linear_head(load_model(path, device=torch.device("cpu")), name)
        report = {"mode": "cached"}
        for name, path in models.items():
            cache = cache_model(
                folder / name,
                path,
                examples,
                sources[name],
                teachers=self.teachers,
                attn_implementation=self.attn_implementation,
                description=f"caching the {name}'s hidden states",
            )
            report[name] = cache.report(len(tokenizer))
        return Caches(folder=folder, report=report)


if __name__ == "__main__":
    run_as_process(WriteCaches)
