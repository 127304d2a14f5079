"""The job of the stage alpha_sweep: measure every candidate, and thinking inside token budgets."""

import math
from pathlib import Path

from datasets import Dataset
from pydantic import BaseModel

from realign_pipes.errors import InputError, MissingFileError
from realign_pipes.models.card import read_metadata
from realign_pipes.models.fingerprint import fingerprint_model
from realign_pipes.models.load import check_pair, default_device
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
    reference: AbsolutePath
    aligned: AbsolutePath
    trra_checkpoints: dict[str, AbsolutePath]
    inra_checkpoint: AbsolutePath
    problems: AbsolutePath
    """The evaluation set."""
    work: AbsolutePath

    def run(self) -> Generations:
        """All completions.

        FileNotFoundError or ValueError, before anything is decoded, for a checkpoint that is missing or was trained
        from another reference.
        """
        candidates, inra = self._candidates()
        evaluator = Evaluator(
            Dataset.load_from_disk(str(self.problems)),
            self.tasks,
            fingerprints=self._fingerprints(candidates),
            tokenizer=check_pair(self.reference, self.aligned),
            device=default_device(),
            work=self.work,
        )
        sampling, sweep, budgets = self.parameters.sampling, {}, {}
        for together in [*([candidate] for candidate in candidates), inra]:  # InRa's alphas are one model
            sweep.update(evaluator.evaluate(together, sampling))
        for candidate in self._budget_candidates():
            within = sampling.model_copy(update={"max_new_tokens": candidate.budget})
            budgets.update(evaluator.evaluate([candidate], within))
        return Generations(sweep=sweep, budgets=budgets)

    def _candidates(self) -> tuple[list[Candidate], list[Candidate]]:
        """All candidates but InRa's, and InRa's."""
        named = {alpha: self.trra.checkpoint_names(alpha) for alpha in self.trra.alphas}
        wanted = [name for names in named.values() for name in names]
        if missing := [name for name in wanted if name not in self.trra_checkpoints]:
            raise MissingFileError(
                f"the parameters of trra name checkpoints that are not there: {', '.join(missing)}. Train them: "
                "kedro run --pipeline trra, or dvc repro"
            )
        both = (self.reference, self.aligned)
        candidates = [
            Candidate("reference", "reference", math.nan, (self.reference,)),
            Candidate("aligned", "aligned", math.nan, (self.aligned,)),
            *(Candidate(f"dera-{alpha:g}", "dera", alpha, both) for alpha in self.parameters.dera_alphas),
            *(
                Candidate(
                    Path(name).name, "trra_iter" if iteration else "trra", float(alpha), (self.trra_checkpoints[name],)
                )
                for alpha, names in named.items()
                for iteration, name in enumerate(names)
            ),
        ]
        inra = [
            Candidate(f"inra-{alpha:g}", "inra", alpha, (self.inra_checkpoint,))
            for alpha in self.parameters.inra_alphas
        ]
        return candidates, inra

    def _budget_candidates(self) -> list[Candidate]:
        """At each token budget, the reference cut off there and InRa whose alpha follows TokenBudget."""
        budgets = self.parameters.budgets
        candidates = []
        for tokens in budgets.tokens:
            schedule = TokenBudget(tokens, budgets.ramp)
            candidates += [
                Candidate(f"truncation-{tokens}", "truncation", math.nan, (self.reference,), tokens),
                Candidate(
                    f"token-budget-{tokens}", "token_budget", math.nan, (self.inra_checkpoint,), tokens, schedule
                ),
            ]
        return candidates

    def _fingerprints(self, candidates: list[Candidate]) -> dict[Path, str]:
        """Those of all checkpoints, after checking that what was trained was trained from this reference."""
        fingerprints = {path: fingerprint_model(path) for path in (self.reference, self.aligned)}
        stages = {one.checkpoints[0]: "trra" for one in candidates if one.kind.startswith("trra")}
        for path, stage in {**stages, self.inra_checkpoint: "inra"}.items():
            if read_metadata(path)["reference"]["fingerprint"] != fingerprints[self.reference]:
                raise InputError(
                    f"{path} was trained from another reference than {self.reference}. Run the stage {stage} again: "
                    f"kedro run --pipeline {stage}"
                )
            fingerprints[path] = fingerprint_model(path)
        return fingerprints


if __name__ == "__main__":
    run_as_process(MeasureCandidates)
