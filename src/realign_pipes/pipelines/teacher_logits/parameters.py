"""parameters_teacher_logits.yml: where the final hidden states of the two models come from."""

from realign_pipes.teachers.parameters import Teachers

__all__ = ["Teachers"]
