"""What InRa's adapter learns from: every row against the completion that it was made from."""

import pytest
from datasets import Dataset

from realign_pipes.data.prompts import render_prompt
from realign_pipes.pipelines.data_prep.nodes import make_preference_pairs, make_short_solutions
from realign_pipes.pipelines.data_prep.parameters import DataPrep

COMPLETIONS = [  # problem, completion, right, finished
    ("a", "1 + 2 = 3 so 3</think> 3<answer>3</answer>", True, True),
    ("a", "1 + 2 = 3</think> it is 3<answer>3</answer>", True, True),
    ("a", "1 + 2 = 4</think> 4<answer>4</answer>", False, True),
    ("a", "1 + 2 = 1 + 2 = 1 + 2", False, False),
    ("b", "</think> 5<answer>5</answer>", True, True),
    ("c", "what</think>", False, True),
    ("d", "x</think> 7</think> 7<answer>7</answer>", True, True),  # thinks twice
]


def make_samples(tokenizer) -> Dataset:
    rows = []
    for number, (problem, completion, correct, finished) in enumerate(COMPLETIONS):
        prompt, prompt_ids = render_prompt(tokenizer, f"problem {problem}")
        ids = tokenizer(completion, add_special_tokens=False)["input_ids"]
        ids += [tokenizer.eos_token_id] if finished else []
        rows.append({"id": f"{problem}-{number}", "problem_id": problem, "prompt": prompt, "prompt_ids": prompt_ids,
                     "prompt_tokens": len(prompt_ids), "completion": completion, "completion_ids": ids,
                     "completion_tokens": len(ids), "correct": correct, "finished": finished})  # fmt: skip
    return Dataset.from_list(rows)


@pytest.fixture
def thinking(tmp_path, make_checkpoint, thinking_tokenizer):
    """A reference whose template opens the thinking, and samples of it."""
    return make_checkpoint(tmp_path / "thinking", tokenizer=thinking_tokenizer), make_samples(thinking_tokenizer)


def parameters(sampled, cut_share: float) -> DataPrep:
    return DataPrep.model_validate({**sampled().model_dump(), "short_solutions": {"cut_share": cut_share}})


def test_solutions_stand_after_no_thinking(thinking, sampled, thinking_tokenizer) -> None:
    reference, samples = thinking
    made = make_short_solutions(parameters(sampled, 0.0), reference, samples)
    assert made["id"][:] == ["a-0", "a-1", "b-4"]
    for row in made:
        whole = samples[samples["id"][:].index(row["id"])]
        assert row["completion"] == "</think>" + whole["completion"].split("</think>")[1]
        assert (row["prompt"], row["prompt_ids"]) == (whole["prompt"], whole["prompt_ids"])
        assert thinking_tokenizer.decode(row["completion_ids"]) == row["completion"] + "<|im_end|>"
        assert (row["thinking_tokens"], row["prompt_tokens"]) == (0, len(row["prompt_ids"]))
        assert row["completion_tokens"] == len(row["completion_ids"])


def test_some_prompts_hold_the_thinking_up_to_a_random_token(thinking, sampled, thinking_tokenizer) -> None:
    reference, samples = thinking
    kept = set()
    for seed in range(30):
        settings = parameters(sampled, 1.0).model_copy(update={"seed": seed})
        for row in make_short_solutions(settings, reference, samples):
            whole = samples[samples["id"][:].index(row["id"])]
            before, _, solution = whole["completion"].partition("</think>")
            held = thinking_tokenizer.decode(row["prompt_ids"]).removeprefix(whole["prompt"])
            assert row["prompt"] == whole["prompt"] + held
            assert before.startswith(held)
            assert len(held) == row["thinking_tokens"]  # one token a byte
            assert row["completion"] == "</think>" + solution
            if row["id"] == "b-4":
                assert held == ""  # there is no thinking to cut
            else:
                assert held
            if row["id"] == "a-1":
                kept.add(len(held))
    assert max(kept) == 9 and len(kept) > 5  # up to all of "1 + 2 = 3"


def test_a_template_that_leaves_the_thinking_to_the_model_gets_solutions_without_tags(
    tmp_path, make_checkpoint, tiny_tokenizer, sampled
) -> None:
    reference, samples = make_checkpoint(tmp_path / "plain"), make_samples(tiny_tokenizer)
    made = make_short_solutions(parameters(sampled, 0.0), reference, samples)
    assert made["completion"][:] == ["3<answer>3</answer>", "it is 3<answer>3</answer>", "5<answer>5</answer>"]
    cut = make_short_solutions(parameters(sampled, 1.0), reference, samples)
    assert cut["completion"][0] == "</think> 3<answer>3</answer>"


def test_pairs_are_short_and_right_against_long_or_wrong(thinking, thinking_tokenizer) -> None:
    reference, samples = thinking
    pairs = make_preference_pairs(reference, samples)
    # b's only completion is as short as its solution; c has no right one; d thinks twice
    assert pairs["id"][:] == ["a-2", "a-3", "a-1"]
    assert pairs["rejected_correct"][:] == [False, False, True]
    for pair in pairs:
        whole = samples[samples["id"][:].index(pair["id"])]
        assert pair["chosen"] == "</think> 3<answer>3</answer>"
        assert thinking_tokenizer.decode(pair["chosen_ids"]) == pair["chosen"] + "<|im_end|>"
        assert (pair["rejected"], pair["rejected_ids"]) == (whole["completion"], whole["completion_ids"])
        for part in ("prompt", "chosen", "rejected"):
            assert pair[f"{part}_tokens"] == len(pair[f"{part}_ids"])


def test_one_seed_gives_the_same_solutions(thinking, sampled) -> None:
    reference, samples = thinking
    first, again = (make_short_solutions(parameters(sampled, 0.5), reference, samples)[:] for _ in range(2))
    assert first == again
