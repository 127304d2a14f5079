"""What every realigned checkpoint says of itself: README.md for people, realignment.json for programs."""

import json
import subprocess
from pathlib import Path
from typing import Any

METADATA = "realignment.json"

_TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

{{ reference_name }} moved by **alpha = {{ alpha }}** along what alignment did to {{ aligned_name }}
(training-time realignment, "Flexible Realignment of Language Models", arXiv 2506.12704): a copy of the reference was
trained to follow softmax((1 - alpha) z_reference + alpha z_aligned).
{%- if iteration %} This is round {{ iteration }} of TrRa-iter: the aligned model was the round before it.{% endif %}

| | |
| --- | --- |
| alpha | {{ alpha }} |
| iteration | {{ iteration }} |
| reference | `{{ reference_name }}`, fingerprint `{{ reference_fingerprint }}` |
| aligned | `{{ aligned_name }}`, fingerprint `{{ aligned_fingerprint }}` |
| calibration data | fingerprint `{{ data_fingerprint }}` |
| commit | {{ commit }} |

## Parameters

```json
{{ parameters }}
```

Made by realign_pipes {{ version }}.
"""


def current_commit() -> str:
    """The git commit of the working folder, "(with uncommitted changes)" added where so, or why there is none."""
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


def write_model_card(folder: Path, *, title: str, tags: list[str], metadata: dict[str, Any]) -> None:
    """Write README.md and realignment.json into the checkpoint `folder`.

    `metadata` has `alpha`, `iteration`, `reference` and `aligned` (each `name` and `fingerprint`), `data_fingerprint`
    and `parameters`; the commit and this package's version are added.
    """
    from huggingface_hub import ModelCard, ModelCardData

    from realign_pipes import __version__

    metadata = {**metadata, "commit": current_commit(), "version": __version__}
    card = ModelCard.from_template(
        ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=["realignment", *tags]),
        template_str=_TEMPLATE,
        title=title,
        alpha=metadata["alpha"],
        iteration=metadata["iteration"],
        reference_name=metadata["reference"]["name"],
        reference_fingerprint=metadata["reference"]["fingerprint"],
        aligned_name=metadata["aligned"]["name"],
        aligned_fingerprint=metadata["aligned"]["fingerprint"],
        data_fingerprint=metadata["data_fingerprint"],
        commit=metadata["commit"],
        version=metadata["version"],
        parameters=json.dumps(metadata["parameters"], indent=2),
    )
    card.save(folder / "README.md")
    (folder / METADATA).write_text(json.dumps(metadata, indent=2) + "\n")


def read_metadata(folder: Path) -> dict[str, Any]:
    """The realignment.json of a checkpoint."""
    return json.loads((folder / METADATA).read_text())
