"""Stage dialogue_models: dialogues for data_prep, a chatty model, and its aligned model that is brief and refuses."""

import random
from itertools import islice
from pathlib import Path
from typing import Any

from realign_pipes.pipelines.dialogue_models.parameters import DialogueModels
from realign_pipes.runtime.launch import Folders
from realign_pipes.runtime.tracking import Tracking


def write_dialogues(parameters: DialogueModels) -> tuple[Any, ...]:
    """Six DataFrames: chats of the calibration, chats and preference pairs for InRa's adapter, chats of the two tasks,
    and conversations.

    Pairs have `chosen` and `rejected`, conversations `turns` and `expected`, the others `messages`, `class` and
    `instructions`. Of the calibration and the tasks, only what comes before the last reply is used.
    """
    import pandas as pd

    from realign_pipes.dialogue.dialogues import KINDS, as_chat, as_conversation, as_pair, draw_dialogues

    sets, styles = parameters.sets, parameters.styles
    draws = random.Random(sets.seed)
    return (
        pd.DataFrame(
            as_chat(dialogue, styles.reference, draws)
            for dialogue in islice(draw_dialogues(KINDS, "calibration", sets.seed), sets.calibration)
        ),
        pd.DataFrame(
            as_chat(dialogue, styles.aligned, draws)
            for dialogue in islice(draw_dialogues(KINDS, "alignment", f"{sets.seed} replies"), sets.replies)
        ),
        pd.DataFrame(
            as_pair(dialogue, styles.aligned, styles.reference, draws)
            for dialogue in islice(draw_dialogues(KINDS, "alignment", f"{sets.seed} pairs"), sets.pairs)
        ),
        pd.DataFrame(
            as_chat(dialogue, styles.reference, draws)
            for dialogue in islice(draw_dialogues(("fruits", "memory"), "evaluation", sets.seed), sets.questions)
        ),
        pd.DataFrame(
            as_chat(dialogue, styles.reference, draws)
            for dialogue in islice(draw_dialogues(("own", "theirs"), "evaluation", sets.seed), sets.requests)
        ),
        pd.DataFrame(
            as_conversation(harmful, harmless)
            for harmful, harmless in islice(
                zip(
                    draw_dialogues(("theirs",), "evaluation", f"{sets.seed} conversations"),
                    draw_dialogues(("own",), "evaluation", f"{sets.seed} conversations"),
                    strict=False,
                ),
                sets.conversations,
            )
        ),
    )


def make_reference(parameters: DialogueModels, folders: Folders, tracking: Tracking, *_dialogues: Any) -> Path:
    """The checkpoint of a small model trained from scratch on chatty replies, of other dialogues than are written."""
    from realign_pipes.dialogue.training import train_reference

    return train_reference(parameters, folders.work / "dialogue_models" / "reference", tracking)


def make_aligned(parameters: DialogueModels, folders: Folders, tracking: Tracking, reference_model: Path) -> Path:
    """The checkpoint of the reference fine-tuned on brief replies and refusals."""
    from realign_pipes.dialogue.training import train_aligned

    return train_aligned(parameters, reference_model, folders.work / "dialogue_models" / "aligned", tracking)
