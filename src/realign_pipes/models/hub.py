"""Uploading a checkpoint to the Hugging Face hub. The token is huggingface_hub's: HF_TOKEN, or `hf auth login`."""

from pathlib import Path

from realign_pipes.errors import UserError

REASONS = {
    401: "the hub does not accept the token. Log in again (hf auth login), or set HF_TOKEN",
    403: "the token may not write there. It needs write access to that organisation or user",
}


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
