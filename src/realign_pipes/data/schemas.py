"""The columns of the data sets that data_prep makes: the only lists of them. `sweep.schemas` has those of frames."""

from datasets import Features, List, Value

SAMPLE_COLUMNS = Features(
    {
        "id": Value("string"),  # of the completion
        "problem_id": Value("string"),
        "sample": Value("int32"),
        "task": Value("string"),
        "question": Value("string"),  # of a chat, the text of all of it
        "answer": Value("string"),  # null where the task has none
        "metadata": Value("string"),  # JSON: what the verifier needs
        "prompt": Value("string"),  # through the chat template
        "thinking": Value("string"),  # required, optional or none: data_prep.thinking, the same in every row
        "think_open": Value("string"),  # the tags around the thinking, the same in every row
        "think_close": Value("string"),
        "completion": Value("string"),  # with its tags, without the end-of-turn token
        "prompt_ids": List(Value("int32")),
        "completion_ids": List(Value("int32")),  # what follows prompt_ids, with the end-of-turn token
        "prompt_tokens": Value("int32"),
        "completion_tokens": Value("int32"),
        "correct": Value("bool"),  # null where there is no answer
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
        "id": Value("string"),  # of the completion that the solution is from, or of the given reply
        "problem_id": Value("string"),
        "prompt": Value("string"),  # through the chat template; some hold thinking that was cut short
        "thinking": Value("string"),  # required, optional or none: data_prep.thinking, the same in every row
        "think_open": Value("string"),  # the tags around the thinking, the same in every row
        "think_close": Value("string"),
        "completion": Value("string"),  # the solution, or the given reply
        "prompt_ids": List(Value("int32")),
        "completion_ids": List(Value("int32")),
        "prompt_tokens": Value("int32"),
        "completion_tokens": Value("int32"),
        "thinking_tokens": Value("int32"),  # of the prompt: how much of the thinking it holds
        "source": Value("string"),  # samples or dataset
    }
)

PAIR_COLUMNS = Features(
    {
        "id": Value("string"),  # of the rejected completion, or of the given pair
        "problem_id": Value("string"),
        "prompt": Value("string"),
        "chosen": Value("string"),  # a short solution, which is right; or given
        "rejected": Value("string"),  # a completion that is wrong, or the longest right one; or given
        "prompt_ids": List(Value("int32")),
        "chosen_ids": List(Value("int32")),
        "rejected_ids": List(Value("int32")),
        "prompt_tokens": Value("int32"),
        "chosen_tokens": Value("int32"),
        "rejected_tokens": Value("int32"),
        "rejected_correct": Value("bool"),  # null where nothing was graded
        "source": Value("string"),  # samples or dataset
    }
)

EVALUATION_COLUMNS = Features(
    {
        "id": Value("string"),
        "task": Value("string"),
        "question": Value("string"),  # of a chat, the text of all of it
        "messages": List({"role": Value("string"), "content": Value("string")}),  # up to the turn to be answered
        "answer": Value("string"),  # null where the task has none
        "metadata": Value("string"),  # JSON: what the verifier needs
        "prompt": Value("string"),  # through the chat template
        "think_open": Value("string"),  # the tags around the thinking, the same in every row
        "think_close": Value("string"),
        "prompt_ids": List(Value("int32")),
        "prompt_tokens": Value("int32"),
        "in_calibration": Value("bool"),
    }
)
