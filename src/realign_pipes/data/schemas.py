"""The columns of the data sets that data_prep makes: the only lists of them. `sweep.schemas` has those of frames."""

from datasets import Features, List, Value

SAMPLE_COLUMNS = Features(
    {
        "id": Value("string"),  # of the completion
        "problem_id": Value("string"),
        "sample": Value("int32"),
        "task": Value("string"),
        "question": Value("string"),
        "answer": Value("string"),
        "metadata": Value("string"),  # JSON: what the verifier needs
        "prompt": Value("string"),  # through the chat template
        "think_open": Value("string"),  # the tags around the thinking, the same in every row
        "think_close": Value("string"),
        "completion": Value("string"),  # with its tags, without the end-of-turn token
        "prompt_ids": List(Value("int32")),
        "completion_ids": List(Value("int32")),  # what follows prompt_ids, with the end-of-turn token
        "prompt_tokens": Value("int32"),
        "completion_tokens": Value("int32"),
        "correct": Value("bool"),
        "finished": Value("bool"),  # False where the token limit cut it off
        "source": Value("string"),  # sampled or dataset
    }
)

CALIBRATION_COLUMNS = Features(
    {
        **SAMPLE_COLUMNS,
        "min_tokens": Value("int32"),  # the bounds that were asked for, the same in every row
        "max_tokens": Value("int32"),
    }
)

SOLUTION_COLUMNS = Features(
    {
        "id": Value("string"),  # of the completion that the solution is from
        "problem_id": Value("string"),
        "prompt": Value("string"),  # through the chat template; some hold thinking that was cut short
        "think_close": Value("string"),  # the tag that closes the thinking, the same in every row
        "completion": Value("string"),  # the solution
        "prompt_ids": List(Value("int32")),
        "completion_ids": List(Value("int32")),
        "prompt_tokens": Value("int32"),
        "completion_tokens": Value("int32"),
        "thinking_tokens": Value("int32"),  # of the prompt: how much of the thinking it holds
    }
)

PAIR_COLUMNS = Features(
    {
        "id": Value("string"),  # of the rejected completion
        "problem_id": Value("string"),
        "prompt": Value("string"),
        "chosen": Value("string"),  # a short solution, which is right
        "rejected": Value("string"),  # a completion that is wrong, or the longest right one
        "prompt_ids": List(Value("int32")),
        "chosen_ids": List(Value("int32")),
        "rejected_ids": List(Value("int32")),
        "prompt_tokens": Value("int32"),
        "chosen_tokens": Value("int32"),
        "rejected_tokens": Value("int32"),
        "rejected_correct": Value("bool"),
    }
)

EVALUATION_COLUMNS = Features(
    {
        "id": Value("string"),
        "task": Value("string"),
        "question": Value("string"),
        "answer": Value("string"),
        "metadata": Value("string"),  # JSON: what the verifier needs
        "prompt": Value("string"),  # through the chat template
        "think_open": Value("string"),  # the tags around the thinking, the same in every row
        "think_close": Value("string"),
        "prompt_ids": List(Value("int32")),
        "prompt_tokens": Value("int32"),
        "in_calibration": Value("bool"),
    }
)
