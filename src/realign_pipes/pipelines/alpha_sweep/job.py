"""The job of the stage alpha_sweep: measure every candidate, and thinking inside token budgets."""

import math
from pathlib import Path

from datasets import Dataset
from pydantic import BaseModel
from transformers import PreTrainedTokenizerFast

from realign_pipes.data.prompts import render_instructed
from realign_pipes.errors import InputError, MissingFileError
from realign_pipes.generation.graded import check_length
from realign_pipes.models.card import read_metadata
from realign_pipes.models.fingerprint import fingerprint_model
from realign_pipes.models.load import check_pair, load_chat_tokenizer, max_positions
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
    chat_template: AbsolutePath | None = None
    """In place of the reference's own; for the candidates with an instruction."""

    def run(self) -> Generations:
        """The completions of all candidates.

        Raises MissingFileError or InputError, before anything is decoded, for a checkpoint that is missing or was
        trained from another reference, and for completions that could be longer than the models' positions.
        """
        problems = Dataset.load_from_disk(str(self.problems))
        sweep, budgets = self._sweep_candidates(), self._budget_candidates()
        check_pair(self.reference, self.aligned)
        tokenizer = load_chat_tokenizer(self.reference, self.chat_template)
        self._check_lengths(problems, tokenizer)
        evaluator = Evaluator(
            problems,
            self.tasks,
            fingerprints=self._fingerprints([*sweep, *budgets]),
            tokenizer=tokenizer,
            work=self.work,
        )
        sampling = self.parameters.sampling
        return Generations(sweep=evaluator.evaluate(sweep, sampling), budgets=evaluator.evaluate(budgets, sampling))

    def _sweep_candidates(self) -> list[Candidate]:
        """MissingFileError if a checkpoint that the parameters of trra name is missing."""
        named = {alpha: self.trra.checkpoint_names(alpha) for alpha in self.trra.alphas}
        wanted = [name for names in named.values() for name in names]
        if missing := [name for name in wanted if name not in self.trra_checkpoints]:
            raise MissingFileError(
                f"the parameters of trra name checkpoints that are missing: {', '.join(missing)}. Train them: "
                "kedro run --pipeline trra, or dvc repro"
            )
        both = (self.reference, self.aligned)
        return [
            Candidate("reference", "reference", math.nan, (self.reference,)),
            *(
                Candidate(f"close-bias-{bias:g}", "close_bias", bias, (self.reference,))
                for bias in self.parameters.close_biases
            ),
            *(
                Candidate(f"prompt-{name}", "prompt", math.nan, (self.reference,), instruction=instruction)
                for name, instruction in self.parameters.prompts.items()
            ),
            Candidate("aligned", "aligned", math.nan, (self.aligned,)),
            *(Candidate(f"dera-{alpha:g}", "dera", alpha, both) for alpha in self.parameters.dera_alphas),
            *(
                Candidate(
                    Path(name).name, "trra_iter" if iteration else "trra", float(alpha), (self.trra_checkpoints[name],)
                )
                for alpha, names in named.items()
                for iteration, name in enumerate(names)
            ),
            *(
                Candidate(f"inra-{alpha:g}", "inra", alpha, (self.inra_checkpoint,))
                for alpha in self.parameters.inra_alphas
            ),
        ]

    def _budget_candidates(self) -> list[Candidate]:
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

    def _check_lengths(self, problems: Dataset, tokenizer: PreTrainedTokenizerFast) -> None:
        """Raise InputError if a completion could be longer than the positions of the reference or the aligned model.

        Trained models have the reference's positions.
        """
        prompt_ids = [
            *problems["prompt_ids"],
            *(
                render_instructed(tokenizer, question, instruction)[1]
                for instruction in self.parameters.prompts.values()
                for question in problems["question"]
            ),
        ]
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
