"""Every parameter of the project, typed: one model for each conf/<env>/parameters_<stage>.yml.

Kedro builds these from the merged YAML before a pipeline starts, so that a wrong value stops the run with its name
and reason before any compute. Light on purpose: nothing here imports torch.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)


def unknown_parameter(name: str, known: Iterable[str]) -> str:
    """What is said of a parameter that does not exist: its name, and the nearest of the `known` ones."""
    known = sorted(known)
    nearest = get_close_matches(str(name), known, n=1)
    return f"there is no parameter {name!r}: " + (
        f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(known)}"
    )


class Parameters(BaseModel):
    """Unknown keys, NaN and infinities are refused; values cannot be changed by a node."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest(cls, values: Any) -> Any:
        """Pydantic itself would say "extra inputs are not permitted", and not what was meant."""
        if isinstance(values, dict) and (unknown := [name for name in values if name not in cls.model_fields]):
            raise ValueError("; ".join(unknown_parameter(name, cls.model_fields) for name in unknown))
        return values


def _check_distinct(alphas: Sequence[float]) -> None:
    """Alphas name checkpoints and candidates, by six digits."""
    names = [f"{alpha:g}" for alpha in alphas]
    if len(set(names)) != len(names):
        raise ValueError(f"alphas {alphas} name one twice")


Probability = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Sampling(Parameters):
    """How completions are drawn."""

    samples: PositiveInt
    """Completions per problem (the paper: 8)."""
    temperature: PositiveFloat
    top_p: Probability
    max_new_tokens: PositiveInt
    batch_size: PositiveInt
    """Completions decoded together."""
    seed: Seed


# -- launcher ---------------------------------------------------------------------------------------------------------
class Launcher(Parameters):
    """parameters_launcher.yml: the processes of teacher_logits, trra, inra and alpha_sweep."""

    num_processes: PositiveInt
    """On all machines together. More than one are started with `accelerate launch`, one a GPU."""
    config_file: Path | None
    """accelerate's configuration (conf/accelerate/), relative to the working folder: FSDP, several machines, …"""

    @field_validator("config_file")
    @classmethod
    def _is_a_file(cls, config_file: Path | None) -> Path | None:
        if config_file is not None and not config_file.is_file():
            raise ValueError(f"{config_file} is no file in {Path.cwd()}. Give the path of a configuration of "
                             "accelerate, such as conf/accelerate/ddp.yaml, or null.")  # fmt: skip
        return config_file


# -- tasks: where problems come from ----------------------------------------------------------------------------------
Verifier = Literal["math", "exact"]

UNSAFE_VERIFIERS = frozenset(
    (
        "binary_matrix",
        "composite",  # of any others
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    )
)
"""Datasets of reasoning-gym whose verifier passes the answer to eval() or sympy's parse_expr(), which evaluates it."""


class ReasoningGymTask(Parameters):
    """Problems made by a dataset of reasoning-gym, checked by its own verifier."""

    kind: Literal["reasoning_gym"]
    dataset: str
    options: dict[str, Any] = {}

    @field_validator("dataset")
    @classmethod
    def _safe_verifier(cls, dataset: str) -> str:
        if dataset in UNSAFE_VERIFIERS:
            raise ValueError(f"reasoning-gym checks answers to {dataset} by evaluating them as Python, and nothing "
                             "that a model wrote is executed here. Choose another dataset.")  # fmt: skip
        return dataset

    @field_validator("options")
    @classmethod
    def _no_reserved_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        if reserved := sorted({"seed", "size"} & options.keys()):
            raise ValueError(f"{reserved} cannot be given here: the stage chooses them")
        return options


class DatasetTask(Parameters):
    """Problems from a .jsonl or .parquet file or a saved `datasets` folder."""

    kind: Literal["dataset"]
    path: str
    question_column: str = "question"
    answer_column: str = "answer"
    verifier: Verifier = "math"


Task = Annotated[ReasoningGymTask | DatasetTask, Field(discriminator="kind")]


# -- demo_models ------------------------------------------------------------------------------------------------------
class ChainSum(Parameters):
    """reasoning-gym's chain_sum: how hard the problems are that the demo models are trained on."""

    min_terms: Annotated[int, Field(ge=2)]
    max_terms: Annotated[int, Field(ge=2)]
    min_digits: PositiveInt
    max_digits: PositiveInt

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if self.min_terms > self.max_terms or self.min_digits > self.max_digits:
            raise ValueError(f"a minimum is larger than its maximum: {self}")
        return self


class DemoTraces(Parameters):
    """What a slow trace looks like."""

    max_rechecks: NonNegativeInt
    """Each step is checked again zero to this many times."""
    slip_rate: Annotated[float, Field(ge=0, lt=1)]
    """Share of steps that go wrong at first."""
    cut_share: Annotated[float, Field(ge=0, lt=1)]
    """Share of the reference's training examples whose prompt already holds the thinking, cut short and closed."""


class DemoArchitecture(Parameters):
    """A Qwen2 of this size."""

    layers: PositiveInt
    width: PositiveInt
    heads: PositiveInt
    kv_heads: PositiveInt
    mlp_width: PositiveInt


class DemoTraining(Parameters):
    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)]
    save_steps: PositiveInt
    """An interrupted training goes on from the last multiple of these steps."""
    problem_seed: Seed
    """reasoning-gym's problem i of seed s is problem 0 of seed s + i: keep seeds further apart than sizes."""
    seed: Seed


class DemoAlignedTraining(DemoTraining):
    problems: PositiveInt
    """Problems that the reference is sampled on; of each one's completions the shortest correct one is kept."""
    sampling: Sampling


class DemoModels(Parameters):
    """parameters_demo_models.yml: the embedded slow thinker and its aligned model."""

    problems: ChainSum
    traces: DemoTraces
    architecture: DemoArchitecture
    reference: DemoTraining
    aligned: DemoAlignedTraining


# -- data_prep --------------------------------------------------------------------------------------------------------
class ReasoningGymProblems(ReasoningGymTask):
    """A task and how many of its problems."""

    problems: PositiveInt


class DatasetProblems(DatasetTask):
    """A task and how many of its problems."""

    problems: PositiveInt | None = None
    """Drawn with the seed; all of them if not given."""


Problems = Annotated[ReasoningGymProblems | DatasetProblems, Field(discriminator="kind")]


class Calibration(Parameters):
    """Which of the completions become the calibration set. Only correct ones with one finished thinking do."""

    keep: Literal["longest", "all"]
    """Of several completions of one problem."""
    min_tokens: NonNegativeInt
    """Shortest completion, its end-of-turn token included (the paper: 4,000)."""
    max_tokens: PositiveInt
    """Longest completion (the paper: 8,000)."""

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is larger than max_tokens {self.max_tokens}")
        return self


class SampledCalibration(Calibration):
    """Completions that the reference model draws itself."""

    source: Literal["sampled"]
    task: Problems
    sampling: Sampling


class DatasetCalibration(Calibration):
    """Completions from a .jsonl or .parquet file or a saved `datasets` folder, one a row."""

    source: Literal["dataset"]
    path: str
    question_column: str = "question"
    completion_column: str = "completion"
    """The whole reply: the thinking with its tags, and the answer."""
    answer_column: str = "answer"
    verifier: Verifier = "math"
    limit: PositiveInt | None = None
    """At most this many rows are read, drawn with the seed; the filters come after."""


class ShortSolutions(Parameters):
    """What InRa's adapter learns by SFT: the solutions that stand after the thinking of correct completions."""

    cut_share: Annotated[float, Field(ge=0, le=1)]
    """Share of the examples whose prompt already holds the thinking up to a random token (the paper: none)."""


class DataPrep(Parameters):
    """parameters_data_prep.yml: what the models are calibrated and evaluated on."""

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_an_environment_replaces(cls, values: Any) -> Any:
        """An environment's YAML is merged into base's. Its `source: dataset` replaces base's `task` and `sampling`, and
        a task that it sets to null is none."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        if isinstance(calibration := values.get("calibration"), dict) and calibration.get("source") == "dataset":
            values["calibration"] = {k: v for k, v in calibration.items() if k not in ("task", "sampling")}
        if isinstance(tasks := values.get("tasks"), dict):
            values["tasks"] = {name: task for name, task in tasks.items() if task is not None}
        return values

    seed: Seed
    """Of the problems; completions have one of their own."""
    calibration: Annotated[SampledCalibration | DatasetCalibration, Field(discriminator="source")]
    short_solutions: ShortSolutions
    tasks: Annotated[dict[str, Problems], Field(min_length=1)]
    """The evaluation set: its tasks by name."""


# -- teacher_logits ---------------------------------------------------------------------------------------------------
class Teachers(Parameters):
    """parameters_teacher_logits.yml: where the trra stage gets the two models' final hidden states from."""

    mode: Literal["cached", "online"]
    """`cached`: teacher_logits writes them to disk once. `online`: both models run at every training step."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    """What hidden states are stored in. `auto` is the dtype of the model's checkpoint, which loses nothing."""
    batch_size: PositiveInt
    """Examples in a forward pass."""
    shard_tokens: PositiveInt
    """Completion tokens in a shard file: what is lost when a run is killed."""


# -- trra -------------------------------------------------------------------------------------------------------------
class Training(Parameters):
    """A training by Transformers' Trainer."""

    steps: PositiveInt
    batch_size: PositiveInt
    """Examples in an optimizer step."""
    micro_batch_size: PositiveInt
    """Examples in a forward pass of one process; gradients are accumulated. batch_size is a multiple of it times the
    number of processes."""
    learning_rate: PositiveFloat
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)]
    """Share of the steps over which the learning rate rises, before it falls with a cosine."""
    weight_decay: NonNegativeFloat
    max_grad_norm: PositiveFloat
    gradient_checkpointing: bool
    save_steps: PositiveInt
    """An interrupted training goes on from the last multiple of these steps."""
    seed: Seed

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Self:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of micro_batch_size {self.micro_batch_size}")
        return self


class Distillation(Parameters):
    """The divergence from the fused teacher."""

    divergence: Literal["forward_kl", "reverse_kl", "jsd"]
    temperature: PositiveFloat
    """Of student and teacher inside the divergence."""
    chunk_tokens: PositiveInt
    """Tokens whose logits are in memory at a time."""


class Lora(Parameters):
    """PEFT's LoRA matrices, which are trained in place of the weights that they stand beside."""

    rank: PositiveInt
    alpha: PositiveInt
    """Their scale is alpha / rank."""


class StudentLora(Lora):
    """LoRA on all linear layers of the student's body."""

    merge: bool
    """Save a plain checkpoint, the matrices added to the weights; else PEFT's adapter, which needs the reference."""


class TrRa(Training, Distillation):
    """parameters_trra.yml: training-time realignment."""

    alphas: Annotated[list[int | float], Field(min_length=1)]
    """The paper's lambda: how far to move. One checkpoint each, in a folder named as YAML spells the alpha."""
    only_alpha: int | float | None
    """Train this one of `alphas` alone: DVC runs one stage for each."""
    iterations: NonNegativeInt
    """TrRa-iter: further rounds after the first, each with the last one's result as the aligned model."""
    iteration_alphas: list[int | float]
    """The alphas, among `alphas`, that TrRa-iter goes on with."""
    adapter: Literal["full", "lora"]
    """What of the student is trained: all its weights, or LoRA matrices on them."""
    lora: StudentLora

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_distinct(self.alphas)
        if missing := sorted(set(self.iteration_alphas) - set(self.alphas)):
            raise ValueError(f"iteration_alphas {missing} are not among alphas {self.alphas}")
        if self.only_alpha is not None and self.only_alpha not in self.alphas:
            raise ValueError(f"only_alpha {self.only_alpha} is not among alphas {self.alphas}")
        return self

    def checkpoint_names(self, alpha: float) -> list[str]:
        """One of `alphas` -> `trra-1.5` and, for each further round, `trra-iter1-1.5`, all in the alpha's folder."""
        names = [f"trra-{alpha:g}"]
        if alpha in self.iteration_alphas:
            names += [f"trra-iter{iteration}-{alpha:g}" for iteration in range(1, 1 + self.iterations)]
        return [f"{alpha}/{name}" for name in names]


# -- inra -------------------------------------------------------------------------------------------------------------
class Dpo(Parameters):
    """Direct preference optimisation."""

    beta: PositiveFloat
    """Weight of the divergence from the base model (the paper: 0.005 to 0.01)."""


class AdapterDistillation(Distillation):
    """TrRa's objective for the adapter."""

    alpha: float
    """Of the fused teacher that stream A is to follow."""


class InRa(Training):
    """parameters_inra.yml: inference-time realignment, the layer adapter and its training."""

    num_adapter_layers: PositiveInt
    init: Literal["identity", "random"]
    placement: Literal["bottom", "top"]
    """Below layer 0 (the paper), or above the last layer (its ablation, Table 3)."""
    method: Literal["sft", "dpo", "trra"]
    """`sft` on short solutions, `dpo` on preference pairs, or the fused-teacher objective of the stage trra."""
    adapter: Literal["full", "lora"]
    """What of the adapter layers is trained: all their weights, or LoRA matrices on their projections."""
    lora: Lora
    """Merged into the adapter layers after training."""
    dpo: Dpo
    trra: AdapterDistillation


# -- alpha_sweep ------------------------------------------------------------------------------------------------------
class Budgets(Parameters):
    """Thinking inside a token budget: InRa with the schedule TokenBudget against cutting the reference off."""

    tokens: list[PositiveInt]
    """The budgets: tokens of a whole completion."""
    ramp: Annotated[float, Field(ge=0, le=1)]
    """Share of a budget after which alpha rises from 0 to 1."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.tokens)) != len(self.tokens):
            raise ValueError(f"tokens {self.tokens} name one budget twice")
        return self


class AlphaSweep(Parameters):
    """parameters_alpha_sweep.yml: which candidates are measured, and how."""

    dera_alphas: list[float]
    """Alphas at which the two models decode together (DeRa)."""
    inra_alphas: list[float]
    """Alphas of the InRa model; all of them are decoded together."""
    budgets: Budgets
    sampling: Sampling
    bootstrap_samples: PositiveInt
    bootstrap_seed: Seed

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        _check_distinct(self.dera_alphas)
        _check_distinct(self.inra_alphas)
        return self


# -- reporting --------------------------------------------------------------------------------------------------------
class Reporting(Parameters):
    """parameters_reporting.yml: what is recommended, and what the report shows."""

    margin: Annotated[float, Field(ge=0, lt=1)]
    """How much of pass@1 a recommended candidate may lose against the reference (0.02 is 2 points)."""
    examples: NonNegativeInt
    """Problems of each task whose completions the report shows side by side."""
