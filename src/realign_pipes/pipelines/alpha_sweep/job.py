"""The job of the stage alpha_sweep: measure every candidate, and thinking inside token budgets."""

import math
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import torch
from datasets import Dataset
from pydantic import BaseModel, Field
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from realign_pipes.data.prompts import render_prompt
from realign_pipes.errors import InputError, MissingFileError
from realign_pipes.generation.graded import check_length
from realign_pipes.generation.parameters import Generation
from realign_pipes.generation.servers import make_servers
from realign_pipes.models.card import read_metadata
from realign_pipes.models.fingerprint import fingerprint_model, read_in_main_process
from realign_pipes.models.load import check_pair, load_chat_tokenizer, load_model, max_positions, read_dtype
from realign_pipes.models.trust import read_config
from realign_pipes.paper.low_rank import lora_size
from realign_pipes.paper.merging import check_mergeable
from realign_pipes.paper.schedules import TokenBudget
from realign_pipes.pipelines.alpha_sweep.parameters import AlphaSweep
from realign_pipes.pipelines.trra.parameters import StudentName, TrRa
from realign_pipes.runtime.launch import AbsolutePath, Job, run_as_process
from realign_pipes.runtime.training import training_seconds
from realign_pipes.sweep.evaluate import Evaluator
from realign_pipes.sweep.kinds import Candidate
from realign_pipes.tasks.parameters import Problems


class Cost(BaseModel):
    """What it takes to have a candidate, given the reference and the aligned model."""

    train_seconds: float | None
    """Of all trainings that it takes, every step once; None if a checkpoint does not say."""
    bytes: int
    """On disk: the weights that it loads besides the reference's."""


class Generations(BaseModel):
    """What the stage makes: Parquet files of graded completions, by candidate."""

    sweep: dict[str, Path]
    budgets: dict[str, Path]
    costs: dict[str, Cost]
    """Of the sweep's candidates."""


class MeasureCandidates(Job[Generations]):
    """Measure the candidates, or find them finished in `work`."""

    parameters: AlphaSweep
    generation: Generation
    tasks: dict[str, Problems]
    trra: TrRa
    """Names the checkpoints that are measured."""
    inra_plausibility: float
    """Beta of the mask where InRa mixes."""
    reference: AbsolutePath
    aligned: AbsolutePath
    trra_checkpoints: dict[str, AbsolutePath]
    inra_checkpoint: AbsolutePath
    problems: AbsolutePath
    """The evaluation set."""
    work: AbsolutePath
    instruction: str | None = None
    """Of data_prep: at the end of each question."""
    others: dict[str, AbsolutePath] = Field(default_factory=dict)
    """The folders of `parameters.others`."""
    chat_template: AbsolutePath | None = None
    """In place of the reference's own; for the candidates with an instruction."""
    attn_implementation: str | None = None

    def run(self) -> Generations:
        """The completions of all candidates.

        Raises MissingFileError or InputError, before anything is decoded, for a checkpoint that is missing or was
        trained from another reference, for completions that could be longer than the models' positions, for weights
        that cannot be merged, and for a checkpoint that no server has.
        """
        problems = Dataset.load_from_disk(str(self.problems))
        sweep, budgets = self.sweep_candidates(), self.budget_candidates()
        for path in (self.aligned, *self.others.values()):
            check_pair(self.reference, path)
        tokenizer = load_chat_tokenizer(self.reference, self.chat_template)
        self._check_lengths(problems, tokenizer)
        self._check_merging()
        evaluator = Evaluator(
            problems,
            self.tasks,
            fingerprints=self.fingerprints([*sweep, *budgets]),
            tokenizer=tokenizer,
            work=self.work,
            instruction=self.instruction,
            servers=make_servers(self.generation, self.work / "served"),
            attn_implementation=self.attn_implementation,
        )
        with closing(evaluator):
            made = evaluator.evaluate([*sweep, *budgets], self.parameters.sampling)
        return Generations(
            sweep={candidate.name: made[candidate.name] for candidate in sweep},
            budgets={candidate.name: made[candidate.name] for candidate in budgets},
            costs=self._costs(sweep),
        )

    def completions(self) -> int:
        """How many completions the sweep draws, those inside token budgets not counted."""
        tasks, samples = Dataset.load_from_disk(str(self.problems))["task"], self.parameters.sampling.samples
        return len(self.sweep_candidates()) * sum(self.tasks[task].samples or samples for task in tasks)

    def sweep_candidates(self) -> list[Candidate]:
        """MissingFileError if a checkpoint that the parameters of trra name is missing."""
        students = self.trra.all_students()
        if missing := [name for name in students if name not in self.trra_checkpoints]:
            raise MissingFileError(
                f"the parameters of trra name checkpoints that are missing: {', '.join(missing)}. Train them: "
                "kedro run --pipeline trra, or dvc repro"
            )
        return [
            *self._models(),
            *self._steered(),
            *self._mixed(),
            *self._students(students),
            *self._others(),
            *(
                Candidate(
                    f"inra-{alpha:g}",
                    "inra",
                    alpha,
                    (self.inra_checkpoint,),
                    plausibility=self.inra_plausibility,
                )
                for alpha in self.parameters.inra_alphas
            ),
        ]

    def _models(self) -> list[Candidate]:
        """The reference and the aligned model, and both again with DeRa's beta as a min-p of their own."""
        models = {"reference": self.reference, "aligned": self.aligned}
        beta = self.parameters.plausibility
        return [
            Candidate(f"{name}{suffix}", name, math.nan, (model,), plausibility=min_p)
            for suffix, min_p in [("", 0.0)] + ([("-min-p", beta)] if beta > 0 else [])
            for name, model in models.items()
        ]

    def _others(self) -> list[Candidate]:
        """Checkpoints that were made elsewhere."""
        return [Candidate(f"other-{name}", "other", math.nan, (path,)) for name, path in self.others.items()]

    def _steered(self) -> list[Candidate]:
        """The reference with a bias on its closing tag, or with an instruction."""
        reference = (self.reference,)
        return [
            *(
                Candidate(f"close-bias-{bias:g}", "close_bias", bias, reference)
                for bias in self.parameters.close_biases
            ),
            *(
                Candidate(f"prompt-{name}", "prompt", math.nan, reference, instruction=instruction)
                for name, instruction in self.parameters.prompts.items()
            ),
        ]

    def _mixed(self) -> list[Candidate]:
        """What needs the two models alone: DeRa, which mixes their logits, and their weights merged.

        DeRa has its mask at its own alphas, and is measured without it at those where TrRa is.
        """
        both, beta = (self.reference, self.aligned), self.parameters.plausibility
        ties, svd = self.parameters.ties, self.parameters.svd
        cut = [] if svd is None else [
            Candidate(f"svd-{alpha:g}", "svd", float(alpha), both, rank=svd.rank) for alpha in svd.alphas
        ]  # fmt: skip
        return [
            *(
                Candidate(f"dera-{alpha:g}", "dera", alpha, both, plausibility=beta)
                for alpha in self.parameters.dera_alphas
            ),
            *(
                Candidate(f"dera-{alpha:g}-unmasked", "dera", float(alpha), both)
                for alpha in self.trra.measured_ablation()
                if beta > 0
            ),
            *(Candidate(f"merge-{alpha:g}", "merge", float(alpha), both) for alpha in self.parameters.merge_alphas),
            *(Candidate(f"ties-{alpha:g}", "ties", float(alpha), both, density=ties.density) for alpha in ties.alphas),
            *cut,
        ]

    def _students(self, students: Mapping[str, StudentName]) -> list[Candidate]:
        """TrRa's students; the one whose LoRA matrices are scaled at each of its alphas."""
        candidates = []
        for name, student in students.items():
            alphas = {student.name: student.alpha}
            if student.kind == "lora_scale":
                alphas = {f"lora-scale-{alpha:g}": alpha for alpha in self.parameters.lora_scale_alphas}
            path = (self.trra_checkpoints[name],)
            candidates += [
                Candidate(one, student.kind, float(alpha), path, plausibility=student.plausibility)
                for one, alpha in alphas.items()
            ]
        return candidates

    def _costs(self, candidates: list[Candidate]) -> dict[str, Cost]:
        """What each candidate costs, given the reference and the aligned model."""
        given = (self.reference, self.aligned)
        trained: dict[Path, list[Path]] = {}  # a further round of TrRa-iter has cost the rounds before it too
        rounds: list[Path] = []
        for name, student in self.trra.all_students().items():
            rounds = [*(rounds if student.iteration else []), self.trra_checkpoints[name]]
            trained[self.trra_checkpoints[name]] = rounds
        costs = {}
        for candidate in candidates:
            own = [path for path in candidate.checkpoints if path not in given]
            seconds = [training_seconds(path) for last in own for path in trained.get(last, [last])]
            costs[candidate.name] = Cost(
                train_seconds=None if None in seconds else sum(seconds),  # type: ignore[arg-type]
                bytes=self._adapter_size(candidate.rank)
                if candidate.rank
                else sum(_weights_size(path) for path in candidate.checkpoints if path != self.reference),
            )
        return costs

    def _adapter_size(self, rank: int) -> int:
        """Bytes of LoRA matrices on all linear layers of the reference, in its dtype."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(read_config(self.reference), trust_remote_code=False)
        dtype: torch.dtype = getattr(torch, read_dtype(self.reference))
        return lora_size(model, rank) * dtype.itemsize

    def budget_candidates(self) -> list[Candidate]:
        """At each token budget: InRa whose alpha follows TokenBudget, and the reference, each with its thinking closed
        in time for an answer; and the reference cut off there."""
        inra, reference, budgets = (self.inra_checkpoint,), (self.reference,), self.parameters.budgets
        closed = [(budget, budget - budgets.answer_tokens) for budget in budgets.tokens]
        return [
            *(
                Candidate(
                    f"token-budget-{budget}",
                    "token_budget",
                    math.nan,
                    inra,
                    budget,
                    TokenBudget(budget, budgets.ramp),
                    self.inra_plausibility,
                    close_at=close_at,
                )
                for budget, close_at in closed
            ),
            *(
                Candidate(f"forced-close-{budget}", "forced_close", math.nan, reference, budget, close_at=close_at)
                for budget, close_at in closed
            ),
            *(
                Candidate(f"truncation-{budget}", "truncation", math.nan, reference, budget)
                for budget in budgets.tokens
            ),
        ]

    def _check_merging(self) -> None:
        """Raise InputError if the two models' weights are to be merged or subtracted and do not fit together."""
        svd = self.parameters.svd
        if not (self.parameters.merge_alphas or self.parameters.ties.alphas or (svd and svd.alphas)):
            return
        models = (load_model(path, device=torch.device("cpu")) for path in (self.reference, self.aligned))
        try:
            check_mergeable(*models)
        except InputError as error:
            raise InputError(f"{error} Set alpha_sweep.merge_alphas and alpha_sweep.ties.alphas to [], and "
                             "alpha_sweep.svd to null.") from None  # fmt: skip

    def _check_lengths(self, problems: Dataset, tokenizer: PreTrainedTokenizerFast) -> None:
        """Raise InputError if a completion could be longer than the positions of a model that was not trained here.

        Trained models have the reference's positions.
        """
        prompt_ids = [
            *problems["prompt_ids"],
            *(
                render_prompt(tokenizer, chat, self.instruction, instruction)[1]
                for instruction in self.parameters.prompts.values()
                for chat in problems["messages"]
            ),
        ]
        for path in (self.reference, self.aligned, *self.others.values()):
            for name, tokens in self.parameters.longest_completions():
                check_length(prompt_ids, tokens, max_positions(path), parameter=name, model=str(path))

    def fingerprints(self, candidates: list[Candidate]) -> dict[Path, str]:
        """Those of all checkpoints. InputError for one that was trained from another reference."""
        paths = dict.fromkeys(path for one in candidates for path in one.checkpoints)
        read_in_main_process(paths)
        fingerprints = {path: fingerprint_model(path) for path in paths}
        for path in paths:
            if path in (self.reference, self.aligned, *self.others.values()):
                continue
            if read_metadata(path)["reference"]["fingerprint"] != fingerprints[self.reference]:
                stage = "inra" if path == self.inra_checkpoint else "trra"
                raise InputError(
                    f"{path} was trained from another reference than {self.reference}. Run the stage {stage} again: "
                    f"kedro run --pipeline {stage}"
                )
        return fingerprints


def _weights_size(checkpoint: Path) -> int:
    """Bytes of the weights in a checkpoint directory; of an adapter, those of its matrices alone."""
    return sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))


if __name__ == "__main__":
    run_as_process(MeasureCandidates)
