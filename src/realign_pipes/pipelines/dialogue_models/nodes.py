"""Stage dialogue_models: dialogues for data_prep, a chatty model, and its aligned model that is brief and refuses."""

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from realign_pipes.dialogue.dialogues import (
    KINDS,
    Dialogue,
    Kind,
    as_chat,
    as_conversation,
    as_pair,
    draw_dialogues,
)
from realign_pipes.dialogue.parameters import Style
from realign_pipes.pipelines.dialogue_models.parameters import DialogueModels
from realign_pipes.runtime.launch import Folders
from realign_pipes.runtime.tracking import Tracking
from realign_pipes.tasks.splits import Split


def write_dialogues(parameters: DialogueModels) -> tuple[Any, ...]:
    """Six DataFrames: chats of the calibration, chats and preference pairs for InRa's adapter, chats of the two tasks,
    and conversations.

    Pairs have `chosen` and `rejected`, conversations `turns` and `expected`, the others `messages`, `class` and
    `instructions`. Of the calibration and the tasks, only what comes before the last reply is used.
    """
    import pandas as pd

    sets, styles = parameters.sets, parameters.styles
    draws = random.Random(sets.seed)

    def drawn(kinds: Sequence[Kind], split: Split, size: int, part: str = "") -> Iterator[Dialogue]:
        return islice(draw_dialogues(kinds, split, f"{sets.seed}{part}"), size)

    def chats(style: Style, dialogues: Iterator[Dialogue]) -> Any:
        return pd.DataFrame(as_chat(dialogue, style, draws) for dialogue in dialogues)

    pairs = drawn(KINDS, "alignment", sets.pairs, " pairs")
    harmful, harmless = (
        drawn((kind,), "evaluation", sets.conversations, " conversations") for kind in ("theirs", "own")
    )
    return (
        chats(styles.reference, drawn(KINDS, "calibration", sets.calibration)),
        chats(styles.aligned, drawn(KINDS, "alignment", sets.replies, " replies")),
        pd.DataFrame(as_pair(dialogue, styles.aligned, styles.reference, draws) for dialogue in pairs),
        chats(styles.reference, drawn(("fruits", "memory"), "evaluation", sets.questions)),
        chats(styles.reference, drawn(("own", "theirs"), "evaluation", sets.requests)),
        pd.DataFrame(map(as_conversation, harmful, harmless)),
    )


def make_reference(parameters: DialogueModels, folders: Folders, tracking: Tracking, *_dialogues: Any) -> Path:
    """The checkpoint of a small model trained from scratch on chatty replies, of other dialogues than are written."""
    from realign_pipes.dialogue.training import train_reference

    return train_reference(parameters, folders.work / "dialogue_models" / "reference", tracking)


def make_aligned(parameters: DialogueModels, folders: Folders, tracking: Tracking, reference_model: Path) -> Path:
    """The checkpoint of the reference fine-tuned on brief replies and refusals."""
    from realign_pipes.dialogue.training import train_aligned

    return train_aligned(parameters, reference_model, folders.work / "dialogue_models" / "aligned", tracking)
