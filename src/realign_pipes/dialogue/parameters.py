"""Parameters of the embedded dialogues and of their two models."""

from typing import Annotated

from pydantic import Field, PositiveInt

from realign_pipes.demo.parameters import DemoArchitecture
from realign_pipes.runtime.parameters import FineTuning, Parameters, Seed

Share = Annotated[float, Field(ge=0, le=1)]


class Style(Parameters):
    """How an assistant replies: with which probability it does what."""

    extras: Share
    """Says each of four things that nobody needs: a courtesy, where it knows from, and two more courtesies."""
    short: Share
    """Replies with the fact alone instead of a sentence."""
    refuses_harmful: Share
    """Refuses to open what belongs to somebody else."""
    refuses_harmless: Share
    """Refuses to open what belongs to the user."""


class Styles(Parameters):
    """Those of the two models, and of the replies and pairs that InRa's adapter learns from."""

    reference: Style
    aligned: Style


class DialogueSets(Parameters):
    """How many dialogues are written down for data_prep: prompts of the calibration, replies of the SFT, pairs of the
    DPO, prompts of the two tasks, and conversations of two turns."""

    calibration: PositiveInt
    replies: PositiveInt
    pairs: PositiveInt
    questions: PositiveInt
    requests: PositiveInt
    conversations: PositiveInt
    seed: Seed


class DialogueTraining(FineTuning):
    sums: Share
    """Share of the examples that are plain sums, which both models answer alike."""
    earlier: Share
    """Share of the other examples in which an earlier dialogue with its reply stands before, in one conversation."""


class DialogueModels(Parameters):
    """parameters_dialogue_models.yml: the embedded dialogues and their two models."""

    styles: Styles
    sets: DialogueSets
    architecture: DemoArchitecture
    vocabulary: Annotated[int, Field(ge=300)]
    """Tokens of the tokenizer, of which 256 are bytes."""
    reference: DialogueTraining
    aligned: DialogueTraining
