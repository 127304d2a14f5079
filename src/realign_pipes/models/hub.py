"""Checkpoints by name: a folder, or a repository of the Hugging Face hub."""

import re
from pathlib import Path

from realign_pipes.errors import InputError, MissingFileError

REPOSITORY = re.compile(r"(?P<repo_id>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w.-]+))?")
FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
"""What is downloaded: weights in safetensors only, and no code."""


def download(repo_id: str, revision: str | None) -> Path:
    """The folder in the Hugging Face cache with a repository at a revision, downloaded if it is not there yet."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo_id, revision=revision, allow_patterns=FILES))


def find_checkpoint(checkpoint: str) -> Path:
    """The folder of `checkpoint`: the folder itself, or the downloaded repository `org/name`, with `@revision` or not.

    MissingFileError for a path that does not exist, InputError for a repository that cannot be downloaded.
    """
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    if not (match := REPOSITORY.fullmatch(checkpoint)):
        raise MissingFileError(f"{checkpoint} is neither a folder nor the name of a repository (`org/name@revision`).")
    try:
        return download(match["repo_id"], match["revision"])
    except Exception as error:  # the hub's, httpx's and the file system's
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise InputError(
            f"{checkpoint} is not a folder in {Path.cwd()}, and could not be loaded from the hub: {reason}"
        ) from error
