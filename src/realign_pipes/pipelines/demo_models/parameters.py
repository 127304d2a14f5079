"""parameters_demo_models.yml: the embedded slow thinker and its aligned model."""

from realign_pipes.demo.parameters import DemoModels

__all__ = ["DemoModels"]
