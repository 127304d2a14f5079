"""The pipeline tax: which candidates are measured, what is kept of an interrupted run, what is refused."""

import json
import math
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from datasets import Dataset
from kedro.io import DataCatalog
from pydantic import ValidationError
from scipy.special import rel_entr, softmax
from transformers import AutoModelForCausalLM

from realign_pipes.errors import InputError
from realign_pipes.hooks import WrongParameters
from realign_pipes.models.fingerprint import fingerprint_model
from realign_pipes.models.load import load_model
from realign_pipes.paper.dera import DeRaForCausalLM
from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.pipelines.alpha_sweep.job import MeasureCandidates
from realign_pipes.pipelines.tax import job as module
from realign_pipes.pipelines.tax import nodes
from realign_pipes.pipelines.tax.job import MeasureTax
from realign_pipes.pipelines.tax.parameters import Tax
from realign_pipes.pipelines.tax.pipeline import create_pipeline
from realign_pipes.pipelines.trra.parameters import TrRa
from realign_pipes.sweep import divergence, harness
from realign_pipes.sweep.parameters import AlphaSweep
from realign_pipes.sweep.schemas import TAX_RESULTS

CPU = torch.device("cpu")
BASE = Path(__file__).parents[2] / "conf" / "base"
LETTERS = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
doc_to_text: question
"""
CHOSEN = """
output_type: multiple_choice
doc_to_choice: [a, b, c]
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITTEN = """
output_type: generate_until
doc_to_target: answer
generation_kwargs: {until: ["."], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def base(kind, name, **changes):
    """Base's parameters, with changes."""
    return kind.model_validate({**yaml.safe_load((BASE / f"parameters_{name}.yml").read_text())[name], **changes})


@pytest.fixture
def tasks(tmp_path):
    """A folder with the tasks `chosen` and `written`, on the same eight questions."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": f"{number} + 1 =", "label": number % 3, "answer": "a"} for number in range(8)]
    (folder / "letters.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, rest in (("chosen", CHOSEN), ("written", WRITTEN)):
        head = LETTERS.format(name=name, file=folder / "letters.jsonl")
        (folder / f"{name}.yaml").write_text(head + rest)
    return folder


@pytest.fixture
def make_tax(tmp_path, tasks, make_checkpoint, make_generation):
    """`make_tax(**parameters)`: the job on a sweep of tiny checkpoints without students."""
    reference, aligned = (
        make_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate(("reference", "aligned"))
    )
    InRaForCausalLM.from_base(reference).save_pretrained(tmp_path / "inra")
    metadata = {"reference": {"name": "reference", "fingerprint": fingerprint_model(reference)}}
    (tmp_path / "inra" / "realignment.json").write_text(json.dumps(metadata))
    none = {"alphas": [], "iterations": 0, "iteration_alphas": None, "ablation_alphas": None, "scaled_lora": False}
    sweep = MeasureCandidates(
        parameters=base(
            AlphaSweep,
            "alpha_sweep",
            dera_alphas=[1.5],
            inra_alphas=[0.0, 1.0],
            merge_alphas=[],
            ties={"alphas": [], "density": 0.5},
            svd={"alphas": [], "rank": 4},
            lora_scale_alphas=[],
        ),
        generation=make_generation(),
        tasks={},
        trra=base(TrRa, "trra", **none),
        inra_plausibility=0.0,
        reference=reference,
        aligned=aligned,
        trra_checkpoints={},
        inra_checkpoint=tmp_path / "inra",
        problems=tmp_path,
        work=tmp_path / "sweep",
    )

    def make(**parameters):
        values = {
            "tasks": ["chosen", "written"], "include_path": tasks, "batch_size": 3, "kl_completions": None,
            **parameters,
        }  # fmt: skip
        return MeasureTax(base(Tax, "tax", **values), sweep, tmp_path / "work")

    return make


@pytest.fixture
def own_tasks_only(monkeypatch):
    """The harness's own 14,000 tasks are not read, which takes many seconds."""
    real = harness.TaskManager
    monkeypatch.setattr(
        harness, "TaskManager", lambda include_path, include_defaults=True: real(
            include_path=include_path, include_defaults=False
        )
    )  # fmt: skip


def test_every_candidate_gets_a_figure_for_each_task(make_tax):
    found = make_tax().run({}, None)
    assert {name: str(kind) for name, kind in found.dtypes.items()} == TAX_RESULTS
    assert list(found["candidate"].unique()) == ["reference", "aligned", "dera-1.5", "inra-0", "inra-1"]
    assert set(zip(found["task"], found["metric"], strict=True)) == {("chosen", "acc"), ("written", "exact_match")}
    chosen = found.query("task == 'chosen'").set_index("candidate")
    reference = chosen.loc["reference"]
    assert reference["value"] in {number / 8 for number in range(9)} and reference["problems"] == 8
    assert reference["stderr"] == pytest.approx(
        math.sqrt(reference["value"] * (1 - reference["value"]) / 7)
    )  # of a mean of eight numbers that are 0 or 1
    assert (chosen["difference"] == chosen["value"] - reference["value"]).all()
    assert chosen.loc["inra-0", "value"] == chosen.loc["inra-1", "value"] == reference["value"]  # a fresh adapter
    assert math.isnan(reference["alpha"]) and chosen.loc["dera-1.5", "alpha"] == 1.5


def test_what_an_interrupted_run_measured_is_kept(make_tax, monkeypatch, tasks):
    measured = []

    def measure(lm, task, **options):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(task.name)
        return {task.name: {"acc": {"value": 0.5, "stderr": None, "problems": 8}}}

    monkeypatch.setattr(module, "measure", measure)
    few = {"candidates": ["inra-1"]}
    with suppress(KeyboardInterrupt):
        make_tax(**few).run({}, None)
    kept, measured[:] = len(measured), []
    make_tax(**few).run({}, None)
    assert (kept, len(measured)) == (3, 1)
    make_tax(**few, batch_size=1).run({}, None)  # which changes no result
    assert len(measured) == 1
    (tasks / "letters.jsonl").write_text('{"question": "?", "label": 0, "answer": "a"}')
    with suppress(KeyboardInterrupt):
        make_tax(**few).run({}, None)
    assert len(measured) == 3  # all again, on other problems


def test_the_divergence_from_the_reference_is_that_of_the_two_distributions(make_tax, tiny_tokenizer):
    asked = Dataset.from_list(
        [{"id": f"q-{number}", "prompt_ids": tiny_tokenizer(f"{number}+1=")["input_ids"]} for number in range(4)]
    )
    rows = [
        {"task": "q", "problem_id": f"q-{number}", "sample": sample, "completion": "ab" * (number + 1),
         "completion_tokens": 2 * (number + 1) + (number % 2), "finished": bool(number % 2)}
        for sample in range(2) for number in range(4)
    ]  # fmt: skip
    names = ["reference", "dera-1.5", "inra-0", "inra-1"]
    job = make_tax(candidates=names[1:], kl_completions=3, tasks=["chosen"])
    found = job.run(dict.fromkeys(names, lambda: pd.DataFrame(rows)), asked)
    kl = found.query("task == 'KL q' and metric == 'nats'").set_index("candidate")
    assert list(kl.index) == names and set(kl["problems"]) == {3}
    assert kl.loc["reference", "value"] == kl.loc["inra-0", "value"] == 0
    assert kl.loc["inra-1", "value"] == pytest.approx(0, abs=1e-6), "a fresh adapter"

    reference, aligned = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
        for path in (job.sweep.reference, job.sweep.aligned)
    )
    means = []
    for number in range(3):  # the first sample of the first three problems
        prompt = asked[number]["prompt_ids"]
        completion = tiny_tokenizer("ab" * (number + 1))["input_ids"]
        completion += [tiny_tokenizer.eos_token_id] * (number % 2)
        terms = []
        for place in range(len(completion)):
            ids = torch.tensor([[*prompt, *completion[:place]]])
            z_ref, z_aligned = (model(ids).logits[0, -1].detach().numpy() for model in (reference, aligned))
            fused = softmax(1.5 * z_aligned - 0.5 * z_ref)
            likely = np.maximum(softmax(z_ref), softmax(z_aligned))
            fused[likely < 0.1 * likely.max()] = 0
            terms.append(rel_entr(fused / fused.sum(), softmax(z_ref)).sum())
        means.append(np.mean(terms))
    assert kl.loc["dera-1.5", "value"] == pytest.approx(np.mean(means), rel=1e-4)
    assert kl.loc["dera-1.5", "stderr"] == pytest.approx(np.std(means, ddof=1) / 3**0.5, rel=1e-4)
    with pytest.raises(InputError, match=r"the sweep has no completions of inra-0. Run alpha_sweep first"):
        job.run({"reference": pd.DataFrame(rows), "dera-1.5": pd.DataFrame(rows)}, asked)


def test_the_divergence_of_long_completions_is_computed_in_pieces(tmp_path, make_checkpoint, monkeypatch):
    """So that its memory does not grow with the completions: of a mixture with a mask, and of InRa's two streams."""
    reference, aligned = (load_model(make_checkpoint(tmp_path / f"{seed}", seed=seed), device=CPU) for seed in (1, 2))
    inra = InRaForCausalLM.from_base(reference)
    with torch.no_grad():
        for parameter in inra.adapter_layers[0].parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    vocab = reference.config.vocab_size
    tokens = torch.randint(vocab, (40,), generator=torch.Generator().manual_seed(2)).tolist()
    examples = [(tokens[:3], tokens[3:30]), (tokens[5:6], tokens[6:16]), (tokens[10:14], tokens[14:])]
    monkeypatch.setattr(divergence, "LOGITS_AT_ONCE", 2 * 7 * vocab)
    sizes = []

    def watched(model):
        return lambda *ids, **options: (found := model(*ids, **options), sizes.append(found.logits.numel()))[0]

    for candidate in (DeRaForCausalLM(reference, aligned, 1.5, vocab, 0.1), partial(inra, alpha=0.5), aligned):
        found = divergence.kl_per_token(
            watched(candidate), watched(reference), examples, vocab_size=vocab, batch_size=2, device=CPU
        )
        for kl, (prompt, completion) in zip(found, examples, strict=True):
            ids = torch.tensor([prompt + completion])
            p, q = (softmax(model(ids).logits[0].detach().double().numpy(), -1) for model in (candidate, reference))
            terms = rel_entr(p, q).sum(-1)[len(prompt) - 1 : -1]
            assert len(terms) == len(completion) and kl == pytest.approx(terms.mean(), rel=1e-4) and kl > 1e-3
    assert max(sizes) == 2 * 7 * vocab


def test_named_candidates_are_measured_beside_the_reference(make_tax):
    assert [one.name for one in make_tax(candidates=["inra-1"]).candidates()] == ["reference", "inra-1"]
    assert [one.name for one in make_tax(candidates=["reference"]).candidates()] == ["reference"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"candidates": ["inra-2"]}, r"tax.candidates: there is no candidate of the sweep 'inra-2': did you mean"),
        ({"candidates": ["aligned-min-p"]}, r"tax.candidates: aligned-min-p is another row's model"),
        ({"include_path": "conf/nowhere"}, r"tax.include_path: there is no folder conf/nowhere in "),
        ({"tasks": ["choosen"]}, r"tax.tasks: there is no task 'choosen': did you mean 'chosen'\?"),
    ],
)
def test_what_does_not_exist_is_refused_before_a_model_is_loaded(make_tax, own_tasks_only, parameters, message):
    job = make_tax(**parameters)
    with pytest.raises(InputError, match=message):
        job.run({}, None)
    assert not job.work.exists()


def test_a_task_without_its_data_or_that_runs_code_is_refused(make_tax, tasks):
    text = (tasks / "written.yaml").read_text()
    (tasks / "written.yaml").write_text(text.replace("letters.jsonl", "missing.jsonl"))
    with pytest.raises(InputError, match=r"the task written of tax.tasks cannot be loaded: .*missing.jsonl"):
        make_tax().run({}, None)
    (tasks / "written.yaml").write_text(f"{text}\nunsafe_code: true")
    with pytest.raises(InputError, match="written executes what a model wrote"):
        make_tax().run({}, None)


def test_without_the_harness_the_run_says_what_to_install(monkeypatch):
    monkeypatch.setattr(nodes, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'realign_pipes\[tax\]'"):
        WrongParameters().before_pipeline_run(create_pipeline(), DataCatalog())
    WrongParameters().before_pipeline_run(create_pipeline().only_nodes("tabulate_tax"), DataCatalog())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tasks": ["a", "a"]}, "has a name twice"),
        ({"tasks": []}, "tasks"),
        ({"limit": 0}, "limit"),
        ({"task": ["a"]}, "did you mean 'tasks'"),
    ],
)
def test_wrong_parameters_are_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        base(Tax, "tax", **wrong)
