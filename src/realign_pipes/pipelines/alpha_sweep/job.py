"""The job of the stage alpha_sweep: measure every candidate, and thinking inside token budgets."""

import math
from pathlib import Path

from datasets import Dataset
from pydantic import BaseModel

from realign_pipes.errors import InputError, MissingFileError
from realign_pipes.generation.graded import check_length
from realign_pipes.models.card import read_metadata
from realign_pipes.models.fingerprint import fingerprint_model
from realign_pipes.models.load import check_pair, max_positions
from realign_pipes.paper.schedules import TokenBudget
from realign_pipes.pipelines.alpha_sweep.parameters import AlphaSweep
from realign_pipes.pipelines.trra.parameters import TrRa
from realign_pipes.runtime.launch import AbsolutePath, Job, run_as_process
from realign_pipes.sweep.evaluate import Evaluator
from realign_pipes.sweep.kinds import Candidate
from realign_pipes.tasks.parameters import Problems


class Generations(BaseModel):
    """What the stage makes: Parquet files of graded completions, by candidate."""

    sweep: dict[str, Path]
    budgets: dict[str, Path]


class MeasureCandidates(Job[Generations]):
    """Measure the candidates, or find them finished in `work`."""

    parameters: AlphaSweep
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

    def run(self) -> Generations:
        """The completions of all candidates.

        Raises MissingFileError or InputError, before anything is decoded, for a checkpoint that is missing or was
        trained from another reference, and for completions that could be longer than the models' positions.
        """
        problems = Dataset.load_from_disk(str(self.problems))
        sweep, budgets = self._sweep_candidates(), self._budget_candidates()
        tokenizer = check_pair(self.reference, self.aligned)
        self._check_lengths(problems)
        evaluator = Evaluator(
            problems,
            self.tasks,
            fingerprints=self._fingerprints([*sweep, *budgets]),
            tokenizer=tokenizer,
            work=self.work,
        )
        sampling = self.parameters.sampling
        return Generations(sweep=evaluator.evaluate(sweep, sampling), budgets=evaluator.evaluate(budgets, sampling))

    def completions(self) -> int:
        """How many completions the sweep draws, those inside token budgets not counted."""
        problems = len(Dataset.load_from_disk(str(self.problems)))
        return len(self._sweep_candidates()) * problems * self.parameters.sampling.samples

    def _sweep_candidates(self) -> list[Candidate]:
        """MissingFileError if a checkpoint that the parameters of trra name is missing."""
        students = self.trra.all_students()
        if missing := [name for name in students if name not in self.trra_checkpoints]:
            raise MissingFileError(
                f"the parameters of trra name checkpoints that are missing: {', '.join(missing)}. Train them: "
                "kedro run --pipeline trra, or dvc repro"
            )
        return [
            *self._models(),
            *self._dera(),
            *(
                Candidate(
                    one.name, one.kind, float(one.alpha), (self.trra_checkpoints[name],), plausibility=one.plausibility
                )
                for name, one in students.items()
            ),
            *(
                Candidate(
                    f"inra-{alpha:g}", "inra", alpha, (self.inra_checkpoint,), plausibility=self.inra_plausibility
                )
                for alpha in self.parameters.inra_alphas
            ),
        ]

    def _models(self) -> list[Candidate]:
        """The reference and the aligned model, and both again with DeRa's beta as a min-p of their own."""
        models = {"reference": (self.reference,), "aligned": (self.aligned,)}
        beta = self.parameters.plausibility
        plain = [Candidate(name, name, math.nan, model) for name, model in models.items()]
        min_p = [Candidate(f"{name}-min-p", name, math.nan, model, plausibility=beta) for name, model in models.items()]
        return plain + (min_p if beta > 0 else [])

    def _dera(self) -> list[Candidate]:
        """DeRa with its mask at its own alphas, and without at those where TrRa learns without one."""
        both, beta = (self.reference, self.aligned), self.parameters.plausibility
        unmasked = self.trra.unmasked_alphas() if beta > 0 else []
        return [
            *(
                Candidate(f"dera-{alpha:g}", "dera", alpha, both, plausibility=beta)
                for alpha in self.parameters.dera_alphas
            ),
            *(Candidate(f"dera-{alpha:g}-unmasked", "dera", float(alpha), both) for alpha in unmasked),
        ]

    def _budget_candidates(self) -> list[Candidate]:
        """At each token budget, InRa whose alpha follows TokenBudget, and the reference cut off there."""
        inra, reference = (self.inra_checkpoint,), (self.reference,)
        tokens, ramp = self.parameters.budgets.tokens, self.parameters.budgets.ramp
        return [
            *(
                Candidate(
                    f"token-budget-{budget}",
                    "token_budget",
                    math.nan,
                    inra,
                    budget,
                    TokenBudget(budget, ramp),
                    self.inra_plausibility,
                )
                for budget in tokens
            ),
            *(Candidate(f"truncation-{budget}", "truncation", math.nan, reference, budget) for budget in tokens),
        ]

    def _check_lengths(self, problems: Dataset) -> None:
        """Raise InputError if a completion could be longer than the positions of the reference or the aligned model.

        Trained models have the reference's positions.
        """
        prompt_ids = list(problems["prompt_ids"])
        for path in (self.reference, self.aligned):
            for name, tokens in self.parameters.longest_completions():
                check_length(prompt_ids, tokens, max_positions(path), parameter=name, model=str(path))

    def _fingerprints(self, candidates: list[Candidate]) -> dict[Path, str]:
        """Those of all checkpoints. InputError for one that was trained from another reference."""
        paths = dict.fromkeys(path for one in candidates for path in one.checkpoints)
        fingerprints = {path: fingerprint_model(path) for path in paths}
        for path in paths:
            if path in (self.reference, self.aligned):
                continue
            if read_metadata(path)["reference"]["fingerprint"] != fingerprints[self.reference]:
                stage = "inra" if path == self.inra_checkpoint else "trra"
                raise InputError(
                    f"{path} was trained from another reference than {self.reference}. Run the stage {stage} again: "
                    f"kedro run --pipeline {stage}"
                )
        return fingerprints


if __name__ == "__main__":
    run_as_process(MeasureCandidates)
