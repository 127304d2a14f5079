"""One door to grading: a completion, its problem and its task go in, right or wrong comes out."""

from realign_pipes.parameters import DatasetTask, Task
from realign_pipes.tasks import dataset_task, reasoning_gym_task
from realign_pipes.tasks.completion import answer_part


def is_correct(task: Task, prompt: str, completion: str, answer: str, metadata: str) -> bool:
    """Whether `completion` answers the problem. Nothing that a model wrote is ever executed."""
    answered = answer_part(prompt, completion)
    if answered is None:
        return False
    if isinstance(task, DatasetTask):
        return dataset_task.verify(task.verifier, answered, answer)
    return reasoning_gym_task.verify(task, answered, answer, metadata)
