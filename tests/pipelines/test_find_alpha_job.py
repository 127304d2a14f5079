"""Finding an alpha: on made-up completions whose savings are known, and once with real (tiny, random) models."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import yaml
from datasets import Dataset
from pydantic import ValidationError

from realign_pipes.data.parameters import Models
from realign_pipes.errors import InputError
from realign_pipes.models.fingerprint import fingerprint_model
from realign_pipes.models.load import load_model
from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.pipelines.data_prep.parameters import DataPrep
from realign_pipes.pipelines.find_alpha import job as module
from realign_pipes.pipelines.find_alpha.job import Found, SearchAlpha
from realign_pipes.pipelines.find_alpha.nodes import draw_problems, search_alpha
from realign_pipes.pipelines.find_alpha.parameters import FindAlpha
from realign_pipes.pipelines.inra.parameters import InRa
from realign_pipes.pipelines.trra.parameters import TrRa
from realign_pipes.runtime.launch import Folders, Launcher, run_written_job, write_job
from realign_pipes.runtime.tracking import NOT_TRACKED
from realign_pipes.sweep.evaluate import Evaluator
from realign_pipes.sweep.parameters import AlphaSweep
from realign_pipes.sweep.schemas import GENERATIONS, conform
from realign_pipes.teachers.parameters import Teachers

BASE = Path(__file__).parents[2] / "conf" / "base"
TASK = {"kind": "dataset", "path": "unused", "verifier": "exact"}
SMALL = {"max_new_tokens": 8, "batch_size": 4}


def base(kind, stage, **changes):
    """The parameters of conf/base with some changes."""
    return kind.model_validate({**yaml.safe_load((BASE / f"parameters_{stage}.yml").read_text())[stage], **changes})


def make_parameters(**changes):
    measurement = {"share": 1.0, "samples": 1}
    few = {"search": {**measurement, "seed": 1}, "confirm": {**measurement, "seed": 2}}
    return base(FindAlpha, "find_alpha", **{**few, **changes})


def make_sweep():
    sampling = yaml.safe_load((BASE / "parameters_alpha_sweep.yml").read_text())["alpha_sweep"]["sampling"]
    return base(AlphaSweep, "alpha_sweep", sampling={**sampling, **SMALL}, bootstrap_samples=50)


def make_trra():
    return base(TrRa, "trra", steps=2, batch_size=4, micro_batch_size=4, save_steps=2)


def write_problems(path, tokenizer, ids):
    rows = [
        {"id": name, "task": "sums", "question": name, "answer": "7", "metadata": "{}", "prompt": "3 + 4 =",
         "messages": [{"role": "user", "content": name}],
         "prompt_ids": tokenizer("3 + 4 = "[: 6 + number % 3]).input_ids, "think_open": "<think>",
         "think_close": "</think>"}
        for number, name in enumerate(ids)
    ]  # fmt: skip
    Dataset.from_list(rows).save_to_disk(path)
    return path


@pytest.fixture
def pair(tmp_path, make_checkpoint):
    """A reference and an aligned checkpoint whose weights can be merged."""
    return make_checkpoint(tmp_path / "reference", seed=1), make_checkpoint(tmp_path / "aligned", seed=2)


@pytest.fixture
def make_job(tmp_path, pair, examples, make_generation, tiny_tokenizer):
    """`make_job(inra="trra", **parameters)`: a job on tiny checkpoints; `inra` is how the adapter was trained."""
    examples.save_to_disk(tmp_path / "examples")
    InRaForCausalLM.from_base(pair[0]).save_pretrained(tmp_path / "inra")

    def make(inra="sft", **parameters):
        about = {"method": f"InRa ({inra})", "parameters": {"trra": {"alpha": 1.0}} if inra == "trra" else {},
                 "reference": {"name": "reference", "fingerprint": fingerprint_model(pair[0])}}  # fmt: skip
        (tmp_path / "inra" / "realignment.json").write_text(json.dumps(about))
        return SearchAlpha(
            parameters=make_parameters(**parameters),
            generation=make_generation(),
            alpha_sweep=make_sweep(),
            trra=make_trra(),
            teachers=Teachers(mode="online", dtype="auto", batch_size=4, shard_tokens=12),
            tasks={"sums": TASK},
            reference=pair[0],
            aligned=pair[1],
            inra_checkpoint=tmp_path / "inra",
            examples=tmp_path / "examples",
            teacher_cache=tmp_path / "no_cache",
            search_problems=write_problems(tmp_path / "search", tiny_tokenizer, ["s0", "s1"]),
            confirming_problems=write_problems(tmp_path / "confirm", tiny_tokenizer, ["c0", "c1", "c2"]),
            work=tmp_path / "work",
            students=tmp_path / "students",
        )

    return make


class World:
    """What candidates do: each kind a function alpha -> (share saved, share lost). Nothing is decoded or trained."""

    graded = True

    def __init__(self, folder, **kinds):
        self.folder, self.kinds, self.evaluated, self.trained = folder, kinds, [], []

    def evaluate(self, evaluator, candidates, sampling):
        (candidate,) = candidates
        self.evaluated.append((candidate.name, candidate.plausibility, sampling.seed, sampling.samples))
        saved, lost = self.kinds[candidate.kind](candidate.alpha) if candidate.kind in self.kinds else (0.0, 0.0)
        rows = [
            {"candidate": candidate.name, "kind": candidate.kind, "alpha": candidate.alpha,
             "plausibility": candidate.plausibility, "engine": "none", "task": "sums", "problem_id": question.id,
             "sample": sample, "completion": "", "completion_tokens": round(10_000 * (1 - saved)), "finished": True,
             "correct": (sample + 0.5) / sampling.samples > 0.1 + lost if self.graded else None, "seconds": 1.0}
            for question in evaluator.questions
            for sample in range(sampling.samples)
        ]  # fmt: skip
        file = self.folder / f"{candidate.name}.parquet"
        conform(pd.DataFrame(rows), GENERATIONS).to_parquet(file)
        return {candidate.name: file}

    def train(self, student, *arguments):
        self.trained.append((student.alpha, student.plausibility))
        return self.folder / "students" / student.name


@pytest.fixture
def world(tmp_path, monkeypatch):
    """`world(merge=…, dera=…, trra=…)` replaces drawing and training."""

    def make(**kinds):
        made = World(tmp_path, **kinds)

        def evaluate(self, candidates, sampling):
            return made.evaluate(self, candidates, sampling)

        monkeypatch.setattr(Evaluator, "evaluate", evaluate)
        monkeypatch.setattr(module, "train_student", made.train)
        students = tmp_path / "students"
        monkeypatch.setattr(
            module, "fingerprint_model", lambda path: path.name if students in path.parents else fingerprint_model(path)
        )
        return made

    return make


def saves(rate, lost=0.0):
    """Tokens saved rise by `rate` with alpha, up to a half; the loss by `lost`."""
    return lambda alpha: (min(rate * alpha, 0.5), max(lost * alpha, 0.0))


def test_the_knob_finds_the_alpha_and_the_student_confirms_it(make_job, world):
    told = world(merge=saves(0.2), trra=saves(0.2))
    found = make_job(save=0.4, tolerance=0.001, knobs=[{"kind": "merge", "lowest": -1, "highest": 3}]).run()
    assert found.confirmed.alpha == pytest.approx(2.0, abs=0.01)
    assert (found.knob, found.confirmed.kind) == ("merge", "trra")
    assert found.confirmed.saved == pytest.approx(0.4, abs=0.002)
    assert found.checkpoint.name == f"trra-{found.confirmed.alpha:g}"
    assert [one.alpha for one in found.steps][:4] == [0.0, 3.0, 1.5, 2.25]
    assert [one.kind for one in found.steps] == ["merge"] * (len(found.steps) - 1) + ["trra"]
    seeds = [seed for _, _, seed, _ in told.evaluated]
    assert seeds == [1] * (len(found.steps)) + [2, 2]  # the reference, all steps but alpha 0; then to confirm
    assert found.completions_drawn == 2 * len(found.steps) + 2 * 3
    assert set(told.trained) == {(found.confirmed.alpha, make_trra().plausibility)}


def test_alpha_0_is_as_right_as_the_reference_where_it_is_graded(make_job, world, monkeypatch):
    """A task without answers takes no part in the mean."""
    world()
    made = make_job()
    bench = module._Bench(made, made.search_problems, made.parameters.search, made.work / "search")
    answers = {"task": ["a", "a", "b", "b", "c"], "correct": [True, False, True, True, None]}
    bench._reference = pd.DataFrame(answers).astype({"correct": "boolean"})
    assert bench.reference_itself("dera").pass_at_1 == 0.75
    bench._reference["correct"] = pd.array([None] * 5, dtype="boolean")
    assert math.isnan(bench.reference_itself("dera").pass_at_1)


def test_what_was_found_without_answers_comes_back_from_its_processes(make_job, world, tmp_path):
    """pass@1 is NaN there, for which JSON has no name."""
    world(merge=saves(0.2), trra=saves(0.2)).graded = False
    write_job(make_job(save=0.4), tmp_path / "launch")
    run_written_job(SearchAlpha, tmp_path / "launch")
    found = Found.model_validate_json((tmp_path / "launch" / "result.json").read_text())
    assert found.confirmed.alpha == pytest.approx(2.0, abs=0.05)
    assert math.isnan(found.confirmed.pass_at_1) and math.isnan(found.confirmed.difference)


def test_a_student_that_misses_the_wish_is_trained_once_more(make_job, world):
    """It saves a tenth more than the knob, so that the alpha where the knob saves 0.3 is needed."""
    told = world(merge=saves(0.2), trra=lambda alpha: (0.1 + 0.2 * alpha, 0.0))
    found = make_job(save=0.4, tolerance=0.001, knobs=[{"kind": "merge", "lowest": -1, "highest": 2.5}]).run()
    assert sorted({alpha for alpha, _ in told.trained}) == pytest.approx([1.5, 2.0], abs=0.02)
    assert found.confirmed.alpha == pytest.approx(1.5, abs=0.02)
    assert found.confirmed.saved == pytest.approx(0.4, abs=0.005)
    assert [one.kind for one in found.steps[-2:]] == ["trra", "trra"]


def test_the_next_knob_takes_what_the_first_cannot_fulfil(make_job, world):
    told = world(merge=saves(0.1), dera=saves(0.1), trra=saves(0.1))
    found = make_job(save=0.4, knobs=[{"kind": "merge", "lowest": -1, "highest": 3},
                                      {"kind": "dera", "lowest": -1, "highest": 10}]).run()  # fmt: skip
    assert found.knob == "dera" and found.confirmed.saved == pytest.approx(0.4, abs=0.011)
    assert {(name.partition("-")[0], beta) for name, beta, *_ in told.evaluated} == {
        ("reference", 0.0), ("merge", 0.0), ("dera", make_trra().plausibility), ("trra", make_trra().plausibility)
    }  # fmt: skip


def test_a_wish_to_write_more_is_searched_below_zero(make_job, world):
    world(merge=saves(0.2), trra=saves(0.2))
    found = make_job(save=-0.1).run()
    assert found.confirmed.alpha == pytest.approx(-0.5, abs=0.06)
    assert found.steps[1].alpha == -1


def test_a_wish_that_no_alpha_fulfils_says_what_the_ends_give(make_job, world):
    told = world(merge=saves(0.1), dera=saves(0.07, lost=0.05))
    with pytest.raises(InputError) as error:
        make_job(save=0.6).run()
    assert str(error.value) == (
        "no alpha fulfils the wish to save 60 % of the tokens: merge at alpha 3 saves 30.0 % of the tokens at a pass@1 "
        "of 100.0 % (+0.0 points); dera at alpha 10 saves 50.0 % of the tokens at a pass@1 of 0.0 % (-100.0 points). "
        "Wish for less, or give find_alpha.knobs another knob or a wider range."
    )
    assert told.trained == []


def test_a_wish_that_only_the_reference_fulfils_is_refused(make_job, world):
    told = world(dera=lambda alpha: (0.1, 0.5))
    with pytest.raises(
        InputError, match=r"only the reference itself, alpha 0, .* lose at most 1 points.*: dera at alpha"
    ):
        make_job(lose_at_most=0.01, steps=2).run()
    assert told.trained == []


def test_weights_that_cannot_be_merged_are_refused_before_anything_is_drawn(make_job, world, pair, make_checkpoint):
    told = world()
    job = make_job(save=0.4)
    make_checkpoint(pair[1], seed=2, intermediate_size=32)
    with pytest.raises(InputError, match=r"cannot be merged: .*mlp.* take merge out of find_alpha.knobs"):
        job.run()
    assert told.evaluated == []


def test_a_student_that_cannot_draw_is_refused_before_the_search(make_job, world):
    told = world()
    drawing = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 600, "batch_size": 4}
    trra = base(TrRa, "trra", on_policy=1.0, on_policy_sampling=drawing)
    with pytest.raises(InputError, match=r"trra\.on_policy_sampling\.max_new_tokens is 600 and the longest prompt has"):
        make_job(save=0.4).model_copy(update={"trra": trra}).run()
    assert told.evaluated == []


MANY = {"share": 1.0, "samples": 200}


def test_a_loss_is_searched_where_there_is_a_mask(make_job, world):
    """Merge loses ten times as much, which says nothing about a student."""
    told = world(merge=saves(0.2, lost=0.2), dera=saves(0.2, lost=0.02), trra=saves(0.2, lost=0.02))
    found = make_job(lose_at_most=0.04, search={**MANY, "seed": 1}, confirm={**MANY, "seed": 2}).run()
    assert found.knob == "dera"
    assert found.confirmed.alpha == pytest.approx(2.0, abs=0.3)
    assert -found.confirmed.difference <= 0.04 + 1e-9
    assert not any(name.startswith("merge") for name, *_ in told.evaluated)


def test_if_no_alpha_loses_that_much_the_furthest_is_taken(make_job, world):
    world(dera=saves(0.03), trra=saves(0.03))
    found = make_job(lose_at_most=0.01).run()
    assert (found.confirmed.alpha, found.confirmed.saved) == (10.0, pytest.approx(0.3))


@pytest.mark.parametrize(("method", "knob"), [("trra", "inra"), ("sft", "dera")])
def test_inra_serves_only_if_its_alpha_is_that_of_trra(make_job, world, method, knob):
    told = world(inra=saves(0.2), dera=saves(0.2), trra=saves(0.2))
    found = make_job(inra=method, save=0.4, knobs=[{"kind": "inra", "lowest": -1, "highest": 3},
                                                   {"kind": "dera", "lowest": -1, "highest": 10}]).run()  # fmt: skip
    assert found.knob == knob
    assert any(name.startswith("inra") for name, *_ in told.evaluated) == (knob == "inra")


def test_an_inra_of_another_reference_is_refused(make_job, world, tmp_path):
    world()
    job = make_job(inra="trra", save=0.4)
    about = json.loads((tmp_path / "inra" / "realignment.json").read_text())
    about["reference"]["fingerprint"] = "another"
    (tmp_path / "inra" / "realignment.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"another reference .* kedro run --pipeline inra"):
        job.run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"save": 0.4, "lose_at_most": 0.01}, "save and lose_at_most are both given"),
        ({"save": 0}, "save is 0"),
        ({"save": 1.0}, "less than 1"),
        ({"lose_at_most": -0.01}, "greater than or equal to 0"),
        ({"save": 0.4, "knobs": []}, "at least 1"),
        ({"save": 0.4, "confirm": {"share": 1.0, "samples": 1, "seed": 1}}, "the same seed 1"),
    ],
)
def test_wrong_wishes_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        make_parameters(**changes)


def test_a_run_without_a_wish_is_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(InputError, match=r"find_alpha needs a wish: .*--params find_alpha.save=0.4"):
        draw_problems(make_parameters(), None, None, tmp_path / "no_model", None)


@pytest.fixture
def problems_file(tmp_path):
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps({"question": f"{n} + 4 =", "answer": str(n + 4)}) + "\n" for n in range(9)))
    return file


def test_the_nodes_with_real_models(tmp_path, make_job, make_generation, problems_file, monkeypatch):
    """Random models are never right, so none loses anything and the furthest alpha of DeRa is taken. A second run
    finds all of it finished."""
    job = make_job()
    task = {**TASK, "path": str(problems_file)}
    data_prep = DataPrep.model_validate(
        {
            "seed": 1,
            "instruction": None,
            "thinking": "required",
            "calibration": {"source": "dataset", "path": "x", "keep": "all", "min_tokens": 1, "max_tokens": 9},
            "short_solutions": {"source": "samples", "cut_share": 0.0, "max_tokens": None},
            "preference_pairs": {"source": "samples"},
            "tasks": {"sums": task},
        }
    )
    parameters = make_parameters(lose_at_most=0.01, knobs=[{"kind": "dera", "lowest": 0, "highest": 2}])
    models = Models(chat_template=None, thinking=None)
    sets = draw_problems(parameters, data_prep, models, job.reference, Dataset.from_dict({"question": ["0 + 4 ="]}))
    for name, rows in zip(("drawn", "confirming", "evaluation"), (*sets, sets[1]), strict=True):
        rows.save_to_disk(tmp_path / name)
    drawn, confirming, evaluation = (
        Dataset.load_from_disk(str(tmp_path / name)) for name in ("drawn", "confirming", "evaluation")
    )
    arguments = {
        "alpha_sweep": make_sweep(),
        "data_prep": data_prep,
        "trra": job.trra,
        "inra": base(InRa, "inra"),
        "teachers": job.teachers,
        "models": models,
        "generation": make_generation(),
        "launcher": Launcher(num_processes=1, config_file=None),
        "folders": Folders(work=tmp_path / "node", logs=tmp_path, validation=tmp_path),
        "tracking": NOT_TRACKED,
        "reference_model": job.reference,
        "aligned_model": job.aligned,
        "inra_checkpoint": job.inra_checkpoint,
        "calibration_set": Dataset.load_from_disk(str(job.examples)),
        "teacher_cache": job.teacher_cache,
        "search_problems": drawn,
        "confirming_problems": confirming,
        "evaluation_set": evaluation,
    }
    found, checkpoint, figure = search_alpha(parameters, **arguments)
    assert json.loads(json.dumps(found)).keys() >= {
        "alpha", "wish", "saved", "saved_low", "saved_high", "pass_at_1", "difference", "difference_low", "knob",
        "reference_pass_at_1", "completions_drawn", "sweep_completions", "sentence", "steps",
    }  # fmt: skip
    assert (found["alpha"], found["wish"], found["knob"]) == (2.0, {"lose_at_most": 0.01}, "dera")
    assert (
        found["completions_drawn"] == 3 * 4 + 2 * 4
    )  # reference, dera and student; reference and student: half of 8 problems each
    assert found["saved_low"] <= found["saved"] <= found["saved_high"]
    assert all(math.isfinite(found[name]) for name in ("pass_at_1", "difference", "difference_low"))
    assert load_model(checkpoint, device="cpu").num_parameters() > 0
    assert [trace.name for trace in figure.data] == ["DeRa", "TrRa", "TrRa, confirmed"]

    monkeypatch.setattr("realign_pipes.sweep.evaluate.sample_and_grade", lambda *_, **__: pytest.fail("drawn again"))
    monkeypatch.setattr("realign_pipes.pipelines.trra.job.train_trra", lambda *_, **__: pytest.fail("trained again"))
    again, _, _ = search_alpha(parameters, **arguments)
    assert again == found
    one_more = make_sweep().model_copy(update={"others": {"theirs": "org/name@main"}})
    again, _, _ = search_alpha(parameters, **{**arguments, "alpha_sweep": one_more})
    assert again["sweep_completions"] == found["sweep_completions"] + len(evaluation) * one_more.sampling.samples
