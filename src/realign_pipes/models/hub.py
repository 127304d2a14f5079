"""Checkpoints of the Hugging Face hub: found by name and downloaded, or uploaded.

The token is huggingface_hub's: HF_TOKEN, or `hf auth login`.
"""

import re
from pathlib import Path

from realign_pipes.errors import InputError, MissingFileError, UserError

REPOSITORY = re.compile(r"(?P<repo_id>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w.-]+))?")
FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
"""What is downloaded: weights in safetensors only, and no code."""
REASONS = {
    401: "the hub does not accept the token. Log in again (hf auth login), or set HF_TOKEN",
    403: "the token may not write there. It needs write access to that organisation or user",
}


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


class PushError(UserError):
    """A checkpoint was not uploaded."""


def push_checkpoint(checkpoint: Path, repository: str, branch: str) -> str:
    """Make the branch of a repository (`org/name`) a copy of the folder `checkpoint`; the address of the commit.

    A repository that does not exist is made, and is private. One commit adds and replaces files, and removes others
    that an earlier upload left in the branch. PushError, with the folder and how to push it again, if the hub refuses
    or cannot be reached; the folder is only read.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    try:
        if get_token() is None:
            raise PushError(_sentence(checkpoint, repository, "there is no token. Log in (hf auth login), or set "
                                      "HF_TOKEN"))  # fmt: skip
        hub = HfApi()
        hub.create_repo(repository, private=True, exist_ok=True)
        hub.create_branch(repository, branch=branch, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repository,
            folder_path=checkpoint,
            revision=branch,
            commit_message=f"{checkpoint.name} by realign_pipes",
            delete_patterns="*",
        )
    except HfHubHTTPError as error:
        why = REASONS.get(error.response.status_code, f"the hub answered: {error}")
        raise PushError(_sentence(checkpoint, repository, why)) from error
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise PushError(_sentence(checkpoint, repository, f"the hub cannot be reached: {error}")) from error
    return commit.commit_url


def _sentence(checkpoint: Path, repository: str, why: str) -> str:
    return (
        f"{checkpoint.name} was not uploaded to {repository}: {why}. The checkpoint is still in {checkpoint}; to try "
        f"again: kedro run --pipelines push --params push.to_hub={repository},push.only={checkpoint.name}"
    )
