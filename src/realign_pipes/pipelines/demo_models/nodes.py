"""Stage demo_models: the embedded slow thinker, and its aligned model that thinks less."""

from pathlib import Path

from realign_pipes.parameters import DemoModels


def make_reference(parameters: DemoModels, work_dir: Path) -> Path:
    """The checkpoint of a small model trained from scratch on slow traces."""
    from realign_pipes.demo.training import train_reference

    return train_reference(parameters, work_dir / "demo_models" / "reference")


def make_aligned(parameters: DemoModels, reference_model: Path, work_dir: Path) -> Path:
    """The checkpoint of the reference fine-tuned on its own shortest correct completions."""
    from realign_pipes.demo.training import train_aligned

    return train_aligned(parameters, reference_model, work_dir / "demo_models" / "aligned")
