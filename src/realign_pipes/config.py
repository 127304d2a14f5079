"""How the YAML of conf/ becomes parameters: an environment's over base's, and those of `--params` over both."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kedro.config import OmegaConfigLoader
from omegaconf import DictConfig, OmegaConf
from yaml import MarkedYAMLError
from yaml.parser import ParserError

from realign_pipes.errors import InputError, MissingFileError

KINDS = frozenset(("kind", "source"))
"""Keys that say which other keys their mapping has."""


def merge(base: Any, over: Any) -> Any:
    """`over` merged into `base` key by key, so an environment needs to hold only what differs.

    A mapping that names its `kind` or `source` replaces the whole mapping in base, at any depth: another kind's keys
    mean nothing to it. Lists and null replace what was there. Neither argument is changed.
    """
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)) or KINDS & over.keys():
        return over
    return {**base, **{key: merge(base[key], value) if key in base else value for key, value in over.items()}}


class ConfigLoader(OmegaConfigLoader):
    """Kedro's own, with `merge` for parameters, and errors that say where to look."""

    def __init__(self, conf_source: str | Path, env: str | None = None, **options: Any) -> None:
        folder = Path(conf_source)
        if env is not None and folder.is_dir() and not (folder / env).is_dir():
            there = ", ".join(sorted(path.name for path in folder.iterdir() if any(path.glob("*.yml"))))
            raise MissingFileError(f"there is no environment {env!r} in {folder}. It has: {there}. "
                                   "`realign-pipes init` writes one for two checkpoints of your own.")  # fmt: skip
        super().__init__(conf_source, env, **options)

    def _read_dir_configs(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super()._read_dir_configs(*arguments, **options)
        except ParserError as error:
            if not isinstance(error.__cause__, MarkedYAMLError):
                raise
            file = str(error).rpartition(", unable to read")[0]  # Kedro counts lines from 0
            raise InputError(f"{file}: {error.__cause__}") from error

    def _merge_and_resolve(self, key: str, config_per_file: dict[Path, DictConfig]) -> dict[str, Any]:
        if key != "parameters" or not config_per_file:
            return super()._merge_and_resolve(key, config_per_file)
        files: Iterable[DictConfig] = config_per_file.values()  # no two of one folder have a key in common
        merged = merge(OmegaConf.to_container(OmegaConf.unsafe_merge(*files)), self.runtime_params)
        return OmegaConf.to_container(OmegaConf.create(merged), resolve=True)  # type: ignore[return-value]

    @staticmethod
    def _soft_merge(config: dict[str, Any], env_config: dict[str, Any], env_path: str | None = None) -> Any:
        return merge(config, env_config)
