"""Reading a completion: what was thought, and what was answered."""

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"


def answer_part(prompt: str, completion: str) -> str | None:
    """The part of `completion` that is the answer to the user, or None if it never got there.

    A completion of a thinking model answers after its last `</think>`. One that opened `<think>` (itself, or in
    the prompt through the chat template) and never closed it ran out of tokens while thinking: it has no answer.
    Text without any thinking is an answer as a whole.
    """
    if THINK_CLOSE in completion:
        return completion.rpartition(THINK_CLOSE)[2].strip()
    thinking = prompt.rstrip().endswith(THINK_OPEN) or THINK_OPEN in completion
    return None if thinking else completion.strip()
