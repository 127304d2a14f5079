"""The job of the stage find_alpha: search the alpha on a knob, train a student there, and confirm it.

A knob is a kind of candidate whose alpha can be anything without a training: the merge of the two models (one model to
run), InRa (one model, two streams) and DeRa (two models). Tokens depend on alpha nearly alike on all of them and in
TrRa's students; correctness does not, as the merge has no mask on implausible tokens.
"""

import logging
import math
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset
from pydantic import BaseModel

from realign_pipes.errors import InputError
from realign_pipes.generation.graded import check_length
from realign_pipes.generation.parameters import Generation
from realign_pipes.generation.servers import make_servers
from realign_pipes.models.card import read_metadata
from realign_pipes.models.fingerprint import fingerprint_model
from realign_pipes.models.load import check_pair, load_model, max_positions
from realign_pipes.paper.merging import check_mergeable
from realign_pipes.pipelines.find_alpha.parameters import FindAlpha, Knob, Measurement
from realign_pipes.pipelines.trra.job import check_on_policy, train_student
from realign_pipes.pipelines.trra.parameters import StudentName, TrRa
from realign_pipes.runtime.launch import AbsolutePath, Job, run_as_process
from realign_pipes.runtime.tracking import NOT_TRACKED, Tracking
from realign_pipes.sweep.evaluate import Evaluator
from realign_pipes.sweep.kinds import Candidate
from realign_pipes.sweep.metrics import compare, read_answers, saved_interval
from realign_pipes.sweep.parameters import AlphaSweep
from realign_pipes.sweep.search import LoseAtMost, Measured, Save, UnreachableError, bisect, corrected, describe
from realign_pipes.tasks.parameters import Problems
from realign_pipes.teachers.fused import FusedTeachers
from realign_pipes.teachers.parameters import Teachers

logger = logging.getLogger(__name__)


class Found(BaseModel):
    """What the stage makes."""

    checkpoint: Path
    """The student at the alpha found."""
    knob: str
    """The kind that was searched on."""
    steps: list[Measured]
    """All that was measured on the problems of the search, in order: the knobs, then the students."""
    confirmed: Measured
    """The student, on the confirming problems."""
    completions_drawn: int
    """In the search and to confirm, the reference's among them."""


class SearchAlpha(Job[Found]):
    """Find the alpha that fulfils the wish. What an interrupted run measured or trained is found in `work`."""

    parameters: FindAlpha
    generation: Generation
    alpha_sweep: AlphaSweep
    """How completions are drawn, and how often the bootstrap resamples."""
    trra: TrRa
    """How students are trained."""
    teachers: Teachers
    tasks: dict[str, Problems]
    reference: AbsolutePath
    aligned: AbsolutePath
    inra_checkpoint: AbsolutePath
    examples: AbsolutePath
    """The calibration set."""
    teacher_cache: AbsolutePath
    search_problems: AbsolutePath
    confirming_problems: AbsolutePath
    chat_template: AbsolutePath | None = None
    """A file with the chat template that the checkpoint gets; None: the reference's own."""
    attn_implementation: str | None = None
    work: AbsolutePath
    students: AbsolutePath
    """The work folder of the stage trra, whose finished students are not trained again."""
    tracking: Tracking = NOT_TRACKED

    def run(self) -> Found:
        """The student at the alpha found, its figures, and all steps of the search.

        InputError, before anything is drawn, for models that do not fit together or have too few positions, for a
        student that cannot be trained on-policy, and for a knob that cannot be opened; after the ends of all knobs were
        measured, for a wish that is beyond all of them.
        """
        wish = self.parameters.wish()
        teachers = FusedTeachers(
            self.reference,
            self.aligned,
            Dataset.load_from_disk(str(self.examples)),
            teachers=self.teachers,
            teacher_cache=self.teacher_cache,
            attn_implementation=self.attn_implementation,
        )
        if self.trra.on_policy:
            check_on_policy(self.trra, teachers, self.chat_template)
        knobs = [knob for knob in self.parameters.knobs if self._serves(knob)]
        search = _Bench(self, self.search_problems, self.parameters.search, self.work / "search")
        confirm = _Bench(self, self.confirming_problems, self.parameters.confirm, self.work / "confirm")
        on_knob = self._search(knobs, search)
        if on_knob.alpha == 0:
            least = min((one for one in search.measured if one.alpha != 0), key=lambda one: abs(one.alpha))
            raise InputError(
                f"only the reference itself, alpha 0, fulfils {wish.text()}: {describe(least)}. Wish for something "
                "that another alpha can fulfil, or raise find_alpha.search.share to measure more precisely."
            )
        student = self._measure_student(search, on_knob.alpha, self._train(on_knob.alpha, teachers))
        if wish.missed_by(student) > self.parameters.retrain:
            alpha = corrected([one for one in search.measured if one.kind == on_knob.kind], on_knob, student, wish)
            logger.info("the student at alpha %g misses the wish: once more at alpha %g", student.alpha, alpha)
            second = self._measure_student(search, alpha, self._train(alpha, teachers))
            student = wish.best([student, second])
        checkpoint = self._train(student.alpha, teachers)
        confirmed = self._measure_student(confirm, student.alpha, checkpoint)
        return Found(
            checkpoint=checkpoint,
            knob=on_knob.kind,
            steps=search.measured,
            confirmed=confirmed,
            completions_drawn=search.drawn + confirm.drawn,
        )

    def _serves(self, knob: Knob) -> bool:
        """Whether a knob tells how the students will do.

        InputError for models whose weights cannot be merged, and for an InRa of another reference.
        """
        if knob.kind == "merge":
            if isinstance(self.parameters.wish(), LoseAtMost):
                logger.info("not searched on merge: it has no mask, and loses pass@1 where students do not")
                return False
            cpu = torch.device("cpu")
            try:
                check_mergeable(*(load_model(path, device=cpu) for path in (self.reference, self.aligned)))
            except InputError as error:
                raise InputError(f"{error} For this, take merge out of find_alpha.knobs.") from None
        if knob.kind == "inra":
            about = read_metadata(self.inra_checkpoint)
            if about["method"] != "InRa (trra)" or about["parameters"]["trra"]["alpha"] != 1:
                logger.info("not searched on InRa: at its alpha 1 it is its own adapter, not the aligned model")
                return False
            if about["reference"]["fingerprint"] != fingerprint_model(self.reference):
                raise InputError(
                    f"{self.inra_checkpoint} was trained from another reference than {self.reference}. Train it again: "
                    "kedro run --pipeline inra"
                )
        return True

    def _search(self, knobs: Sequence[Knob], bench: "_Bench") -> Measured:
        """What fulfils the wish on the first knob whose ends lie on both sides of it."""
        wish = self.parameters.wish()
        ends = []
        for knob in knobs:
            zero = bench.reference_itself(knob.kind)
            backwards = isinstance(wish, Save) and wish.share < 0
            end = self._measure_knob(bench, knob.kind, knob.lowest if backwards else knob.highest)
            ends.append(end)
            try:
                return bisect(
                    partial(self._measure_knob, bench, knob.kind),
                    *((end, zero) if backwards else (zero, end)),
                    wish,
                    tolerance=self.parameters.tolerance,
                    steps=self.parameters.steps,
                )
            except UnreachableError:
                logger.info("%s cannot fulfil the wish", knob.kind)
        if isinstance(wish, LoseAtMost) and ends:  # no end loses more than that: the furthest alpha saves the most
            return wish.best(ends)
        given = "; ".join(map(describe, ends)) or "none of find_alpha.knobs serves this wish"
        raise InputError(
            f"no alpha fulfils {wish.text()}: {given}. Wish for less, or give find_alpha.knobs another knob or a wider "
            "range."
        )

    def _measure_knob(self, bench: "_Bench", kind: str, alpha: float) -> Measured:
        """With the mask of the students' teacher, where the kind has one."""
        checkpoints = (self.inra_checkpoint,) if kind == "inra" else (self.reference, self.aligned)
        beta = 0.0 if kind == "merge" else self.trra.plausibility
        return bench.measure(Candidate(f"{kind}-{alpha:g}", kind, alpha, checkpoints, plausibility=beta))

    def _train(self, alpha: float, teachers: FusedTeachers) -> Path:
        """The checkpoint of the student at `alpha`, trained now or found finished."""
        student = StudentName(f"trra-{alpha:g}", "trra", alpha, self.trra.plausibility)
        return train_student(
            student, self.aligned, teachers, self.trra, self.students, self.chat_template, self.tracking
        )

    def _measure_student(self, bench: "_Bench", alpha: float, checkpoint: Path) -> Measured:
        return bench.measure(
            Candidate(f"trra-{alpha:g}", "trra", alpha, (checkpoint,), plausibility=self.trra.plausibility)
        )


class _Bench:
    """Measures candidates against the reference on one set of problems, and counts what is drawn for it."""

    def __init__(self, job: SearchAlpha, problems: Path, measurement: Measurement, work: Path) -> None:
        """InputError if a completion could be longer than the positions of the reference or the aligned model."""
        self.job, self.work, self.problems = job, work, Dataset.load_from_disk(str(problems))
        self.tokenizer = check_pair(job.reference, job.aligned)
        self.sampling = job.alpha_sweep.sampling.model_copy(
            update={"samples": measurement.samples, "seed": measurement.seed}
        )
        for path in (job.reference, job.aligned):
            check_length(
                list(self.problems["prompt_ids"]),
                self.sampling.max_new_tokens,
                max_positions(path),
                parameter="alpha_sweep.sampling.max_new_tokens",
                model=str(path),
            )
        self.servers = make_servers(job.generation, work / "served")
        self.measured: list[Measured] = []
        self.drawn = 0
        self._reference: pd.DataFrame | None = None

    def measure(self, candidate: Candidate) -> Measured:
        """The candidate's figures, drawn now or found in the work folder. They are kept in `measured`."""
        frames = {"reference": self._reference_frame(), candidate.name: self._draw(candidate)}
        samples, seed = self.job.alpha_sweep.bootstrap_samples, self.job.alpha_sweep.bootstrap_seed
        answers = read_answers(frames)
        figures = compare(list(answers.values.values()), answers.reference)
        row = answers.about["candidate"].tolist().index(candidate.name)
        low, high = saved_interval(*frames.values(), bootstrap_samples=samples, bootstrap_seed=seed)
        measured = Measured(
            kind=candidate.kind,
            alpha=candidate.alpha,
            saved=figures["token_reduction"][row],
            saved_low=low,
            saved_high=high,
            pass_at_1=figures["pass_at_1"][row],
            difference=figures["difference"][row],
            difference_low=figures["difference_low"][row],
        )
        self.measured.append(measured)
        logger.info("%s: %s", self.work.name, describe(measured))
        return measured

    def reference_itself(self, kind: str) -> Measured:
        """Alpha 0 of a knob: the reference, which saves and loses nothing against itself."""
        reference = self._reference_frame()
        # Of equally many samples of each problem, over the tasks that have answers; NaN if none has.
        pass_at_1 = float(reference.groupby("task")["correct"].mean().dropna().astype(float).mean())
        none = dict.fromkeys(("saved", "saved_low", "saved_high", "difference", "difference_low"), 0.0)
        self.measured.append(Measured(kind=kind, alpha=0.0, pass_at_1=pass_at_1, **none))
        return self.measured[-1]

    def _reference_frame(self) -> pd.DataFrame:
        if self._reference is None:
            self._reference = self._draw(Candidate("reference", "reference", math.nan, (self.job.reference,)))
        return self._reference

    def _draw(self, candidate: Candidate) -> pd.DataFrame:
        # An evaluator for each candidate: it keeps its last engine open, where a student may be trained next.
        evaluator = Evaluator(
            self.problems,
            {name: task.model_copy(update={"samples": None}) for name, task in self.job.tasks.items()},
            fingerprints={path: fingerprint_model(path) for path in candidate.checkpoints},
            tokenizer=self.tokenizer,
            work=self.work,
            servers=self.servers,
            attn_implementation=self.job.attn_implementation,
        )
        with closing(evaluator):
            frame = pd.read_parquet(evaluator.evaluate([candidate], self.sampling)[candidate.name])
        self.drawn += len(frame)
        return frame


if __name__ == "__main__":
    run_as_process(SearchAlpha)
