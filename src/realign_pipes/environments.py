"""`realign-pipes init`: an environment in conf/ that realigns the user's own two checkpoints.

Lengths follow from the models' positions, batch sizes from their number of parameters, learning rates are the paper's.
"""

import json
import math
import re
import shutil
from pathlib import Path
from string import Template

from safetensors import safe_open

from realign_pipes.errors import InputError
from realign_pipes.models.hub import REPOSITORY, find_checkpoint
from realign_pipes.models.load import check_pair, load_chat_tokenizer, max_positions

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

PAPERS_TOKENS = 16384
"""The paper's longest completion, for models that have at least twice as many positions."""

CATALOG = Template("""\
# The two checkpoints of this environment, in place of the demo's.
reference_model:
  type: realign_pipes.datasets.folders.CheckpointDataset
$reference
aligned_model:
  type: realign_pipes.datasets.folders.CheckpointDataset
$aligned
""")

GLOBALS = Template("""\
# This environment's data folder: every path in base's catalog.yml is below it.
data: data/$name
""")

PARAMETERS = Template("""\
# What differs from conf/base, which explains every parameter. The models have $positions positions and $parameters
# parameters: lengths and batch sizes follow from that, and learning rates are the paper's.
models:
  chat_template: $chat_template
data_prep:
  # The reference writes `samples` completions of each problem, and learns from those that are right. For completions
  # that you have, replace this mapping by
  #   {source: dataset, path: traces.jsonl, question_column: question, completion_column: completion,
  #    answer_column: answer, verifier: math, keep: all, min_tokens: $min_tokens, max_tokens: $max_tokens}
  calibration:
    source: sampled
    task: {kind: dataset, path: $calibration, question_column: question, answer_column: answer, verifier: math}
    sampling:
      samples: 4
      temperature: 0.7
      top_p: 0.95
      max_new_tokens: $max_new_tokens
      batch_size: $sampling_batch
      seed: 11
    keep: longest
    min_tokens: $min_tokens  # the paper: 4000
    max_tokens: $max_tokens  # the paper: 8000
  short_solutions: {cut_share: 0.0}
  tasks:
    sums_short: null  # without the demo's two tasks
    sums_long: null
    evaluation: {kind: dataset, path: $evaluation, question_column: question, answer_column: answer, verifier: math}
teachers:
  batch_size: $micro_batch
trra:
  alphas: [1.0, 1.5]
  iterations: 0
  iteration_alphas: null
  ablation_alphas: null
  scaled_lora: false           # true: a LoRA student at alpha 1 too, for alpha_sweep.lora_scale_alphas
  steps: 200
  batch_size: 16
  micro_batch_size: $micro_batch
  learning_rate: 2.0e-5
  gradient_checkpointing: true
  save_steps: 50
inra:
  steps: 200
  batch_size: 16
  micro_batch_size: $micro_batch
  learning_rate: 2.0e-5
  gradient_checkpointing: true
  save_steps: 50
alpha_sweep:
  dera_alphas: []              # two models decode at once
  merge_alphas: $merge_alphas
  ties: {alphas: null}
  svd: null                    # {alphas: [1.0], rank: 64}: their difference cut to a rank, as LoRA, which vLLM serves
  inra_alphas: [0.0, 0.5, 1.0]
  plausibility: 0.0            # above 0 DeRa has a mask, and both models are measured once more with it as a min-p
  close_biases: []
  others: {}                   # checkpoints made elsewhere, as rows of their own
  prompts: {}
  budgets: {tokens: [], answer_tokens: $answer_tokens}  # budgets of thinking, such as [$half_budget, $budget]
  sampling: {max_new_tokens: $max_new_tokens, batch_size: $sampling_batch}
# kedro run --pipelines plan --env $name says what a run will take. These are guesses: put your own figures here.
plan:
  reference: conf/$name/models/reference.json
  aligned: conf/$name/models/aligned.json
  device_memory: 80
  prompt_tokens: {mean: $prompt_tokens, longest: $longest_prompt}
  completion_tokens: $max_tokens
  calibration: {completions: 4000, examples: 1000, tokens: $max_tokens}
  solution_tokens: $answer_tokens
  problems: {evaluation: 500}
  tokens_per_second: {decode: 5000, train: 5000, forward: 20000}
""")


def write_environment(
    project: Path,
    name: str,
    reference: str,
    aligned: str,
    *,
    calibration: Path | None = None,
    evaluation: Path | None = None,
    chat_template: Path | None = None,
) -> str:
    """Write the folder `conf/<name>` of `project` for two checkpoints; what to tell the user.

    A checkpoint is a folder, or `org/name` of the hub with an optional `@revision`, which is downloaded. `calibration`
    and `evaluation` are files of problems; None is a path below the project's data where the user will put one.
    `chat_template` is a template file for a reference without one. InputError, before anything is written, for a name
    that is taken or invalid, for a checkpoint that is neither a folder nor in the hub, and for a pair that cannot be
    realigned (see `check_pair`).
    """
    folder = project / "conf" / name
    if not NAME.fullmatch(name):
        raise InputError(f"{name!r} cannot name an environment: give letters, digits, - and _.")
    if not (project / "conf" / "base").is_dir():
        raise InputError(f"{project} has no folder conf/base. Change to the project's folder.")
    if folder.exists():
        raise InputError(f"{folder} already exists. Choose another name, or remove it.")
    paths, entries = zip(*(_find(project, checkpoint) for checkpoint in (reference, aligned)), strict=True)
    if check_pair(*paths).chat_template is None and chat_template is None:
        raise InputError(f"the tokenizer of {reference} has no chat template. Name a file that holds one (in Jinja) "
                         "with --chat-template.")  # fmt: skip
    load_chat_tokenizer(paths[0], chat_template)
    sizes = _sizes(paths)
    problems = {
        "calibration": calibration or Path(f"data/01_raw/{name}/calibration.jsonl"),
        "evaluation": evaluation or Path(f"data/01_raw/{name}/evaluation.jsonl"),
    }
    values = {"name": name, "reference": entries[0], "aligned": entries[1], **sizes}
    values |= {key: json.dumps(str(path)) for key, path in problems.items()}
    values["chat_template"] = json.dumps(None if chat_template is None else str(chat_template))
    folder.mkdir()
    for file, template in (("catalog", CATALOG), ("globals", GLOBALS), ("parameters", PARAMETERS)):
        (folder / f"{file}.yml").write_text(template.substitute(values), encoding="utf-8")
    (folder / "models").mkdir()
    for role, path in zip(("reference", "aligned"), paths, strict=True):
        shutil.copyfile(path / "config.json", folder / "models" / f"{role}.json")
    missing = [str(path) for path in problems.values() if not (project / path).exists()]
    lines = [f"Written: conf/{name}/catalog.yml, globals.yml, parameters.yml"]
    if missing:
        lines.append(
            f"Put your problems into {' and '.join(missing)}: a JSON object a line, with `question` and `answer`."
        )
    lines.append(f"Then run: kedro run --env {name} --pipeline realign")
    return "\n".join(lines)


def _find(project: Path, checkpoint: str) -> tuple[Path, str]:
    """The local folder of a checkpoint, and the catalog's lines for it. A hub's revision is pinned to its commit."""
    if Path(checkpoint).is_dir():
        path = Path(checkpoint).resolve()
        shown = path.relative_to(project) if path.is_relative_to(project) else path
        return path, f"  filepath: {json.dumps(str(shown))}"
    if not (match := REPOSITORY.fullmatch(checkpoint)):
        raise InputError(f"{checkpoint} is neither a folder nor the name of a repository (`org/name@revision`).")
    path = find_checkpoint(checkpoint)
    return path, f"  repo_id: {json.dumps(match['repo_id'])}\n  revision: {json.dumps(path.name)}"


def _sizes(paths: tuple[Path, ...]) -> dict[str, str]:
    """Lengths and batch sizes for the template."""
    positions = min(max_positions(path) or 2 * PAPERS_TOKENS for path in paths)
    shapes = [_shapes(path) for path in paths]
    parameters = max(_count(path) for path in paths)
    longest = min(PAPERS_TOKENS, positions - min(1024, positions // 4))  # the rest is for the prompt
    return {
        "positions": f"{positions:,}",
        "merge_alphas": "[0.5, 1.0, 1.5]  # the two models' weights interpolated"
        if shapes[0] == shapes[1]
        else "null           # the two models' weights do not fit together",
        "parameters": f"{parameters:,}",
        "max_new_tokens": str(longest),
        "min_tokens": str(longest // 64),
        "max_tokens": str(longest // 2),
        "budget": str(longest // 4),
        "half_budget": str(longest // 8),
        "answer_tokens": str(longest // 32),
        "longest_prompt": str(positions - longest if positions < 2 * PAPERS_TOKENS else 1024),
        "prompt_tokens": str(min(256, (positions - longest) // 2)),
        "micro_batch": str(_power_of_two(1.6e13 / (parameters * longest), 16)),
        "sampling_batch": str(_power_of_two(1e15 / (parameters * longest), 256)),
    }


def _power_of_two(bound: float, most: int) -> int:
    """The largest power of two up to `bound` and `most`, at least 1."""
    return 2 ** max(0, math.floor(math.log2(min(bound, most))))


def _count(path: Path) -> int:
    """Parameters of a checkpoint."""
    return sum(map(math.prod, _shapes(path).values()))


def _shapes(path: Path) -> dict[str, list[int]]:
    """The shape of each tensor of a checkpoint, from the headers of its weights."""
    shapes: dict[str, list[int]] = {}
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    return shapes
