"""Thinking that is cut short; the choice of completions is tested with the demo, which uses it."""

import random

from realign_pipes.generation.rejection import cut_thinking


def test_a_cut_example_is_the_same_tokens_with_less_thinking_and_a_label_on_the_solution_alone() -> None:
    prompt, close = [1, 2], 9
    completion = [10, 11, 12, 13, close, 20, 21]
    kept = []
    rng = random.Random(0)
    for _ in range(400):
        given, learnt = cut_thinking(prompt, completion, close, rng)
        assert learnt == [20, 21]
        thinking = given[2:-1]
        assert given == [1, 2, *completion[: len(thinking)], close]
        kept.append(len(thinking))
    assert set(kept) == {0, 1, 2, 3, 4}
    assert 0.5 < kept.count(0) / 400 < 0.7  # half, and a fifth of the other half
