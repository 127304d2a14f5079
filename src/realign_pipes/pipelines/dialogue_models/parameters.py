"""parameters_dialogue_models.yml: the embedded dialogues and their two models."""

from realign_pipes.dialogue.parameters import DialogueModels

__all__ = ["DialogueModels"]
