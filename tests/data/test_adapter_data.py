"""What InRa's adapter learns from: every row against the completion that it was made from."""

import pytest
from datasets import Dataset

from realign_pipes.data.adapter_data import make_preference_pairs, make_short_solutions
from realign_pipes.data.prompts import render_prompt
from realign_pipes.data.schemas import PAIR_COLUMNS, SOLUTION_COLUMNS
from realign_pipes.errors import InputError
from realign_pipes.pipelines.data_prep import nodes
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


def make_samples(tokenizer, tags=("<think>", "</think>")) -> Dataset:
    rows = []
    for number, (problem, text, correct, finished) in enumerate(COMPLETIONS):
        completion = text.replace("</think>", tags[1])
        prompt, prompt_ids = render_prompt(tokenizer, f"problem {problem}")
        ids = tokenizer(completion, add_special_tokens=False)["input_ids"]
        ids += [tokenizer.eos_token_id] if finished else []
        rows.append(
            {
                "id": f"{problem}-{number}",
                "problem_id": problem,
                "prompt": prompt,
                "thinking": "required",
                "answer": "",
                "think_open": tags[0],
                "think_close": tags[1],
                "prompt_ids": prompt_ids,
                "prompt_tokens": len(prompt_ids),
                "completion": completion,
                "completion_ids": ids,
                "completion_tokens": len(ids),
                "correct": correct,
                "finished": finished,
            }
        )
    return Dataset.from_list(rows)


@pytest.fixture
def samples(thinking_tokenizer) -> Dataset:
    """Those of a reference whose template opens the thinking."""
    return make_samples(thinking_tokenizer)


def test_solutions_stand_after_no_thinking(samples, thinking_tokenizer) -> None:
    made = make_short_solutions(thinking_tokenizer, samples, cut_share=0.0, seed=5)
    assert made.features == SOLUTION_COLUMNS
    assert made["id"][:] == ["a-0", "a-1", "b-4"]
    for row in made:
        whole = samples[samples["id"][:].index(row["id"])]
        assert row["completion"] == "</think>" + whole["completion"].split("</think>")[1]
        assert (row["prompt"], row["prompt_ids"]) == (whole["prompt"], whole["prompt_ids"])
        assert thinking_tokenizer.decode(row["completion_ids"]) == row["completion"] + "<|im_end|>"
        assert (row["thinking_tokens"], row["prompt_tokens"]) == (0, len(row["prompt_ids"]))
        assert row["completion_tokens"] == len(row["completion_ids"])


def test_examples_that_are_too_long_are_left_out(samples, thinking_tokenizer) -> None:
    whole = make_short_solutions(thinking_tokenizer, samples, cut_share=0.0, seed=5)
    lengths = [row["prompt_tokens"] + row["completion_tokens"] for row in whole]
    most = sorted(lengths)[1]
    made = make_short_solutions(thinking_tokenizer, samples, cut_share=0.0, seed=5, max_tokens=most)
    assert made["id"][:] == [name for name, length in zip(whole["id"], lengths, strict=True) if length <= most]
    assert 0 < len(made) < len(whole)
    with pytest.raises(InputError, match="no solution fits into 3 tokens"):
        make_short_solutions(thinking_tokenizer, samples, cut_share=0.0, seed=5, max_tokens=3)


def test_some_prompts_hold_the_thinking_up_to_a_random_token(samples, thinking_tokenizer) -> None:
    kept = set()
    for seed in range(30):
        for row in make_short_solutions(thinking_tokenizer, samples, cut_share=1.0, seed=seed):
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


def test_a_template_that_leaves_the_thinking_to_the_model_gets_solutions_without_tags(tiny_tokenizer) -> None:
    samples = make_samples(tiny_tokenizer)
    made = make_short_solutions(tiny_tokenizer, samples, cut_share=0.0, seed=5)
    assert made["completion"][:] == ["3<answer>3</answer>", "it is 3<answer>3</answer>", "5<answer>5</answer>"]
    cut = make_short_solutions(tiny_tokenizer, samples, cut_share=1.0, seed=5)
    assert cut["completion"][0] == "</think> 3<answer>3</answer>"


def test_solutions_after_thinking_between_other_tags(thinking_tokenizer) -> None:
    """The same as between the usual ones, with the tag in the place of the tag."""
    thinking_tokenizer.chat_template = thinking_tokenizer.chat_template.replace("<think>", "[T]")
    samples = make_samples(thinking_tokenizer, ("[T]", "[/T]"))
    made = make_short_solutions(thinking_tokenizer, samples, cut_share=0.0, seed=5)
    assert made["id"][:] == ["a-0", "a-1", "b-4"]
    assert made["completion"][0] == "[/T] 3<answer>3</answer>"
    assert made["prompt"][0].endswith("assistant\n[T]\n")
    assert set(made["think_close"]) == {"[/T]"}
    pairs = make_preference_pairs(thinking_tokenizer, samples)
    assert set(pairs["chosen"]) == {"[/T] 3<answer>3</answer>"}


def test_pairs_are_short_and_right_against_long_or_wrong(samples, thinking_tokenizer) -> None:
    pairs = make_preference_pairs(thinking_tokenizer, samples)
    assert pairs.features == PAIR_COLUMNS
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


def test_a_longer_completion_of_the_same_text_is_no_pair(tiny_tokenizer) -> None:
    """Where nothing thinks, a right completion and its solution may differ by the newlines before it alone."""
    row = make_samples(tiny_tokenizer)[0]
    ids = tiny_tokenizer("\n\n3", add_special_tokens=False)["input_ids"] + [tiny_tokenizer.eos_token_id]
    row |= {"thinking": "none", "completion": "\n\n3", "completion_ids": ids, "completion_tokens": len(ids)}
    assert len(make_preference_pairs(tiny_tokenizer, Dataset.from_list([row]))) == 0


def test_one_seed_gives_the_same_solutions(samples, thinking_tokenizer) -> None:
    first, again, other = (
        make_short_solutions(thinking_tokenizer, samples, cut_share=0.5, seed=seed)[:] for seed in (5, 5, 6)
    )
    assert first == again != other


def test_nodes_hand_over_the_parameters(
    tmp_path, make_checkpoint, thinking_tokenizer, samples, sampled, models
) -> None:
    """cut_share and seed; and the chat template of a file, which says how a turn ends."""
    reference = make_checkpoint(tmp_path / "thinking", tokenizer=thinking_tokenizer)
    parameters = DataPrep.model_validate(
        {**sampled().model_dump(), "short_solutions": {"source": "samples", "cut_share": 1.0, "max_tokens": None}}
    )
    expected = make_short_solutions(thinking_tokenizer, samples, cut_share=1.0, seed=parameters.seed)
    assert nodes.make_short_solutions(parameters, models(), reference, samples)[:] == expected[:]
    pairs = make_preference_pairs(thinking_tokenizer, samples)
    assert nodes.make_preference_pairs(parameters, models(), reference, samples)[:] == pairs[:]
    template = tmp_path / "other.jinja"
    template.write_text(thinking_tokenizer.chat_template.replace("<|im_end|>", "<|im_start|>"))
    end = thinking_tokenizer.convert_tokens_to_ids("<|im_start|>")
    made = nodes.make_short_solutions(parameters, models(chat_template=template), reference, samples)
    assert all(ids[-1] == end for ids in made["completion_ids"])
    made = nodes.make_preference_pairs(parameters, models(chat_template=template), reference, samples)
    assert all(ids[-1] == end for ids in made["chosen_ids"])
