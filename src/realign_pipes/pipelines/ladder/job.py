"""The job of the pipeline ladder: one LoRA adapter for each alpha, in one folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from pydantic import BaseModel

from realign_pipes.errors import InputError, MissingFileError
from realign_pipes.models.card import base_name, checkpoint_name, read_metadata, write_model_card
from realign_pipes.models.fingerprint import fingerprint_model
from realign_pipes.models.load import check_pair, copy_tokenizer, default_device, load_model
from realign_pipes.models.trust import is_adapter
from realign_pipes.paper.low_rank import copy_scaled, linear_layers, save_rung, truncated_difference
from realign_pipes.paper.merging import check_mergeable
from realign_pipes.pipelines.ladder.parameters import Ladder
from realign_pipes.pipelines.trra.job import train_student
from realign_pipes.pipelines.trra.parameters import SCALED_LORA, StudentName, TrRa
from realign_pipes.runtime.launch import AbsolutePath, Job, run_as_process
from realign_pipes.runtime.parameters import check_rank
from realign_pipes.runtime.progress import progress_bar
from realign_pipes.runtime.tracking import NOT_TRACKED, Tracking
from realign_pipes.runtime.work import do_once
from realign_pipes.serving.ladder import Summary, ladder_command
from realign_pipes.teachers.fused import FusedTeachers
from realign_pipes.teachers.parameters import Teachers


class MadeLadder(BaseModel):
    """What the pipeline makes."""

    folder: Path


class MakeLadder(Job[MadeLadder]):
    """Make the adapters, or find them finished in `work`."""

    parameters: Ladder
    trra: TrRa
    """How students are trained."""
    teachers: Teachers
    reference: AbsolutePath
    aligned: AbsolutePath
    examples: AbsolutePath
    """The calibration set's folder, which students learn from; it may be missing for the method svd."""
    teacher_cache: AbsolutePath
    """It may be missing likewise."""
    environment: AbsolutePath
    """The virtual environment that has vLLM, or is to have it."""
    chat_template: AbsolutePath | None = None
    """A file with the chat template that the adapters get; None: the reference's own."""
    attn_implementation: str | None = None
    work: AbsolutePath
    students: AbsolutePath
    """The work folder of the stage trra, whose finished students are not trained again."""
    tracking: Tracking = NOT_TRACKED

    def run(self) -> MadeLadder:
        """The folder with an adapter for each alpha and ladder.json.

        InputError, before anything is computed, for a reference that is an adapter itself, for tokenizers that differ,
        for weights that cannot be subtracted (method svd), and for what vLLM cannot serve.
        """
        self._check()
        names = {"reference": self.reference, "aligned": self.aligned}
        models = {role: {"name": checkpoint_name(path), "fingerprint": fingerprint_model(path)}
                  for role, path in names.items()}  # fmt: skip
        method = self.parameters.method
        return MadeLadder(folder=self._from_weights(models) if method == "svd" else self._from_students(models))

    def _check(self) -> None:
        if is_adapter(self.reference):
            raise InputError(f"{self.reference} is an adapter, and a ladder's adapters need a whole checkpoint below "
                             "them. Merge it first, and give the merged checkpoint as reference_model.")  # fmt: skip
        check_pair(self.reference, self.aligned)
        rungs = {name: Path(name) for name in self.parameters.rungs()}
        if self.parameters.method == "svd":
            cpu = torch.device("cpu")
            try:
                check_mergeable(*(load_model(path, device=cpu) for path in (self.reference, self.aligned)))
            except InputError as error:
                raise InputError(f"{error} For a ladder, set ladder.method to trained or scaled.") from None
            rank = self.parameters.rank
        else:
            rank = self.trra.lora.rank
            try:
                check_rank(rank, "trra.lora.rank")
            except ValueError as error:
                raise InputError(f"{error}.") from None
            if missing := [path for path in (self.examples, self.teacher_cache) if not path.is_dir()]:
                raise MissingFileError(
                    f"ladder.method {self.parameters.method} trains, and {missing[0]} is missing. Make it: kedro run "
                    "--pipelines data_prep,teacher_logits; or set ladder.method to svd, which needs no training."
                )
        ladder_command(self.reference, rungs, rank, self.environment)  # refuses what vLLM cannot serve

    def _from_weights(self, models: dict[str, Any]) -> Path:
        """Method svd."""
        rank, rungs = self.parameters.rank, self.parameters.rungs()
        description = {"method": "svd", "rungs": rungs, "rank": rank, **models, **self._template()}

        def do(folder: Path) -> Callable[[Path], None]:
            reference, aligned = (
                load_model(path, device=torch.device("cpu")) for path in (self.reference, self.aligned)
            )
            layers = len(linear_layers(reference))
            with progress_bar("cutting the difference of the weights", layers) as advance:
                adapted, held = truncated_difference(
                    reference, aligned, rank, device=default_device(), after_layer=advance
                )

            def write(ladder: Path) -> None:
                for name, alpha in rungs.items():
                    save_rung(adapted, ladder / name, alpha, base_name(self.reference))
                    reference.generation_config.save_pretrained(ladder / name)
                    copy_tokenizer(self.reference, ladder / name, self.chat_template)
                    introduction = (
                        f"{models['reference']['name']} with **alpha = {alpha:g}** times the difference to "
                        f"{models['aligned']['name']}, of each linear layer the {rank} largest singular values: no "
                        f"training. Beyond them is {held.relative_error:.1%} of that difference (Frobenius norm)."
                    )
                    metadata = {"method": "svd", "alpha": alpha, **models, "parameters": {"rank": rank}}
                    write_model_card(ladder / name, title=name, introduction=introduction, tags=["svd"],
                                     metadata=metadata)  # fmt: skip
                Summary(
                    method="svd",
                    rank=rank,
                    rungs=rungs,
                    errors={name: held.error(alpha) for name, alpha in rungs.items()},
                    relative_error=held.relative_error,
                    norm=held.norm,
                    shares={"kept": held.kept, "cut": held.cut, **held.left_out},
                ).save(ladder)

            return write

        return do_once(self.work, "ladder", description, do)

    def _from_students(self, models: dict[str, Any]) -> Path:
        """Methods trained and scaled."""
        method, rungs = self.parameters.method, self.parameters.rungs()
        trained = rungs if method == "trained" else dict.fromkeys(rungs, 1.0)
        teachers = FusedTeachers(
            self.reference,
            self.aligned,
            Dataset.load_from_disk(str(self.examples)),
            teachers=self.teachers,
            teacher_cache=self.teacher_cache,
            attn_implementation=self.attn_implementation,
        )
        students = {
            alpha: train_student(
                StudentName(student_name(alpha), "lora_scale", alpha, self.trra.plausibility, lora=True),
                self.aligned,
                teachers,
                self.trra,
                self.students,
                self.chat_template,
                self.tracking,
            )
            for alpha in dict.fromkeys(trained.values())
        }
        adapters = {name: students[alpha] for name, alpha in trained.items()}
        description = {
            "method": method,
            "rungs": rungs,
            "students": {name: fingerprint_model(path) for name, path in adapters.items()},
            **models,
            **self._template(),
        }

        def do(folder: Path) -> Callable[[Path], None]:
            def write(ladder: Path) -> None:
                ladder.mkdir()
                for name, path in adapters.items():
                    by = 1.0 if method == "trained" else rungs[name]
                    copy_scaled(path, ladder / name, by)
                    if method == "scaled":
                        write_model_card(
                            ladder / name,
                            title=name,
                            introduction=f"A LoRA student of TrRa at alpha 1, whose matrices are scaled by **{by:g}**.",
                            tags=["trra"],
                            metadata={**read_metadata(path), "scaled_by": by},
                        )
                Summary(method=method, rank=self.trra.lora.rank, rungs=rungs).save(ladder)

            return write

        return do_once(self.work, "ladder", description, do)

    def _template(self) -> dict[str, str]:
        return {} if self.chat_template is None else {"chat_template": self.chat_template.read_text(encoding="utf-8")}


def student_name(alpha: float) -> str:
    """Of the LoRA student at `alpha`; at 1 it is the one that the stage trra trains for the kind lora_scale."""
    return SCALED_LORA if alpha == 1 else f"trra-lora-{alpha:g}"


if __name__ == "__main__":
    run_as_process(MakeLadder)
