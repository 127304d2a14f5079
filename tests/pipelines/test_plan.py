"""The plan: formulas against figures computed by hand, and what it says of parameters."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from realign_pipes.config import ConfigLoader
from realign_pipes.errors import MissingFileError
from realign_pipes.hooks import check_parameters
from realign_pipes.paper.expansion import InRaConfig, expanded_config
from realign_pipes.pipelines.plan import estimate
from realign_pipes.pipelines.plan.estimate import GIB, Model
from realign_pipes.pipelines.plan.nodes import plan_run
from realign_pipes.pipelines.plan.stages import Run
from realign_pipes.runtime.launch import Folders, Launcher
from realign_pipes.settings import CONFIG_LOADER_ARGS

PROJECT = Path(__file__).parents[2]
SMALL = Path("conf/paper_trra/models/reference.json")
LARGE = Path("conf/paper_inra/models/reference.json")


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch):
    monkeypatch.chdir(PROJECT)


def run_of(env, **changes):
    """`kedro run --pipelines plan --env X` with changed parameters."""
    parameters = ConfigLoader(PROJECT / "conf", env, runtime_params=changes, **CONFIG_LOADER_ARGS)["parameters"]
    check_parameters(parameters)
    kinds = Run.__annotations__
    stages = ("plan", "data_prep", "teachers", "trra", "inra", "alpha_sweep", "generation")
    return Run(**{name: kinds[name].model_validate(parameters[name]) for name in stages}, processes=1, shards=False)


def stage(run, name):
    return {stage.name: stage for stage in run.stages}[name]


@pytest.mark.parametrize(
    ("config", "parameters", "kv_token"),
    [
        # embedding and head 2 x 151,936 x 1,536; 28 layers of q 1,536 x 1,536 + 1,536, k and v 2 x (1,536 x 256 + 256),
        # o 1,536 x 1,536, mlp 3 x 1,536 x 8,960, norms 2 x 1,536; last norm 1,536. KV: 2 x 28 x 256 x 2 bytes.
        (SMALL, 1_777_088_000, 28_672),
        (LARGE, 7_615_616_512, 57_344),
    ],
)
def test_a_models_shape(config, parameters, kv_token):
    model = Model.read(config)
    assert (model.parameters, model.kv_token, model.width) == (parameters, kv_token, 2)
    assert model.weights == 2 * parameters
    assert model.positions == 131072


def test_the_adapter_is_a_layer():
    about = AutoConfig.for_model(**json.loads(SMALL.read_text()))
    with torch.device("meta"):
        expanded = AutoModelForCausalLM.from_config(expanded_config(about, InRaConfig()))
    model = Model.read(SMALL)
    assert sum(p.numel() for p in expanded.parameters()) == model.parameters + model.layer_parameters


def test_lora_has_what_peft_gives_it(make_checkpoint, tmp_path):
    from peft import LoraConfig, get_peft_model

    path = make_checkpoint(tmp_path / "model")
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(path),
        LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trained, _ = adapted.get_nb_trainable_parameters()
    assert estimate.lora_parameters(Model.read(path / "config.json"), 3) == trained


def test_memory_by_hand():
    model = Model.read(SMALL)
    # 400 rows of 16,384 tokens: the figure that a user of base's batch size has to know
    assert estimate.kv_cache(model, 400, 16_384) == 400 * 16_384 * 28_672 == pytest.approx(188e9, rel=0.001)
    drawn = estimate.decoding([model], 2, 10)
    assert drawn == 2 * 1_777_088_000 + 2 * 10 * 28_672 + 4 * 2 * 151_936 * 4
    assert estimate.decoding([model, model], 2, 10) - drawn == 2 * 1_777_088_000 + 2 * 10 * 28_672
    values = 5 * 1536 + 2 * 1536 + 2 * 256 + 4 * 8960
    assert estimate.layer_values(model) == values
    trained = estimate.training(
        model, trained=model.parameters, layers_trained_through=28, rows=1, positions=9000, checkpointing=True,
        chunk_tokens=1024,
    )  # fmt: skip
    activations = 9000 * (28 * 1536 + values) * 2
    assert trained == (16 + 2) * 1_777_088_000 + activations + 6 * 1024 * 151_936 * 4
    frozen = estimate.training(
        model, trained=1000, layers_trained_through=28, rows=1, positions=9000, checkpointing=True, chunk_tokens=1024
    )
    assert trained - frozen == (model.parameters - 1000) * 12
    narrow = estimate.training(
        model, trained=1000, layers_trained_through=28, rows=1, positions=9000, checkpointing=True, chunk_tokens=1024,
        trained_width=2, frozen_width=2,
    )  # fmt: skip
    assert frozen - narrow == (model.parameters - 1000) * 2 + 1000 * 8
    assert estimate.training_states(model.parameters, 200, 200) == 12 * 1_777_088_000  # 21 GB
    assert estimate.training_states(model.parameters, 200, 20) == 2 * 12 * 1_777_088_000
    assert estimate.training_states(model.parameters, 200, 20, 2) == 2 * 6 * 1_777_088_000
    fit = estimate.rows_that_fit(model, 80 * GIB, 16_384, weights=model.weights)
    assert estimate.decoding([model], fit, 16_384) <= 80 * GIB < estimate.decoding([model], fit + 1, 16_384)


def test_tokens_by_hand():
    run = run_of("paper_trra")
    per_candidate = (30 + 30 + 500) * 8
    assert run.completions() == per_candidate
    names = [candidate.name for candidate in run.candidates()]
    assert len(names) == 18 and {"trra-iter2-2", "other-theirs-10", "inra-0.5"} <= set(names)
    assert stage(run, "alpha_sweep").tokens == 18 * per_candidate * 9860
    assert stage(run, "trra").tokens == 7 * 200 * 16 * (150 + 5800)
    assert (stage(run, "trra").checkpoints, stage(run, "models").checkpoints) == (7, 6)
    assert stage(run, "trra").data == 7 * 2 * 1_777_088_000
    assert stage(run, "teacher_logits").data == 2 * (3200 * 5800 + 151_936) * 1536 * 2
    assert stage(run, "teacher_logits").hours == pytest.approx(2 * 3200 * 5950 / 40_000 / 3600)
    assert run_of("dler").completions() == 60 * 64 + 500 * 4


def test_sft_and_then_dpo_by_hand():
    """The DPO reads replies as long as the calibration's, four times; what is longest needs the most memory."""
    inra = {"steps": 100, "batch_size": 8, "micro_batch_size": 2, "dpo": {"steps": 50}}
    size = {"prompt_tokens": {"mean": 10.0, "longest": 20}, "solution_tokens": 5, "calibration": {"tokens": 1000.0}}

    def made(method, short=64, **data_prep):
        short_solutions = {"max_tokens": short}
        return stage(run_of("base", inra={**inra, "method": method}, plan=size,
                            data_prep={"short_solutions": short_solutions, **data_prep}), "inra")  # fmt: skip

    sft, dpo, both = (made(method) for method in ("sft", "dpo", "sft_dpo"))
    assert (sft.tokens, dpo.tokens) == (100 * 8 * (10 + 5), 4 * 50 * 8 * (10 + 1000))
    assert both.tokens == sft.tokens + dpo.tokens
    assert both.memory == dpo.memory > sft.memory  # calibration.max_tokens is 160
    assert made("sft_dpo", short=200).memory > both.memory
    given = {"preference_pairs": {"source": "dataset", "path": "pairs.jsonl", "max_tokens": 500}}
    assert made("sft_dpo", **given).memory == made("dpo", **given).memory > both.memory


def test_a_stage_with_two_streams_takes_twice_the_cache():
    kinds = {"inra_alphas": [0.5], "merge_alphas": None, "others": {}}
    batch = {"sampling": {"batch_size": 10}}
    changes = {
        "generation": {"engine": "transformers"},
        "trra": {"alphas": [1.0], "iterations": 0, "iteration_alphas": None},
    }
    with_inra = stage(run_of("paper_trra", alpha_sweep={**kinds, **batch}, **changes), "alpha_sweep").memory
    without = stage(
        run_of("paper_trra", alpha_sweep={**kinds, **batch, "inra_alphas": []}, **changes), "alpha_sweep"
    ).memory
    model = Model.read(SMALL)
    assert with_inra - without == 10 * (16_384 + 1200) * model.kv_token + 2 * model.layer_parameters


def warnings_of(run, free=10**15):
    return re.findall(r"WARNING: (.*)", run.table(free))


def test_what_will_not_fit_is_said():
    sampling = {"sampling": {"batch_size": 400}}
    run = run_of("paper_trra", generation={"engine": "transformers"}, alpha_sweep=sampling)
    text = "\n".join(warnings_of(run))
    assert (
        "Reference: alpha_sweep.sampling.batch_size is 400, and the KV cache of 400 completions of 17,584 tokens"
        in text
    )
    assert "takes 188 GiB (202 GB)" in text and "InRa" in text and "(403 GB)" in text
    fit = int(re.search(r"Reference: .*Set it to (\d+) or less", text)[1])
    sampling = {"sampling": {"batch_size": fit}}
    less = run_of("paper_trra", generation={"engine": "transformers"}, alpha_sweep=sampling)
    assert not [one for one in warnings_of(less) if one.startswith("Reference")]


def test_what_vllm_has_no_room_for_is_divided_but_for_inra():
    vllm = {"engine": "vllm", "tensor_parallel_size": 1}
    small = {"plan": {"device_memory": 3}}
    alone = {one.partition(":")[0]: one for one in warnings_of(run_of("paper_trra", generation=vllm, **small))}
    divided = run_of("paper_trra", generation={**vllm, "tensor_parallel_size": 8}, **small)
    assert alone["Reference"].endswith("Set generation.tensor_parallel_size to more.")
    assert alone["InRa"].endswith("InRa cannot be divided among GPUs.")
    still = warnings_of(divided)
    assert alone["InRa"] in still and not [one for one in still if one.startswith("Reference")]


@pytest.mark.parametrize(
    ("changes", "free", "message"),
    [
        ({"alpha_sweep": {"sampling": {"max_new_tokens": 131_000}}}, 10**15, "is 131,000 and the longest"),
        ({}, 10**9, r"disk: [\d.]+ GiB are needed, and 0.9 GiB are free"),
        ({"trra": {"micro_batch_size": 16, "gradient_checkpointing": False}}, 10**15, "trra: .* do not fit into 80"),
        ({"plan": {"device_memory": 4}}, 10**15, r"Reference: the weights \(3.3 GiB\) and one completion of 17,584"),
    ],
)  # fmt: skip
def test_each_warning(changes, free, message):
    assert warnings_of(run_of("paper_trra")) == []
    assert any(re.search(message, warning) for warning in warnings_of(run_of("paper_trra", **changes), free))


def test_a_task_of_unknown_size_is_asked_for():
    with pytest.raises(ValueError, match=r"plan.problems does not say how many problems the task more has"):
        run_of("paper_trra", data_prep={"tasks": {"more": {"kind": "dataset", "path": "x"}}}).table(0)


def test_a_model_without_its_config_is_named(monkeypatch):
    monkeypatch.chdir(PROJECT)
    with pytest.raises(MissingFileError, match=r"plan[.]aligned: there is no file missing[.]json in .*Give the path"):
        plan_run(run_of("base", plan={"aligned": "missing.json"}).plan, *[None] * 8)


def test_processes_share_a_model_if_accelerates_configuration_says_fsdp(tmp_path):
    """Whatever the file is called."""
    run = run_of("paper_trra")
    stages = (run.plan, run.data_prep, run.teachers, run.trra, run.inra, run.alpha_sweep, run.generation)
    folders = Folders(work=tmp_path, logs=tmp_path, validation=tmp_path)
    for file, name, shards in (("fsdp2.yaml", "eight_gpus.yaml", True), ("ddp.yaml", "no_fsdp.yaml", False)):
        shutil.copy(PROJECT / "conf" / "accelerate" / file, tmp_path / name)
        text = plan_run(*stages, Launcher(num_processes=8, config_file=tmp_path / name), folders)
        expected = replace(run, processes=8, shards=shards).table(10**15)
        assert expected != replace(run, processes=8, shards=not shards).table(10**15)
        assert re.findall(r"^\|.*", text, re.MULTILINE) == re.findall(r"^\|.*", expected, re.MULTILINE)


def test_parameters_that_cannot_be():
    with pytest.raises(ValueError, match="of 3 completions, 1611 cannot be in the calibration set"):
        run_of("base", plan={"calibration": {"completions": 3}})


@pytest.mark.parametrize("env", ["paper_trra", "paper_inra", "dler"])
def test_the_page_on_the_paper_has_the_plans_table(env):
    page = (PROJECT / "docs" / "reproduce_the_paper.md").read_text(encoding="utf-8")
    assert f"`{env}`:\n\n{run_of(env).table(10**15)}\n" in page
