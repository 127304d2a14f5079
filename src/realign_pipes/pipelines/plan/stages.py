"""The stages of a run in the terms of `estimate`: a row of the plan for each, and what will not fit."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from realign_pipes.data.parameters import GivenPairs
from realign_pipes.errors import InputError
from realign_pipes.generation.parameters import Generation
from realign_pipes.pipelines.alpha_sweep.job import MeasureCandidates
from realign_pipes.pipelines.alpha_sweep.parameters import AlphaSweep
from realign_pipes.pipelines.data_prep.parameters import DataPrep, SampledCalibration
from realign_pipes.pipelines.inra.parameters import InRa
from realign_pipes.pipelines.plan import estimate
from realign_pipes.pipelines.plan.estimate import GIB, Model
from realign_pipes.pipelines.plan.parameters import Plan
from realign_pipes.pipelines.teacher_logits.parameters import Teachers
from realign_pipes.pipelines.trra.parameters import TrRa
from realign_pipes.sweep.kinds import KINDS, Candidate

HEADS = ("stage", "tokens", "memory GiB", "data GiB", "work GiB", "checkpoints", "hours")
SMALL = 0.01
"""What a table shows as a figure of its own; below it `< 0.01`."""


@dataclass
class Stage:
    """A row of the plan. Sizes in bytes; memory is the peak of one device."""

    name: str
    tokens: float = 0
    memory: float = 0
    data: float = 0
    work: float = 0
    """At its peak, beyond what is hard-linked into data/."""
    checkpoints: int = 0
    hours: float = 0


@dataclass(frozen=True)
class Run:
    """A run's parameters."""

    plan: Plan
    data_prep: DataPrep
    teachers: Teachers
    trra: TrRa
    inra: InRa
    alpha_sweep: AlphaSweep
    generation: Generation
    processes: int
    shards: bool
    """Whether the processes of a training share its parameters (FSDP)."""
    warnings: list[str] = field(default_factory=list)

    @cached_property
    def models(self) -> tuple[Model, Model]:
        """The reference and the aligned model."""
        return Model.read(self.plan.reference), Model.read(self.plan.aligned)

    @property
    def positions(self) -> int:
        """Of the longest completion of the sweep with its prompt."""
        return self.plan.prompt_tokens.longest + self.alpha_sweep.sampling.max_new_tokens

    @cached_property
    def adapter(self) -> int:
        """Parameters of InRa's adapter layers."""
        return self.inra.num_adapter_layers * self.models[0].layer_parameters

    @cached_property
    def stages(self) -> list[Stage]:
        """In the order in which they run."""
        stages = [self._models(), self._data_prep(), self._teacher_logits(), self._trra(), self._inra(), self._sweep()]
        return [*stages, Stage("reporting", data=estimate.REPORT_BYTES)]

    def table(self, free: int) -> str:
        """The plan in Markdown. `free` are the bytes that the disk has left."""
        total = Stage(
            "in all",
            tokens=sum(stage.tokens for stage in self.stages),
            memory=max(stage.memory for stage in self.stages),
            data=sum(stage.data for stage in self.stages),
            work=max(stage.work for stage in self.stages),
            checkpoints=sum(stage.checkpoints for stage in self.stages),
            hours=sum(stage.hours for stage in self.stages),
        )
        lines = ["| " + " | ".join(HEADS) + " |", "| --- |" + " ---: |" * (len(HEADS) - 1)]
        lines += [_line(stage) for stage in (*self.stages, total)]
        warnings = [*self.warnings, *self._lengths(), *self._too_large()]
        if (needed := total.data + total.work) > free:
            warnings.append(f"disk: {needed / GIB:.1f} GiB are needed, and {free / GIB:.1f} GiB are free.")
        speeds = self.plan.tokens_per_second
        lines += ["", f"Hours at {speeds.decode:,.0f} tokens a second decoded, {speeds.train:,.0f} trained and "
                  f"{speeds.forward:,.0f} passed forward; {self.generation.engine} draws the completions."]  # fmt: skip
        lines += ["", *(f"- WARNING: {warning}" for warning in warnings)] if warnings else []
        return "\n".join(lines)

    def _models(self) -> Stage:
        """What is given: both models and the sweep's others, which are taken to be as large as the reference."""
        reference, aligned = self.models
        others = len(self.alpha_sweep.others)
        weights = reference.weights * (1 + others) + aligned.weights
        return Stage("models", data=weights, checkpoints=2 + others)

    def _data_prep(self) -> Stage:
        """Completions of the calibration, drawn or read, and the four data sets that are made from them."""
        size, prompt = self.plan.calibration, self.plan.prompt_tokens.mean
        stage = Stage("data_prep", tokens=size.completions * size.tokens)
        rows = size.completions * (prompt + size.tokens) + size.examples * (2 * prompt + size.tokens)
        solutions = size.completions * self.plan.solution_tokens
        stage.data = estimate.DATASET_BYTES * (rows + solutions)
        stage.data += estimate.ROW_BYTES * (size.completions + 2 * size.examples)
        calibration = self.data_prep.calibration
        if isinstance(calibration, SampledCalibration):
            sampling = calibration.sampling
            longest = self.plan.prompt_tokens.longest + sampling.max_new_tokens
            key = "data_prep.calibration.sampling.batch_size"
            stage.memory = self._drawing("reference", sampling.batch_size, longest, key)
            stage.work = stage.tokens * estimate.LINE_BYTES
            stage.hours = stage.tokens / self.plan.tokens_per_second.decode / 3600
        return stage

    def _teacher_logits(self) -> Stage:
        """Both models over the calibration set once; nothing with online teachers."""
        stage, size = Stage("teacher_logits"), self.plan.calibration
        if self.teachers.mode == "online":
            return stage
        stage.tokens = 2 * size.examples * (self.plan.prompt_tokens.mean + size.tokens)
        stage.hours = stage.tokens / self.plan.tokens_per_second.forward / 3600
        longest = self.plan.prompt_tokens.longest + self.data_prep.calibration.max_tokens
        stage.memory = max(estimate.forward(model, self.teachers.batch_size, longest) for model in self.models)
        stage.data = sum(self._cache(model) for model in self.models)
        return stage

    def _cache(self, model: Model) -> float:
        size = self.plan.calibration
        return estimate.teacher_cache(model, size.examples * size.tokens, _width(self.teachers.dtype, model))

    def _trra(self) -> Stage:
        """Each student's training; the caches of further rounds are kept in work while their student is trained."""
        reference, aligned = self.models
        students, trra, size = self.trra.all_students(), self.trra, self.plan.calibration
        stage = Stage("trra", checkpoints=len(students))
        longest = self.plan.prompt_tokens.longest + self.data_prep.calibration.max_tokens
        for student in students.values():
            lora = student.lora or trra.adapter == "lora"
            trained = estimate.lora_parameters(reference, trra.lora.rank) if lora else reference.parameters
            merged = not lora or (trra.lora.merge and not student.lora)
            stage.data += reference.weights if merged else trained * estimate.FLOAT32
            tokens = trra.steps * trra.batch_size * (self.plan.prompt_tokens.mean + size.tokens)
            online = self.teachers.mode == "online"
            seconds = tokens / self.plan.tokens_per_second.train
            if online:
                seconds += 2 * tokens / self.plan.tokens_per_second.forward
            cached = bool(student.iteration) and not online
            if cached:
                seconds += tokens / self.plan.tokens_per_second.forward
            stage.tokens += tokens
            stage.hours += seconds / 3600
            width = estimate.FLOAT32 if lora else _width(trra.dtype, reference)
            states = estimate.training_states(trained, trra.steps, trra.save_steps, width)
            stage.work = max(stage.work, states + (self._cache(aligned) if cached else 0))
            memory = estimate.training(
                reference,
                trained=trained,
                layers_trained_through=reference.layers,
                rows=trra.micro_batch_size,
                positions=longest,
                checkpointing=trra.gradient_checkpointing,
                chunk_tokens=trra.chunk_tokens,
                trained_width=width,
                frozen_width=reference.width,  # LoRA's, which are the checkpoint's own
                teachers=sum(model.weights for model in self.models) if online else 0,
            )
            stage.memory = max(stage.memory, self._of_one_process(memory))
        return stage

    def _inra(self) -> Stage:
        """The adapter's training: all other weights are frozen, and in no state."""
        reference, inra, prompt = self.models[0], self.inra, self.plan.prompt_tokens
        long, size = self.data_prep.calibration.max_tokens, self.plan.calibration.tokens
        sft, dpo = inra.method in ("sft", "sft_dpo"), inra.method in ("dpo", "sft_dpo")
        stage = Stage("inra", checkpoints=1, data=reference.weights + self.adapter * reference.width)
        longest = 0
        if sft:
            longest = self.data_prep.short_solutions.max_tokens or long
            stage.tokens += inra.steps * inra.batch_size * (prompt.mean + self.plan.solution_tokens)
        if dpo:  # chosen and rejected, each by both streams
            pairs = self.data_prep.preference_pairs
            longest = max(longest, (isinstance(pairs, GivenPairs) and pairs.max_tokens) or long)
            stage.tokens += 4 * inra.of_dpo().steps * inra.batch_size * (prompt.mean + size)
        if inra.method == "trra":
            longest = long
            stage.tokens += inra.steps * inra.batch_size * (prompt.mean + size)
        stage.hours = stage.tokens / self.plan.tokens_per_second.train / 3600
        width = _width(inra.dtype, reference)
        stage.work = estimate.training_states(self.adapter, inra.steps, inra.save_steps, width)
        memory = estimate.training(
            reference,
            trained=self.adapter,
            layers_trained_through=reference.layers + inra.num_adapter_layers,
            rows=inra.micro_batch_size * (2 if dpo else 1),
            positions=longest,
            checkpointing=inra.gradient_checkpointing,
            chunk_tokens=inra.trra.chunk_tokens if inra.method == "trra" else inra.micro_batch_size * longest,
            trained_width=width,
            frozen_width=_width(inra.frozen_dtype, reference),
        )
        stage.memory = self._of_one_process(memory + self.adapter * width)
        return stage

    def _of_one_process(self, memory: float) -> float:
        return memory / self.processes if self.shards else memory

    def candidates(self) -> list[Candidate]:
        """Those of the sweep, on checkpoints that do not exist yet."""
        none = Path("checkpoint")
        job = MeasureCandidates(
            parameters=self.alpha_sweep,
            tasks=self.data_prep.tasks,
            generation=self.generation,
            trra=self.trra,
            inra_plausibility=self.inra.plausibility,
            reference=none / "reference",
            aligned=none / "aligned",
            trra_checkpoints=dict.fromkeys(self.trra.all_students(), none),
            inra_checkpoint=none / "inra",
            others=dict.fromkeys(self.alpha_sweep.others, none),
            problems=none,
            work=none,
        )
        return [*job.sweep_candidates(), *job.budget_candidates()]

    def completions(self) -> int:
        """Of one candidate. InputError for a task whose number of problems nobody gave."""
        drawn = 0
        for name, task in self.data_prep.tasks.items():
            problems = task.problems or self.plan.problems.get(name)
            if problems is None:
                raise InputError(f"plan.problems does not say how many problems the task {name} has: "
                                 f"plan: {{problems: {{{name}: …}}}}")  # fmt: skip
            drawn += problems * (task.samples or self.alpha_sweep.sampling.samples)
        return drawn

    def _sweep(self) -> Stage:
        """The candidates' completions, each as long as the reference's or as its budget."""
        stage, completions = Stage("alpha_sweep"), self.completions()
        for candidate in self.candidates():
            kind = KINDS[candidate.kind]
            tokens = completions * min(self.plan.completion_tokens, candidate.budget or float("inf"))
            stage.tokens += tokens
            stage.hours += tokens * kind.passes / self.plan.tokens_per_second.decode / 3600
            stage.work = max(stage.work, tokens * estimate.LINE_BYTES)
        stage.data = stage.tokens * estimate.PARQUET_BYTES
        stage.work += stage.data  # the finished candidates' files, of which data/ gets copies
        key, rows = "alpha_sweep.sampling.batch_size", self.alpha_sweep.sampling.batch_size
        kinds = dict.fromkeys(candidate.kind for candidate in self.candidates())
        stage.memory = max(self._drawing(kind, rows, self.positions, key) for kind in kinds)
        return stage

    def _drawing(self, kind: str, rows: int, positions: int, key: str) -> float:
        """Memory to draw completions of a kind; a warning where they do not fit. `key` is the batch's parameter."""
        reference, aligned = self.models
        models = [reference, aligned] if KINDS[kind].models == 2 else [reference]
        streams = KINDS[kind].kv_streams // len(models)
        extra = self.adapter * reference.width if kind in ("inra", "token_budget") else 0
        room, weights = self.plan.device_memory * GIB, sum(model.weights for model in models) + extra
        if self.generation.engine == "vllm" and KINDS[kind].serve is not None:
            alone = KINDS[kind].takes_alpha  # the plug-in does not divide a model of InRa
            share = 1 if alone else self.generation.tensor_parallel_size
            room *= estimate.VLLM_SHARE
            cache = estimate.kv_cache(reference, 1, positions, streams)
            if (weights + cache) / share > room:
                self.warnings.append(
                    f"{KINDS[kind].label}: the weights ({weights / GIB:.1f} GiB) and one completion of {positions:,} "
                    f"tokens ({cache / GIB:.1f} GiB) do not fit into {room * share / GIB:.1f} GiB of vLLM's. "
                    + (
                        "InRa cannot be divided among GPUs."
                        if alone
                        else "Set generation.tensor_parallel_size to more."
                    )
                )
            return room
        memory = estimate.decoding(models, rows, positions, streams=streams, extra_weights=extra)
        if memory > room:
            cache = sum(estimate.kv_cache(model, rows, positions, streams) for model in models)
            fit = estimate.rows_that_fit(reference, room, positions, streams=streams * len(models), weights=weights)
            self.warnings.append(
                f"{KINDS[kind].label}: {key} is {rows}, and the KV cache of {rows} completions of {positions:,} tokens "
                f"takes {cache / GIB:.0f} GiB ({cache / 1e9:.0f} GB), beside {weights / GIB:.1f} GiB of weights, of "
                f"{room / GIB:g} GiB. " + (f"Set it to {fit} or less." if fit > 0 else "Not even one fits.")
            )
        return memory

    def _lengths(self) -> Iterator[str]:
        """Completions that could be longer than a model has positions for."""
        longest = [*self.alpha_sweep.longest_completions()]
        if isinstance(self.data_prep.calibration, SampledCalibration):
            sampling = self.data_prep.calibration.sampling
            longest.append(("data_prep.calibration.sampling.max_new_tokens", sampling.max_new_tokens))
        prompt = self.plan.prompt_tokens.longest
        for model, path in zip(self.models, (self.plan.reference, self.plan.aligned), strict=True):
            for key, tokens in longest:
                if model.positions is not None and prompt + tokens > model.positions:
                    yield (
                        f"{key} is {tokens:,} and the longest prompt has {prompt:,} tokens: more than the "
                        f"{model.positions:,} positions in {path}."
                    )

    def _too_large(self) -> Iterator[str]:
        """Stages besides the drawing that do not fit into the device."""
        for stage in self.stages:
            room = self.plan.device_memory * GIB
            if stage.name in ("teacher_logits", "trra", "inra") and stage.memory > room:
                yield (
                    f"{stage.name}: {stage.memory / GIB:.1f} GiB do not fit into {room / GIB:g} GiB. Set its "
                    "micro-batch to less, gradient_checkpointing to true or adapter to lora, or share it with FSDP."
                )


def _width(dtype: str, model: Model) -> int:
    """Bytes of a number of this `dtype`; of `auto`, the model's own."""
    if dtype == "auto":
        return model.width
    width: int = getattr(torch, dtype).itemsize
    return width


def _line(stage: Stage) -> str:
    cells = [
        stage.name,
        _tokens(stage.tokens),
        *(_size(size / GIB) for size in (stage.memory, stage.data, stage.work)),
        str(stage.checkpoints or "–"),
        _size(stage.hours),
    ]
    return "| " + " | ".join(cells) + " |"


def _size(value: float) -> str:
    if value == 0:
        return "–"
    return f"{value:,.2f}" if value >= SMALL else f"< {SMALL}"


def _tokens(tokens: float) -> str:
    if tokens == 0:
        return "–"
    return f"{tokens / 1e6:,.1f} M" if tokens >= 1e5 else f"{tokens:,.0f}"
