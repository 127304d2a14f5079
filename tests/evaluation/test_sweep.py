"""Evaluating a candidate: what is counted, and what an interrupted sweep keeps."""

import pandas as pd
import pytest
import torch
from datasets import Dataset

from realign_pipes.evaluation import sweep
from realign_pipes.evaluation.sampling import sample_completions
from realign_pipes.evaluation.sweep import Candidate, evaluate
from realign_pipes.parameters import ReasoningGymTask, Sampling
from realign_pipes.realignment.checkpoints import load_model, load_tokenizer

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


def run(candidate, problems, work, sampling=SAMPLING):
    fingerprints = {path: path.name for path in candidate.checkpoints}
    tokenizer = load_tokenizer(candidate.checkpoints[0])
    return evaluate(
        candidate,
        fingerprints,
        problems,
        TASKS,
        sampling,
        tokenizer=tokenizer,
        device=CPU,
        work=work / "work" / candidate.name,
    )


def test_rows_are_the_sampled_completions_with_their_lengths_and_grades(monkeypatch, tmp_path, checkpoints, problems):
    graded = []

    def grade(task, prompt, completion, answer, metadata):
        graded.append((completion, answer))
        return len(graded) % 2 == 0

    monkeypatch.setattr(sweep, "is_correct", grade)
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


def test_a_finished_candidate_is_read_and_not_measured_again(monkeypatch, tmp_path, checkpoints, problems):
    candidate = Candidate("reference", "reference", 0.0, checkpoints[:1])
    first = run(candidate, problems, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "_generate", lambda *args, **kwargs: pytest.fail("measured again"))
        pd.testing.assert_frame_equal(run(candidate, problems, tmp_path), first)
    other = run(candidate, problems, tmp_path, SAMPLING.model_copy(update={"seed": 2}))
    assert not other["completion"].equals(first["completion"])
