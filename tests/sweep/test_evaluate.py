"""Evaluating a candidate: what is counted, and what an interrupted sweep keeps."""

import pandas as pd
import pytest
import torch
from datasets import Dataset
from realign_pipes.evaluation.sampling import sample_completions
from realign_pipes.evaluation.sweep import evaluate_budgets

from realign_pipes.generation.parameters import Sampling
from realign_pipes.models.load import load_model, load_tokenizer
from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.pipelines.alpha_sweep.nodes import sweep
from realign_pipes.sweep.evaluate import Evaluator
from realign_pipes.sweep.kinds import Candidate
from realign_pipes.tasks.parameters import ReasoningGymTask

CPU = torch.device("cpu")
SAMPLING = Sampling(samples=3, temperature=1.0, top_p=1.0, max_new_tokens=12, batch_size=4, seed=1)
TASKS = {"sums": ReasoningGymTask(kind="reasoning_gym", dataset="chain_sum")}


@pytest.fixture
def checkpoints(tmp_path, make_checkpoint):
    return make_checkpoint(tmp_path / "reference", seed=1), make_checkpoint(tmp_path / "aligned", seed=2)


@pytest.fixture
def problems(tiny_tokenizer):
    rows = []
    for number, answer in enumerate(["7", "8", "9"]):
        prompt = f"<|im_start|> user 3 + {answer} <|im_end|>"
        rows.append({"id": f"p{number}", "task": "sums", "question": prompt, "answer": answer, "metadata": "{}",
                     "prompt": prompt, "prompt_ids": tiny_tokenizer(prompt).input_ids})  # fmt: skip
    return Dataset.from_list(rows)


def make_evaluator(candidate, problems, work):
    return Evaluator(
        problems,
        TASKS,
        fingerprints={path: path.name for path in candidate.checkpoints},
        tokenizer=load_tokenizer(candidate.checkpoints[0]),
        device=CPU,
        work=work / "work",
    )


def run(candidate, problems, work, sampling=SAMPLING):
    return make_evaluator(candidate, problems, work).evaluate([candidate], sampling)[candidate.name]


def test_rows_are_the_sampled_completions_with_their_lengths_and_grades(monkeypatch, tmp_path, checkpoints, problems):
    graded = []

    def grade(attempts):
        for attempt in attempts:
            graded.append((attempt.completion, attempt.answer))
            yield len(graded) % 2 == 0

    monkeypatch.setattr(sweep, "grade", grade)
    frame = run(Candidate("trra-1.5", "trra", 1.5, checkpoints[:1]), problems, tmp_path)
    model, tokenizer = load_model(checkpoints[0], device=CPU), load_tokenizer(checkpoints[0])
    expected = {}
    for batch in sample_completions(model, problems["prompt_ids"], problems["id"], SAMPLING):
        for completion in batch:
            expected[f"p{completion.prompt_index}", completion.sample] = completion
    assert len(frame) == len(expected) == 9
    assert set(frame["kind"]) == {"trra"}
    assert set(frame["alpha"]) == {1.5}
    for row in frame.itertuples():
        completion = expected[row.problem_id, row.sample]
        assert row.completion_tokens == len(completion.token_ids)
        assert row.finished == completion.finished
        text = tokenizer.decode(completion.token_ids)
        assert row.completion == text.removesuffix(tokenizer.eos_token)
    by_text = dict(zip([text for text, _ in graded], range(len(graded)), strict=True))
    for row in frame.itertuples():
        position = by_text[row.completion]
        assert row.correct == ((position + 1) % 2 == 0)
        assert graded[position][1] == {"p0": "7", "p1": "8", "p2": "9"}[row.problem_id]


def test_dera_at_the_ends_writes_what_each_model_writes(tmp_path, checkpoints, problems):
    alone = [run(Candidate(path.name, path.name, a, (path,)), problems, tmp_path) for a, path in enumerate(checkpoints)]
    for alpha, frame in enumerate(alone):
        together = run(Candidate(f"dera-{alpha}", "dera", float(alpha), checkpoints), problems, tmp_path)
        pd.testing.assert_series_equal(together["completion"], frame["completion"])
    assert not alone[0]["completion"].equals(alone[1]["completion"])


def test_alphas_of_inra_decoded_together_write_what_each_writes_alone(tmp_path, checkpoints, problems):
    """And at alpha 0 what the reference writes, at alpha 1 what the expanded model does, with the same seeds."""
    model = InRaForCausalLM.from_base(checkpoints[0])
    with torch.no_grad():
        for parameter in model.adapter_layers[0].parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.3)
    model.save_pretrained(tmp_path / "inra")
    load_tokenizer(checkpoints[0]).save_pretrained(tmp_path / "inra")
    alphas = [-0.5, 0.0, 0.6, 1.0]
    together = [Candidate(f"inra-{alpha:g}", "inra", alpha, (tmp_path / "inra",)) for alpha in alphas]
    frames = make_evaluator(together[0], problems, tmp_path / "together").evaluate(together, SAMPLING)
    assert list(frames) == [candidate.name for candidate in together]
    for candidate in together:
        alone = run(candidate, problems, tmp_path / "alone").drop(columns="seconds")
        pd.testing.assert_frame_equal(frames[candidate.name].drop(columns="seconds"), alone)
    for name, path in (("inra-0", checkpoints[0]), ("inra-1", tmp_path / "inra")):
        stock = run(Candidate("reference", "reference", 0.0, (path,)), problems, tmp_path / name)
        pd.testing.assert_series_equal(frames[name]["completion"], stock["completion"])
    assert len({tuple(frame["completion"]) for frame in frames.values()}) == 4


def test_only_alphas_that_are_new_are_decoded(monkeypatch, tmp_path, checkpoints, problems):
    InRaForCausalLM.from_base(checkpoints[0]).save_pretrained(tmp_path / "inra")
    load_tokenizer(checkpoints[0]).save_pretrained(tmp_path / "inra")
    candidates = [Candidate(f"inra-{alpha:g}", "inra", alpha, (tmp_path / "inra",)) for alpha in (0.0, 0.5, 1.5)]
    evaluator = make_evaluator(candidates[0], problems, tmp_path)
    decoded = []
    generate = Evaluator._generate
    monkeypatch.setattr(
        Evaluator, "_generate", lambda self, todo, *rest: decoded.append(todo) or generate(self, todo, *rest)
    )
    evaluator.evaluate(candidates[:2], SAMPLING)
    evaluator.evaluate(candidates, SAMPLING)
    assert decoded == [candidates[:2], candidates[2:]]


def test_alphas_that_were_decoded_together_are_so_again_after_a_kill_between_their_files(
    monkeypatch, tmp_path, checkpoints, problems
):
    InRaForCausalLM.from_base(checkpoints[0]).save_pretrained(tmp_path / "inra")
    load_tokenizer(checkpoints[0]).save_pretrained(tmp_path / "inra")
    candidates = [Candidate(f"inra-{alpha:g}", "inra", alpha, (tmp_path / "inra",)) for alpha in (0.0, 0.5, 1.5)]
    evaluator = make_evaluator(candidates[0], problems, tmp_path)
    evaluator.evaluate(candidates[:1], SAMPLING)
    join = sweep._join

    def killed(parts, whole):
        if whole.parent.name == "inra-1.5":
            raise KeyboardInterrupt
        join(parts, whole)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sweep, "_join", killed)
        evaluator.evaluate(candidates, SAMPLING)
    assert (tmp_path / "work" / "inra-0.5" / "generations.parquet").exists()
    decoded = []
    generate = Evaluator._generate
    monkeypatch.setattr(
        Evaluator, "_generate", lambda self, todo, *rest: decoded.append(todo) or generate(self, todo, *rest)
    )
    evaluator.evaluate(candidates, SAMPLING)
    evaluator.evaluate(candidates, SAMPLING)
    assert decoded == [candidates[1:]]


def test_budgets_cut_the_reference_off_and_never_let_inra_past(tmp_path, checkpoints, problems):
    InRaForCausalLM.from_base(checkpoints[0]).save_pretrained(tmp_path / "inra")
    load_tokenizer(checkpoints[0]).save_pretrained(tmp_path / "inra")
    whole = Candidate("reference", "reference", 0.0, (checkpoints[0],))
    evaluator = make_evaluator(whole, problems, tmp_path)
    evaluator.fingerprints = {checkpoints[0]: "a", tmp_path / "inra": "b"}
    frames = evaluate_budgets(evaluator, checkpoints[0], tmp_path / "inra", [3, 7], 0.5, SAMPLING)
    assert list(frames) == ["truncation-3", "token-budget-3", "truncation-7", "token-budget-7"]
    everything = evaluator.evaluate([whole], SAMPLING)["reference"]
    for name, frame in frames.items():
        budget = int(name.rpartition("-")[2])
        assert set(frame["budget"]) == {budget}
        assert frame["completion_tokens"].max() <= budget
        # An untrained adapter is the identity, so both are the reference's completions, cut off.
        assert frame["finished"].equals(everything["finished"] & (everything["completion_tokens"] <= budget))
        for row, of_all in zip(frame.itertuples(), everything.itertuples(), strict=True):
            assert of_all.completion.startswith(row.completion)


def test_a_finished_candidate_is_read_and_not_measured_again(monkeypatch, tmp_path, checkpoints, problems):
    candidate = Candidate("reference", "reference", 0.0, checkpoints[:1])
    first = run(candidate, problems, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "_generate", lambda *args, **kwargs: pytest.fail("measured again"))
        pd.testing.assert_frame_equal(run(candidate, problems, tmp_path), first)
    other = run(candidate, problems, tmp_path, SAMPLING.model_copy(update={"seed": 2}))
    assert not other["completion"].equals(first["completion"])
