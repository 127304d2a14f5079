"""The teachers that one pair of models makes over one calibration set, cached or online."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from realign_pipes.models.fingerprint import fingerprint_model, fingerprint_tokenizer, read_in_main_process
from realign_pipes.models.load import check_pair, default_device, load_model, read_dtype, resolve_adapter
from realign_pipes.paper.trra import Teacher, TeacherSignal
from realign_pipes.teachers.hidden_states import HiddenStateCache, cache_model, open_cache
from realign_pipes.teachers.parameters import Teachers
from realign_pipes.teachers.signals import OnlineTeacher, check_linear_head, fingerprint_examples


class CachedTeacher:
    """Reads both models' hidden states from their caches, onto `device`."""

    def __init__(self, reference: HiddenStateCache, aligned: HiddenStateCache, device: torch.device) -> None:
        self.caches = (reference, aligned)
        self.device = device
        self.reference_head = reference.head().to(device)
        self.aligned_head = aligned.head().to(device)

    def signal(self, batch: dict[str, Any]) -> TeacherSignal:
        """Hidden states of the examples numbered `row` [B], in the cache's dtype."""
        rows = batch["row"].tolist()
        return TeacherSignal(*(cache.hidden_states(rows).to(self.device) for cache in self.caches))


class FusedTeachers:
    """The teachers that one pair of models makes over one calibration set.

    Everything is checked here, before the first training: both checkpoints, that they share one tokenizer, and (with
    cached teachers) that the cache is whole and was made from exactly these models and data, in the dtype asked for.
    """

    def __init__(
        self,
        reference: Path,
        aligned: Path,
        examples: Dataset,
        *,
        teachers: Teachers,
        teacher_cache: Path,
        attn_implementation: str | None = None,
    ) -> None:
        self.attn_implementation = attn_implementation
        self.reference, self.examples = reference, examples.select_columns(["id", "prompt_ids", "completion_ids"])
        self.teachers = teachers
        self.tokenizer = check_pair(reference, aligned)
        read_in_main_process([reference, aligned, teacher_cache / "reference", teacher_cache / "aligned"])
        self.tokenizer_fingerprint = fingerprint_tokenizer(self.tokenizer)
        self.device = default_device()
        self.data_fingerprint = fingerprint_examples(self.examples)
        self.caches: dict[Path, HiddenStateCache] = {}
        if teachers.mode == "cached":
            for path, name in ((reference, "reference"), (aligned, "aligned")):
                self.caches[path] = open_cache(teacher_cache / name, self._cache_source(path), self.examples)

    def teacher(self, aligned: Path, cache_folder: Path) -> Teacher:
        """The reference fused with `aligned`, whose cache is written to `cache_folder` if it has none yet.

        ValueError for an online teacher whose logits are not just its final hidden states times its head.
        """
        if self.teachers.mode == "online":
            reference_model, aligned_model = (
                load_model(path, device=self.device, attn_implementation=self.attn_implementation)
                for path in (self.reference, aligned)
            )
            check_linear_head(reference_model, "reference")
            check_linear_head(aligned_model, "aligned model")
            return OnlineTeacher(reference_model, aligned_model)
        if aligned not in self.caches:  # a later round, whose aligned model was only just trained
            self.caches[aligned] = cache_model(
                cache_folder,
                aligned,
                self.examples,
                self._cache_source(aligned),
                teachers=self.teachers,
                attn_implementation=self.attn_implementation,
                description=f"caching {aligned.parent.name}'s hidden states",
            )
        return CachedTeacher(self.caches[self.reference], self.caches[aligned], self.device)

    def _cache_source(self, model: Path) -> dict[str, str]:
        """With the dtype too: a cache may be older than the parameters."""
        dtype = self.teachers.dtype
        return {
            "model": fingerprint_model(model),
            "tokenizer": self.tokenizer_fingerprint,
            "data": self.data_fingerprint,
            "dtype": read_dtype(resolve_adapter(model) or model) if dtype == "auto" else dtype,
        }
