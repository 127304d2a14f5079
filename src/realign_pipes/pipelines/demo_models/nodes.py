"""Stage demo_models: the embedded slow thinker, and its aligned model that thinks less."""

from pathlib import Path

from realign_pipes.pipelines.demo_models.parameters import DemoModels
from realign_pipes.runtime.launch import Folders
from realign_pipes.runtime.tracking import Tracking


def make_reference(parameters: DemoModels, folders: Folders, tracking: Tracking) -> Path:
    """The checkpoint of a small model trained from scratch on slow traces."""
    from realign_pipes.demo.training import train_reference

    return train_reference(parameters, folders.work / "demo_models" / "reference", tracking)


def make_aligned(parameters: DemoModels, folders: Folders, tracking: Tracking, reference_model: Path) -> Path:
    """The checkpoint of the reference fine-tuned on its own shortest correct completions."""
    from realign_pipes.demo.training import train_aligned

    return train_aligned(parameters, reference_model, folders.work / "demo_models" / "aligned", tracking)
