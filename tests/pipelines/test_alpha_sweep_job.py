"""Which candidates a sweep measures, and what is refused before anything is decoded."""

import json
import math
from types import SimpleNamespace

import pytest
from datasets import Dataset
from pydantic import ValidationError

from realign_pipes.data.parameters import Models
from realign_pipes.errors import InputError, MissingFileError
from realign_pipes.generation.transformers_engine import TransformersEngine
from realign_pipes.models.fingerprint import fingerprint_model
from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.paper.schedules import TokenBudget
from realign_pipes.pipelines.alpha_sweep.job import MeasureCandidates
from realign_pipes.pipelines.alpha_sweep.nodes import sweep
from realign_pipes.pipelines.data_prep.parameters import DataPrep
from realign_pipes.pipelines.trra.parameters import TrRa
from realign_pipes.runtime.launch import Folders, Launcher
from realign_pipes.sweep.evaluate import Evaluator
from realign_pipes.sweep.parameters import AlphaSweep

STUDENTS = ("1/trra-1", "1.5/trra-1.5", "1.5/trra-iter1-1.5", "1.5/trra-1.5-unmasked")
TASK = {"kind": "dataset", "path": "unused", "verifier": "exact"}


def make_parameters(**changes):
    sampling = {"samples": 1, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8, "batch_size": 4, "seed": 1}
    return AlphaSweep.model_validate(
        {
            "dera_alphas": [0.5],
            "inra_alphas": [0.0, -0.25],
            "merge_alphas": [2],
            "ties": {"alphas": [1.0], "density": 0.3},
            "svd": {"alphas": [1.5], "rank": 3},
            "lora_scale_alphas": [0.5],
            "plausibility": 0.1,
            "close_biases": [2.0],
            "others": {},
            "prompts": {"brief": "Be brief."},
            "budgets": {"tokens": [6, 3], "ramp": 0.25, "answer_tokens": 2},
            "bootstrap_samples": 10,
            "bootstrap_seed": 1,
            **changes,
            "sampling": {**sampling, **changes.get("sampling", {})},
        }
    )


def make_trra(**changes):
    values = {
        "alphas": [1, 1.5],
        "only_alpha": None,
        "iterations": 1,
        "iteration_alphas": [1.5],
        "plausibility": 0.2,
        "ablation_alphas": [1.5],
        "scaled_lora": False,
        "divergence": "forward_kl",
        "temperature": 1.0,
        "chunk_tokens": 7,
        "adapter": "full",
        "lora": {"rank": 4, "alpha": 8, "merge": False},
        "on_policy": 0,
        "on_policy_sampling": {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8, "batch_size": 8},
        "steps": 4,
        "batch_size": 8,
        "micro_batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_ratio": 0.0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
        "save_steps": 2,
        "seed": 5,
    }
    return TrRa.model_validate({**values, **changes})


def trained_from(reference, path):
    """Note in the checkpoint `path`, as the stages trra and inra do, what it was trained from."""
    metadata = {"reference": {"name": reference.name, "fingerprint": fingerprint_model(reference)}}
    (path / "realignment.json").write_text(json.dumps(metadata))
    return path


@pytest.fixture
def problems(tmp_path, tiny_tokenizer):
    """Three problems whose prompts have 6, 7 and 8 tokens."""
    rows = [
        {"id": f"p{n}", "task": "sums", "question": "?", "answer": "7", "metadata": "{}", "prompt": "1 + 1 "[: 5 + n],
         "messages": [{"role": "user", "content": "?"}],
         "prompt_ids": tiny_tokenizer("3 + 4 = "[: 6 + n]).input_ids, "think_open": "<think>",
         "think_close": "</think>"}
        for n in range(3)
    ]  # fmt: skip
    Dataset.from_list(rows).save_to_disk(tmp_path / "problems")
    return tmp_path / "problems"


@pytest.fixture
def make_job(tmp_path, make_checkpoint, make_generation, problems):
    """`make_job(**fields)`: a job on tiny checkpoints; `positions` has those of the reference and the aligned model."""

    def make(positions=(512, 512), **fields):
        reference, aligned = (
            make_checkpoint(tmp_path / name, seed=seed, max_position_embeddings=limit)
            for seed, (name, limit) in enumerate(zip(("reference", "aligned"), positions, strict=True))
        )
        students = {
            name: trained_from(reference, make_checkpoint(tmp_path / name.replace("/", "-"), seed=2 + seed))
            for seed, name in enumerate(STUDENTS)
        }
        InRaForCausalLM.from_base(reference).save_pretrained(tmp_path / "inra")
        values = {
            "parameters": make_parameters(),
            "generation": make_generation(),
            "tasks": {"sums": TASK},
            "trra": make_trra(),
            "inra_plausibility": 0.3,
            "reference": reference,
            "aligned": aligned,
            "trra_checkpoints": students,
            "inra_checkpoint": trained_from(reference, tmp_path / "inra"),
            "problems": problems,
            "work": tmp_path / "work",
        }
        return MeasureCandidates.model_validate({**values, **fields})

    return make


@pytest.fixture
def evaluated(monkeypatch):
    """The candidates that are evaluated, without decoding: (candidate, sampling)."""
    calls = []

    def evaluate(self, candidates, sampling):
        calls.extend((candidate, sampling) for candidate in candidates)
        return {candidate.name: self.work / candidate.name for candidate in candidates}

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    return calls


def test_candidates_are_those_of_the_parameters(make_job, evaluated, tmp_path):
    job = make_job()
    made = job.run()
    described = [
        (c.name, c.kind, c.alpha, [p.name for p in c.checkpoints], c.budget, c.schedule, c.plausibility, c.close_at)
        for c, _ in evaluated
    ]
    nan = math.nan
    assert str(described) == str(
        [
            ("reference", "reference", nan, ["reference"], None, None, 0.0, None),
            ("aligned", "aligned", nan, ["aligned"], None, None, 0.0, None),
            ("reference-min-p", "reference", nan, ["reference"], None, None, 0.1, None),
            ("aligned-min-p", "aligned", nan, ["aligned"], None, None, 0.1, None),
            ("close-bias-2", "close_bias", 2.0, ["reference"], None, None, 0.0, None),
            ("prompt-brief", "prompt", nan, ["reference"], None, None, 0.0, None),
            ("dera-0.5", "dera", 0.5, ["reference", "aligned"], None, None, 0.1, None),
            ("dera-1.5-unmasked", "dera", 1.5, ["reference", "aligned"], None, None, 0.0, None),
            ("merge-2", "merge", 2.0, ["reference", "aligned"], None, None, 0.0, None),
            ("ties-1", "ties", 1.0, ["reference", "aligned"], None, None, 0.0, None),
            ("svd-1.5", "svd", 1.5, ["reference", "aligned"], None, None, 0.0, None),
            ("trra-1", "trra", 1.0, ["1-trra-1"], None, None, 0.2, None),
            ("trra-1.5", "trra", 1.5, ["1.5-trra-1.5"], None, None, 0.2, None),
            ("trra-iter1-1.5", "trra_iter", 1.5, ["1.5-trra-iter1-1.5"], None, None, 0.2, None),
            ("trra-1.5-unmasked", "trra", 1.5, ["1.5-trra-1.5-unmasked"], None, None, 0.0, None),
            ("inra-0", "inra", 0.0, ["inra"], None, None, 0.3, None),
            ("inra--0.25", "inra", -0.25, ["inra"], None, None, 0.3, None),
            ("token-budget-6", "token_budget", nan, ["inra"], 6, TokenBudget(6, 0.25), 0.3, 4),
            ("token-budget-3", "token_budget", nan, ["inra"], 3, TokenBudget(3, 0.25), 0.3, 1),
            ("forced-close-6", "forced_close", nan, ["reference"], 6, None, 0.0, 4),
            ("forced-close-3", "forced_close", nan, ["reference"], 3, None, 0.0, 1),
            ("truncation-6", "truncation", nan, ["reference"], 6, None, 0.0, None),
            ("truncation-3", "truncation", nan, ["reference"], 3, None, 0.0, None),
        ]
    )
    assert [(c.name, c.instruction) for c, _ in evaluated if c.instruction] == [("prompt-brief", "Be brief.")]
    assert [(c.name, c.rank) for c, _ in evaluated if c.rank] == [("svd-1.5", 3)]
    assert {sampling for _, sampling in evaluated} == {job.parameters.sampling}
    assert list(made.sweep) == [name for name, *_ in described[:17]]
    assert list(made.budgets) == [name for name, *_ in described[17:]]
    assert made.sweep["trra-1"] == tmp_path / "work" / "trra-1"


def test_only_the_checkpoints_that_trra_names_are_measured(make_job, evaluated):
    make_job(trra=make_trra(alphas=[1.5], iterations=0)).run()
    assert [c.name for c, _ in evaluated if c.kind.startswith("trra")] == ["trra-1.5", "trra-1.5-unmasked"]


def test_where_there_is_no_mask_nothing_is_measured_without_one(make_job, evaluated):
    make_job(
        parameters=make_parameters(plausibility=0.0), trra=make_trra(plausibility=0.0), inra_plausibility=0.0
    ).run()
    assert [c.name for c, _ in evaluated if c.plausibility or "unmasked" in c.name or "min-p" in c.name] == []
    assert len(evaluated) == 19


def test_dera_without_mask_has_the_alphas_of_trra_s_ablation(make_job, evaluated):
    """Those that are among TrRa's alphas: an environment may change these alone."""
    make_job(trra=make_trra(ablation_alphas=[7.0, 1.5])).run()
    assert [c.name for c, _ in evaluated if "unmasked" in c.name] == ["dera-1.5-unmasked", "trra-1.5-unmasked"]


def test_the_lora_student_is_measured_at_each_of_its_alphas(make_job, evaluated, tmp_path, make_checkpoint):
    job = make_job(trra=make_trra(scaled_lora=True), parameters=make_parameters(lora_scale_alphas=[0.5, 2]))
    lora = trained_from(job.reference, make_checkpoint(tmp_path / "lora", seed=9))
    job = job.model_copy(update={"trra_checkpoints": {**job.trra_checkpoints, "1/trra-lora-1": lora}})
    job.run()
    found = [(c.name, c.kind, c.alpha, c.checkpoints, c.plausibility) for c, _ in evaluated if "lora" in c.name]
    assert found == [(f"lora-scale-{alpha:g}", "lora_scale", alpha, (lora,), 0.2) for alpha in (0.5, 2.0)]


def test_others_are_rows_of_their_own(make_job, evaluated, tmp_path, make_checkpoint):
    """They were trained from whatever, so that nothing is known of it; but on the reference's tokenizer."""
    theirs = make_checkpoint(tmp_path / "theirs", seed=9, vocab_padding=5)
    costs = make_job(others={"theirs-2": theirs}).run().costs
    (found,) = [c for c, _ in evaluated if c.kind == "other"]
    assert (found.name, found.checkpoints, math.isnan(found.alpha)) == ("other-theirs-2", (theirs,), True)
    assert costs["other-theirs-2"].train_seconds is None
    assert costs["other-theirs-2"].bytes == (theirs / "model.safetensors").stat().st_size


def test_what_candidates_cost_is_read_from_their_checkpoints(make_job, evaluated):
    """A further round has cost the one before it. Only what is loaded besides the reference counts on disk."""
    job = make_job()
    for number, path in enumerate([*job.trra_checkpoints.values(), job.inra_checkpoint], start=1):
        (path / "curves").mkdir()
        noted = {"train_seconds": 10.0**number} if path.name != "1-trra-1" else {}  # as an older version left it
        (path / "curves" / "metrics.json").write_text(json.dumps({"step": 4, **noted}))
    costs = job.run().costs
    seconds = {name: cost.train_seconds for name, cost in costs.items()}
    assert seconds.pop("trra-1") is None
    assert {name: number for name, number in seconds.items() if number} == {
        "trra-1.5": 100, "trra-iter1-1.5": 1100, "trra-1.5-unmasked": 10_000, "inra-0": 100_000, "inra--0.25": 100_000,
    }  # fmt: skip
    size = (job.aligned / "model.safetensors").stat().st_size
    assert {name for name, cost in costs.items() if cost.bytes == 0} == {
        "reference", "reference-min-p", "close-bias-2", "prompt-brief",
    }  # fmt: skip
    for name in ("aligned", "aligned-min-p", "dera-0.5", "dera-1.5-unmasked", "merge-2", "ties-1", "trra-1"):
        assert costs[name].bytes == size
    # Four bytes for each of 3 x (inputs + outputs) of q, k, v, o, gate, up and down, in two layers of 32 and 64.
    assert costs["svd-1.5"].bytes == 4 * 3 * 2 * (64 + 48 + 48 + 64 + 3 * 96)
    assert costs["inra-0"].bytes == (job.inra_checkpoint / "model.safetensors").stat().st_size > size


@pytest.fixture
def nothing_decoded(monkeypatch):
    monkeypatch.setattr(Evaluator, "evaluate", lambda *_: pytest.fail("decodes"))
    monkeypatch.setattr(TransformersEngine, "of_checkpoint", lambda *_: pytest.fail("a model was loaded"))


@pytest.mark.usefixtures("nothing_decoded")
class TestRefusals:
    def test_a_checkpoint_that_is_missing(self, make_job):
        with pytest.raises(MissingFileError, match=r"are missing: 2/trra-2. Train them: kedro run --pipeline trra"):
            make_job(trra=make_trra(alphas=[1.5, 2])).run()

    def test_another_checkpoint_with_another_tokenizer(self, make_job, tmp_path, make_checkpoint, thinking_tokenizer):
        thinking_tokenizer.add_tokens(["<another>"])
        theirs = make_checkpoint(tmp_path / "theirs", tokenizer=thinking_tokenizer)
        with pytest.raises(InputError, match=r"tokenizers of .*reference and .*theirs differ"):
            make_job(others={"theirs": theirs}).run()

    def test_another_checkpoint_with_too_few_positions(self, make_job, tmp_path, make_checkpoint):
        theirs = make_checkpoint(tmp_path / "theirs", max_position_embeddings=9)
        with pytest.raises(InputError, match=r"max_position_embeddings of .*theirs is 9"):
            make_job(others={"theirs": theirs}).run()

    @pytest.mark.parametrize(("name", "stage"), [("1-trra-1", "trra"), ("inra", "inra")])
    def test_a_checkpoint_of_another_reference(self, make_job, tmp_path, name, stage):
        job = make_job()
        (tmp_path / name / "realignment.json").write_text('{"reference": {"fingerprint": "another"}}')
        with pytest.raises(InputError, match=rf"{name} was trained from another .*kedro run --pipeline {stage}"):
            job.run()

    @pytest.mark.parametrize(
        ("positions", "changes", "message"),
        [
            (
                (15, 512),
                {"prompts": {}},
                "sampling.max_new_tokens is 8 .* 16 tokens, but .*reference is 15. Set .* to 7",
            ),
            ((512, 15), {"prompts": {}}, "sampling.max_new_tokens is 8 .* 16 tokens, but .*aligned is 15. Set .* to 7"),
            (
                (16, 16),
                {"budgets": {"tokens": [8, 9, 3], "ramp": 0.5, "answer_tokens": 2}, "prompts": {}},
                "budgets.tokens is 9 .* longest prompt has 8 tokens. .* 17 tokens, but .*reference is 16. Set .* to 8",
            ),
        ],
    )
    def test_completions_longer_than_the_positions(self, make_job, positions, changes, message):
        with pytest.raises(InputError, match=rf"^alpha_sweep.{message}"):
            make_job(positions, parameters=make_parameters(**changes)).run()

    @pytest.mark.parametrize("kind", ["merge", "ties", "svd"])
    def test_weights_that_cannot_be_merged(self, make_job, make_checkpoint, tmp_path, kind):
        aligned = make_checkpoint(tmp_path / "wide", vocab_padding=3)
        parameters = make_parameters(
            merge_alphas=[0.5] if kind == "merge" else [],
            ties={"alphas": [1.0] if kind == "ties" else [], "density": 0.3},
            svd={"alphas": [1.0], "rank": 4} if kind == "svd" else None,
        )
        job = make_job(parameters=parameters).model_copy(update={"aligned": aligned})
        with pytest.raises(InputError, match=r"model.embed_tokens.weight is .* Set alpha_sweep.merge_alphas and"):
            job.run()


def test_weights_that_are_not_merged_need_not_fit(make_job, evaluated, make_checkpoint, tmp_path):
    parameters = make_parameters(merge_alphas=None, ties={"alphas": None, "density": 0.3}, svd=None)
    job = make_job(parameters=parameters)
    job.model_copy(update={"aligned": make_checkpoint(tmp_path / "wide", vocab_padding=3)}).run()
    assert {c.kind for c, _ in evaluated} & {"merge", "ties", "svd"} == set()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"plausibility": 1.0}, "plausibility"),
        ({"plausibility": -0.1}, "plausibility"),
        ({"ties": {"alphas": [1.0], "density": 0.0}}, "ties.density"),
        ({"ties": {"alphas": [1.0], "density": 1.0}}, "ties.density"),
        ({"ties": {"alphas": [1.0, 1.0], "density": 0.5}}, "ties"),
        ({"merge_alphas": [1.0, 1.0]}, "contain a value twice"),
        ({"lora_scale_alphas": [0.5, 0.5]}, "contain a value twice"),
        ({"svd": {"alphas": [0.5, 0.5], "rank": 4}}, "contain a value twice"),
        ({"svd": {"alphas": [0.5], "rank": 513}}, "rank is 513, and vLLM serves no LoRA adapter above 512"),
    ],
)
def test_wrong_parameters_are_refused(changes, named):
    with pytest.raises(ValidationError, match=named):
        make_parameters(**changes)


@pytest.mark.usefixtures("nothing_decoded")
def test_questions_with_an_instruction_have_to_fit_too(make_job, tiny_tokenizer):
    """Their prompts are longer than any other: the question's one byte, two line breaks and the instruction's nine."""
    longest = len(tiny_tokenizer("<|im_start|>user\n?\n\nBe brief.<|im_end|>\n<|im_start|>assistant\n").input_ids)
    limit = longest + 7
    refused = rf"max_new_tokens is 8 and the longest prompt has {longest} tokens.*reference is {limit}"
    with pytest.raises(InputError, match=refused):
        make_job((limit, limit)).run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": {"tokens": [6, 3], "ramp": 0.5, "answer_tokens": 3}}, r"(?s)budgets.*answer_tokens is 3, which le"
         r"aves nothing of the budget 3 for thinking. Set answer_tokens to less"),
        ({"budgets": {"tokens": [3], "ramp": 0.5, "answer_tokens": 0}}, r"answer_tokens(?s:.*)greater than 0"),
        ({"close_biases": [1, 1.0]}, "contain a value twice"),
        ({"prompts": {"a/b": "Be brief."}}, "prompts(?s:.*)should match pattern"),
        ({"prompts": {"brief": " "}}, "prompts.brief(?s:.*)at least 1 character"),
    ],
)  # fmt: skip
def test_parameters_that_make_no_candidate_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_parameters(**changes)
    make_parameters(budgets={"tokens": [], "ramp": 0.5, "answer_tokens": 3})


def test_completions_that_just_fit_are_drawn(make_job, tmp_path):
    """The longest prompt has 8 tokens. And the job's results are files of graded completions."""
    import pandas as pd

    made = make_job((16, 16), parameters=make_parameters(prompts={})).run()
    frames = {name: pd.read_parquet(file) for name, file in {**made.sweep, **made.budgets}.items()}
    assert len(frames) == 22 and all(len(frame) == 3 for frame in frames.values())
    for name in ("truncation-3", "forced-close-3", "token-budget-3"):
        assert frames[name]["completion_tokens"].max() <= 3
    pd.testing.assert_series_equal(frames["inra-0"]["completion"], frames["reference"]["completion"])


def test_the_node_names_checkpoints_that_it_leaves_out(make_job, make_generation, tmp_path, sampled_data_prep, caplog):
    job = make_job()
    left = {**job.trra_checkpoints, "0.75/trra-0.75": job.reference}
    arguments = {
        "data_prep": sampled_data_prep,
        "trra": job.trra,
        "models": Models(chat_template=None, thinking=None),
        "inra": SimpleNamespace(plausibility=0.3),
        "generation": make_generation(),
        "launcher": Launcher(num_processes=1, config_file=None),
        "folders": Folders(work=tmp_path / "node", logs=tmp_path, validation=tmp_path),
        "reference_model": job.reference,
        "aligned_model": job.aligned,
        "trra_checkpoints": left,
        "inra_checkpoint": job.inra_checkpoint,
        "evaluation_set": Dataset.load_from_disk(str(job.problems)),
    }
    generations, budgets, results, costs = sweep(make_parameters(), **arguments)
    assert "not measured, as the parameters of trra do not name them: 0.75/trra-0.75" in caplog.text
    assert list(generations) == list(costs) == [*job.run().sweep]
    assert costs["reference"] == {"train_seconds": 0, "bytes": 0}
    names = [f"{kind}-{budget}" for budget in (3, 6) for kind in ("truncation", "forced-close", "token-budget")]
    assert set(budgets) == set(names)
    assert results["candidate"].tolist() == names


@pytest.fixture
def sampled_data_prep():
    """Parameters of data_prep with the one task of the problems."""
    return DataPrep.model_validate(
        {
            "seed": 1,
            "instruction": None,
            "thinking": "required",
            "calibration": {"source": "dataset", "path": "x", "keep": "all", "min_tokens": 1, "max_tokens": 9},
            "short_solutions": {"source": "samples", "cut_share": 0.0, "max_tokens": None},
            "preference_pairs": {"source": "samples"},
            "tasks": {"sums": TASK},
        }
    )
