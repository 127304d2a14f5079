"""A ladder: LoRA adapters of one model in a folder, which stock vLLM serves; a request names its alpha as the model."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from realign_pipes.models.card import base_name
from realign_pipes.models.load import read_dtype
from realign_pipes.runtime.files import from_here
from realign_pipes.serving.server import CPU_LENGTH, HOST, cpu_options, find_vllm, lora_options, python_of

SUMMARY = "ladder.json"
BASE = "reference"
"""The name of the base itself, alpha 0."""


class Summary(BaseModel):
    """ladder.json: what the adapters in a folder are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    """trained, scaled or svd."""
    rank: int
    rungs: dict[str, float]
    """Names, which are those of the folders and of the models to ask for -> alphas."""
    errors: dict[str, float] | None = None
    """Of svd: the Frobenius norm of what was cut from alpha times the difference of the linear layers, by rung."""
    relative_error: float | None = None
    """Of svd: the same relative to alpha times that difference; at every rung alike."""
    norm: float | None = None
    """Of svd: the Frobenius norm of the difference of all weights."""
    shares: dict[str, float] | None = None
    """Of svd: of the square of `norm`. kept: in the adapters; cut: of linear layers, beyond the rank; the others, by
    what they are, are left out, as LoRA cannot hold them."""

    @classmethod
    def load(cls, folder: Path) -> "Summary":
        """That of a ladder's folder."""
        return cls.model_validate_json((folder / SUMMARY).read_bytes())

    def save(self, folder: Path) -> None:
        """Write ladder.json into the folder."""
        (folder / SUMMARY).write_text(self.model_dump_json(indent=2, exclude_none=True) + "\n")


def ladder_command(
    base: Path, rungs: Mapping[str, Path], rank: int, environment: Path, chat_template: Path | None = None
) -> list[str]:
    """The command with which stock vLLM serves the adapters of `base`, by name, and the base itself as `reference`.

    It is for the vLLM in `environment`, as `make serve-setup` makes it; on the CPU it has what that build needs, and
    where there is none yet it is the one for GPUs. `chat_template` is a file with the one that chats go through; None:
    the base's own. InputError for what vLLM cannot serve there.
    """
    python = python_of(environment)
    name, revision = base_name(base)
    command = [str(from_here(python)), "-m", "vllm.entrypoints.openai.api_server", "--model", name]
    command += ["--revision", revision] if revision else []
    command += ["--served-model-name", BASE, "--host", HOST, "--dtype", read_dtype(base), *lora_options(rungs, rank)]
    if chat_template is not None:
        command += ["--chat-template", str(from_here(chat_template.absolute()))]
    if python.exists() and find_vllm(environment).cpu:
        command = ["env", "VLLM_CPU_KVCACHE_SPACE=2", *command, *cpu_options(base), *CPU_LENGTH]
    return command


def describe(folder: Path, base: Path, environment: Path, chat_template: Path | None = None) -> tuple[str, str]:
    """The command that serves the ladder in `folder`, as a shell takes it, and its README.md (see `ladder_command`)."""
    summary = Summary.load(folder)
    rungs = {name: from_here((folder / name).absolute()) for name in summary.rungs}
    command = shlex.join(ladder_command(base, rungs, summary.rank, environment, chat_template))
    request = (
        "curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d '"
        f'{{"model": "{next(iter(rungs))}", "temperature": 0, "messages": [{{"role": "user", "content": "…"}}]}}'
        "'"
    )
    lines = [
        "# A ladder of adapters",
        "",
        f"LoRA adapters of one model, made by the method {summary.method} at rank {summary.rank}. Stock vLLM serves "
        "them side by side, and alpha is the model that a request names:",
        "",
        "```",
        command,
        request,
        "```",
        "",
        "| model | alpha |" + (" error |" if summary.errors else ""),
        "| --- | ---: |" + (" ---: |" if summary.errors else ""),
        f"| {BASE} | 0 |" + (" – |" if summary.errors else ""),
        *(
            f"| {name} | {alpha:g} |" + (f" {summary.errors[name]:.4g} |" if summary.errors else "")
            for name, alpha in summary.rungs.items()
        ),
    ]
    if summary.shares is not None:
        kept, cut, *left_out = summary.shares.items()
        lines += [
            "",
            f"Errors are Frobenius norms: {summary.relative_error:.1%} of alpha times the difference of the linear "
            f"layers is beyond the rank. Of the whole difference (squared norm), the adapters hold {kept[1]:.2%} and "
            f"cut {cut[1]:.2%}; LoRA has no place for " + ", ".join(f"{name} ({share:.2%})" for name, share in left_out)
            + ".",
        ]  # fmt: skip
    return command, "\n".join(lines) + "\n"
