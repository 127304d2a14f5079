"""What every realigned checkpoint says about itself: README.md for people, realignment.json for programs."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

METADATA = "realignment.json"

_TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

{{ introduction }}

| | |
| --- | --- |
{% for name, value in facts.items() -%}
| {{ name }} | {{ value }} |
{% endfor -%}

## Parameters

```json
{{ parameters }}
```

Made by realign_pipes {{ version }}.
"""


def current_commit() -> str:
    """The git commit of the working folder, noting any uncommitted changes; or why there is none."""
    if shutil.which("git") is None:
        return "unknown: git is not installed"
    git = ["git", "-c", "core.quotepath=off"]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return "none: not run in a git repository with commits"
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + (" (with uncommitted changes)" if changed.stdout.strip() else "")


def checkpoint_name(path: Path) -> str:
    """The name of a checkpoint directory; for one in the hub's cache, the repository and revision."""
    if path.parent.name == "snapshots":
        return f"{path.parents[1].name.removeprefix('models--').replace('--', '/')}@{path.name}"
    return path.name


def base_name(reference: Path) -> tuple[str, str | None]:
    """How an adapter names the model that it is for: a repository of the hub and its revision, or a folder.

    A folder below the working folder is named relative to it, so that an adapter can move with the project.
    """
    if reference.parent.name == "snapshots":  # in the hub's cache
        repository, revision = checkpoint_name(reference).split("@")
        return repository, revision
    path = reference.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path), None


def write_model_card(folder: Path, *, title: str, introduction: str, tags: list[str], metadata: dict[str, Any]) -> None:
    """Write README.md and realignment.json into the checkpoint `folder`.

    `metadata` has `parameters` and any facts: strings, numbers, or models (`name` and `fingerprint`). The commit and
    this package's version are added.
    """
    from huggingface_hub import ModelCard, ModelCardData

    from realign_pipes import __version__

    metadata = {**metadata, "commit": current_commit(), "version": __version__}
    card = ModelCard.from_template(
        ModelCardData(
            library_name="peft" if (folder / "adapter_config.json").exists() else "transformers",
            pipeline_tag="text-generation",
            tags=["realignment", *tags],
        ),
        template_str=_TEMPLATE,
        title=title,
        introduction=introduction,
        facts={
            name.replace("_", " "): f"`{fact['name']}`, fingerprint `{fact['fingerprint']}`"
            if isinstance(fact, dict)
            else fact
            for name, fact in metadata.items()
            if name not in ("parameters", "version")
        },
        version=metadata["version"],
        parameters=json.dumps(metadata["parameters"], indent=2),
    )
    card.save(folder / "README.md")
    (folder / METADATA).write_text(json.dumps(metadata, indent=2) + "\n")


def read_metadata(folder: Path) -> dict[str, Any]:
    """The realignment.json of a checkpoint."""
    metadata: dict[str, Any] = json.loads((folder / METADATA).read_text())
    return metadata


def describe_checkpoint(
    folder: Path,
    reference: Path,
    curves: Path,
    *,
    chat_template: Path | None = None,
    title: str,
    introduction: str,
    tags: list[str],
    metadata: dict[str, Any],
) -> None:
    """Add to a checkpoint `folder` of weights what is missing: the reference's tokenizer, training curves, model card.

    `chat_template`, if given, is the file of the template that the tokenizer gets in place of the reference's.
    """
    from realign_pipes.models.load import copy_tokenizer  # it imports torch, and every run asks for the commit

    copy_tokenizer(reference, folder, chat_template)
    shutil.copytree(curves, folder / curves.name)
    write_model_card(folder, title=title, introduction=introduction, tags=tags, metadata=metadata)
