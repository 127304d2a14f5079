"""The whole DAG through a Kedro session, on the smoke environment, in a data folder of its own."""

import html
import json
import re
import shutil
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import DatasetError
from transformers import AutoModelForCausalLM, AutoTokenizer

from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.pipelines import reporting
from realign_pipes.sweep.evaluate import Evaluator

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project(copy_project):
    """`run(pipeline, **runtime_params)` on a copy of the project, and its data folder."""
    root = copy_project()
    bootstrap_project(PROJECT)

    def run(pipeline=None, **runtime_params):
        with KedroSession.create(root, env="smoke", runtime_params=runtime_params) as session:
            return session.run(pipeline_names=[pipeline] if pipeline else None)

    return run, root / "data" / "smoke"


@pytest.fixture(scope="module")
def finished(project, smoke_project):
    """The data folder after a whole run, which the tests here may change."""
    _, data = project
    shutil.copytree(smoke_project / "data" / "smoke", data)
    return data


def test_the_sweep_has_every_candidate_and_figures_that_follow_from_the_generations(finished):
    table = pd.read_csv(finished / "08_reporting" / "sweep_table.csv")
    metrics = table.to_dict("records")
    assert {(row["candidate"], row["kind"], str(row["alpha"])) for row in metrics} == {
        ("reference", "reference", "nan"),
        ("aligned", "aligned", "nan"),
        ("reference-min-p", "reference", "nan"),
        ("aligned-min-p", "aligned", "nan"),
        ("dera-1.5", "dera", "1.5"),
        ("dera-1.5-unmasked", "dera", "1.5"),
        ("merge-0.5", "merge", "0.5"),
        ("merge-1.5", "merge", "1.5"),
        ("ties-1", "ties", "1.0"),
        ("svd-1.5", "svd", "1.5"),
        ("lora-scale-0.5", "lora_scale", "0.5"),
        ("trra-0.5", "trra", "0.5"),
        ("trra-1", "trra", "1.0"),
        ("trra-1.5", "trra", "1.5"),
        ("trra-1.5-unmasked", "trra", "1.5"),
        ("trra-iter1-1.5", "trra_iter", "1.5"),
        ("inra--0.25", "inra", "-0.25"),
        ("inra-0", "inra", "0.0"),
        ("inra-0.5", "inra", "0.5"),
        ("inra-1", "inra", "1.0"),
        ("close-bias-2", "close_bias", "2.0"),
    }
    assert not table.duplicated(["kind", "alpha", "plausibility"])[table["kind"] != "trra_iter"].any()
    masked = table["kind"].isin(["dera", "trra", "trra_iter", "inra", "lora_scale"]) | table["candidate"].str.endswith(
        "min-p"
    )
    expected = (masked & ~table["candidate"].str.endswith("unmasked")) * 0.1
    assert table["plausibility"].tolist() == expected.tolist()
    tracked = json.loads((finished / "08_reporting" / "sweep_metrics.json").read_text())  # by DVC
    assert tracked == {row["candidate"]: {name: row[name] for name in tracked["reference"]} for row in metrics}
    tokens = {}
    for row in metrics:
        frame = pd.read_parquet(finished / "07_model_output" / "generations" / f"{row['candidate']}.parquet")
        assert len(frame) == 30 * 2
        by_task = frame.groupby("task")
        assert row["pass_at_1"] == pytest.approx(by_task["correct"].mean().mean())
        assert row["mean_tokens"] == pytest.approx(by_task["completion_tokens"].mean().mean())
        assert row["truncated"] == pytest.approx(1 - by_task["finished"].mean().mean())
        assert row["pass_at_1_low"] <= row["pass_at_1"] <= row["pass_at_1_high"]
        tokens[row["candidate"]] = by_task["completion_tokens"].mean()
    for row in metrics:
        reduction = (1 - tokens[row["candidate"]] / tokens["reference"]).mean()
        assert row["token_reduction"] == pytest.approx(reduction)


def test_inra_at_alpha_0_writes_what_the_reference_writes(finished):
    frames = {
        name: pd.read_parquet(finished / "07_model_output" / "generations" / f"{name}.parquet")
        for name in ("reference", "inra-0", "inra-1")
    }
    columns = ["task", "problem_id", "sample", "completion", "completion_tokens", "finished", "correct"]
    pd.testing.assert_frame_equal(frames["inra-0"][columns], frames["reference"][columns])
    assert not frames["inra-1"]["completion"].equals(frames["reference"]["completion"])


def test_no_completion_is_longer_than_its_budget(finished):
    for budget in (24, 48):
        for method in ("truncation", "forced-close", "token-budget"):
            file = finished / "07_model_output" / "budget_generations" / f"{method}-{budget}.parquet"
            frame = pd.read_parquet(file)
            assert len(frame) == 30 * 2
            assert frame["completion_tokens"].max() <= budget
            assert (frame.loc[~frame["finished"], "completion_tokens"] == budget).all()


@pytest.mark.parametrize(("method", "adapter"), [("dpo", "full"), ("trra", "full"), ("sft", "lora")])
def test_every_way_to_train_the_adapter_runs(project, finished, method, adapter):
    run, data = project
    run("inra", inra={"method": method, "adapter": adapter})
    made = json.loads((data / "06_models" / "inra" / "realignment.json").read_text())
    assert made["method"] == f"InRa ({method})"
    assert made["parameters"]["adapter"] == adapter
    reference = AutoModelForCausalLM.from_pretrained(data / "06_models" / "reference").state_dict()
    model = InRaForCausalLM.from_pretrained(data / "06_models" / "inra", base=data / "06_models" / "reference")
    for name, weight in model.base_model_view().state_dict().items():
        assert weight.equal(reference[name]), name


def test_checkpoints_open_with_stock_tools(finished):
    folders = [finished / "06_models" / name for name in ("reference", "aligned", "inra")]
    folders += sorted((finished / "06_models" / "trra").glob("*/*"))
    students = ["trra-0.5", "trra-1", "trra-lora-1", "trra-1.5", "trra-1.5-unmasked", "trra-iter1-1.5"]
    assert [folder.name for folder in folders[3:]] == students
    for folder in folders:
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        chat = [{"role": "user", "content": "State the final answer to the following arithmetic problem: 3 + 4 ="}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        text = tokenizer.decode(model.generate(**prompt, max_new_tokens=5, do_sample=False)[0])
        assert text.startswith("<|im_start|>user\nState the final answer to the following arithmetic problem: 3 + 4 =")


def test_the_report_is_there(finished):
    reporting = finished / "08_reporting"
    page = html.unescape((reporting / "report.html").read_text()).replace("\N{NO-BREAK SPACE}", " ")
    recommendation = json.loads((reporting / "recommendation.json").read_text())
    assert recommendation["sentence"] in page
    table = (reporting / "sweep_table.md").read_text()
    assert all(name in table for name in ("reference", "aligned", "dera-1.5", "trra-0.5", "trra-iter1-1.5"))
    cache = json.loads((reporting / "teacher_cache.json").read_text())
    assert cache["reference"]["bytes_per_token"] == 4 * 96


def test_the_run_left_a_log_that_programs_can_read(project, finished):
    run, data = project
    before = set((data / "logs").glob("*.jsonl"))
    run("reporting", reporting={"margin": 0.5})
    (file,) = set((data / "logs").glob("*.jsonl")) - before
    started, *nodes, ended = (json.loads(line) for line in file.read_text().splitlines())
    assert (started["event"], started["pipelines"], started["env"]) == ("run started", ["reporting"], "smoke")
    assert started["parameters"]["reporting"]["margin"] == 0.5
    assert started["parameters"]["trra"]["steps"] == 6
    assert started["versions"]["torch"] == version("torch")
    assert re.match(r"[0-9a-f]{40}|none", started["commit"])
    assert [node["node"] for node in nodes] == [f"reporting.{node.name}" for node in reporting.create_pipeline().nodes]
    assert (ended["event"], ended["device"]) == ("run finished", "cpu")
    assert 0 < sum(node["seconds"] for node in nodes) <= ended["seconds"]


def test_a_failed_run_says_so_in_its_log(project, finished):
    run, data = project
    before = set((data / "logs").glob("*.jsonl"))
    (data / "05_model_input" / "evaluation_set").rename(data / "aside")
    (data / "05_model_input" / "evaluation_set").mkdir()
    (data / "05_model_input" / "evaluation_set" / "dataset_info.json").write_text("{}")
    with pytest.raises(DatasetError):
        run("reporting")
    shutil.rmtree(data / "05_model_input" / "evaluation_set")
    (data / "aside").rename(data / "05_model_input" / "evaluation_set")
    (file,) = set((data / "logs").glob("*.jsonl")) - before
    last = json.loads(file.read_text().splitlines()[-1])
    assert last["event"] == "run failed"
    assert "evaluation_set" in last["error"]


def test_every_data_set_was_checked_and_the_page_on_them_is_linked(finished):
    reporting = finished / "08_reporting"
    found = {path.stem: json.loads(path.read_text()) for path in (reporting / "validation").glob("*.json")}
    assert set(found) == {
        "calibration", "evaluation", "generations", "preference_pairs", "samples", "short_solutions", "sweep_results",
    }  # fmt: skip
    assert all(one["success"] and one["failed"] == 0 for one in found.values())
    assert found["generations"]["rows"] == 21 * 30 * 2
    page = (reporting / "report.html").read_text()
    assert all(f'<td class="word">{name}</td><td>{one["rows"]:,}</td>' in page for name, one in found.items())
    (link,) = re.findall(r'href="(data_docs[^"]*)"', page)
    docs = (reporting / link).read_text()
    assert all(f"<summary>{name}: all {one['expectations']} met" in docs for name, one in found.items())


def test_a_second_run_takes_what_is_finished_and_gives_the_same_table(project, finished, hashed, monkeypatch):
    monkeypatch.setattr("realign_pipes.models.fingerprint._digests", {})  # as in a process that has read no file yet
    run, data = project
    validation = data / "08_reporting" / "validation"
    before = (data / "08_reporting" / "sweep_metrics.json").read_bytes()
    checked = {path: path.read_bytes() for path in validation.iterdir()}
    weights = data / "work" / "trra" / "trra-1.5" / "checkpoint" / "model.safetensors"
    trained = weights.stat().st_mtime_ns
    run("realign")
    assert (data / "08_reporting" / "sweep_metrics.json").read_bytes() == before
    assert {path: path.read_bytes() for path in validation.iterdir()} == checked
    assert weights.stat().st_mtime_ns == trained
    # One file may have several names: the catalog's is a hard link to the one in the work folder.
    read = Counter()
    for path, times in hashed.items():
        read[path.stat().st_ino] += times
    assert read[(data / "06_models" / "reference" / "model.safetensors").stat().st_ino] == 1
    assert len(read) > 8
    assert set(read.values()) == {1}


def test_each_stage_runs_alone_from_what_is_on_disk(project, finished):
    run, data = project
    outputs = {
        "data_prep": "05_model_input/calibration_set",
        "teacher_logits": "05_model_input/teacher_cache",
        "trra": "06_models/trra/1.5/trra-1.5",
        "inra": "06_models/inra",
        "alpha_sweep": "07_model_output/generations",
        "reporting": "08_reporting/report.html",
    }
    for stage, output in outputs.items():
        before = (data / output).stat().st_ctime_ns  # unlike the modification time, a rename changes it
        run(stage)
        assert (data / output).stat().st_ctime_ns > before, stage


def test_a_stage_without_its_input_names_it_and_the_stage_that_makes_it(project, finished):
    run, data = project
    (data / "05_model_input" / "teacher_cache").rename(data / "aside")
    with pytest.raises(FileNotFoundError) as error:
        run("trra")
    (data / "aside").rename(data / "05_model_input" / "teacher_cache")
    assert "teacher_cache" in str(error.value)
    assert "stage teacher_logits makes it: kedro run --pipeline teacher_logits --env smoke" in str(error.value)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"trra": {"alphas": [float("nan")]}}, "finite"),
        ({"trra": {"alphas": ["much"]}}, "alphas"),
        ({"trra": {"divergence": "kl"}}, "forward_kl"),
        ({"trra": {"stepps": 3}}, "no parameter 'stepps': did you mean 'steps'"),
        ({"trra": {"only_alpha": 9.0}}, "not among alphas"),
        ({"inra": {"lora": {"rnk": 3}}}, "no parameter 'rnk': did you mean 'rank'"),
        ({"tra": {"steps": 3}}, "no parameter 'tra': did you mean 'trra'"),
        ({"trra": {"batch_size": 3, "micro_batch_size": 2}}, "not a multiple"),
        ({"trra": {"iteration_alphas": [9.0]}}, "not among alphas"),
    ],
)
def test_bad_parameters_stop_a_run_before_it_starts(project, parameters, message):
    run, _ = project
    with pytest.raises(Exception, match=message):
        run("trra", **parameters)


def test_online_teachers_do_without_the_cache(project, finished):
    run, data = project
    shutil.copytree(data, data.parent / "kept")
    try:
        run("teacher_logits", teachers={"mode": "online"})
        assert not list((data / "05_model_input" / "teacher_cache").rglob("*.safetensors"))
        run("trra", teachers={"mode": "online"}, trra={"alphas": [1.5], "iterations": 0})
        made = json.loads((data / "06_models" / "trra" / "1.5" / "trra-1.5" / "realignment.json").read_text())
        assert made["parameters"]["teachers"]["mode"] == "online"
    finally:
        shutil.rmtree(data)
        (data.parent / "kept").rename(data)


def test_one_alpha_is_trained_alone_and_a_checkpoint_that_is_missing_is_named(project, finished):
    run, data = project
    trra = data / "06_models" / "trra"
    trra.rename(data / "aside")
    try:
        run("trra", trra={"only_alpha": 1.5})
        assert sorted(path.relative_to(trra).as_posix() for path in trra.glob("*/*")) == [
            "1.5/trra-1.5",
            "1.5/trra-1.5-unmasked",
            "1.5/trra-iter1-1.5",
        ]
        with pytest.raises(FileNotFoundError, match=r"are missing: 0.5/trra-0.5.*kedro run --pipeline trra"):
            run("alpha_sweep")
    finally:
        shutil.rmtree(trra)
        (data / "aside").rename(trra)


@pytest.mark.parametrize(("checkpoint", "stage"), [("inra", "inra"), ("trra/0.5/trra-0.5", "trra")])
def test_a_checkpoint_of_another_reference_is_refused_before_anything_is_decoded(
    project, finished, monkeypatch, checkpoint, stage
):
    run, data = project
    file = data / "06_models" / checkpoint / "realignment.json"
    before = file.read_text()
    made = json.loads(before)
    made["reference"]["fingerprint"] = "another"
    file.unlink()  # it may be a hard link to the one in the work folder
    file.write_text(json.dumps(made))
    monkeypatch.setattr(Evaluator, "evaluate", lambda *args: pytest.fail("decodes"))
    try:
        with pytest.raises(ValueError, match=rf"another reference than .*kedro run --pipeline {stage}"):
            run("alpha_sweep")
    finally:
        file.write_text(before)


def test_checkpoints_of_alphas_that_were_removed_are_not_measured(project, finished, caplog):
    run, data = project
    before = (data / "07_model_output" / "sweep_results.csv").read_bytes()
    left = shutil.copytree(data / "06_models" / "trra" / "0.5", data / "06_models" / "trra" / "0.75")
    try:
        run("alpha_sweep")
    finally:
        shutil.rmtree(left)
    assert "0.75/trra-0.5" in caplog.text
    assert (data / "07_model_output" / "sweep_results.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("git", "said"),
    [(True, "none: not run in a git repository with commits"), (False, "unknown: git is not installed")],
)
def test_a_run_outside_git_works_and_the_model_card_says_so(project, finished, tmp_path, monkeypatch, git, said):
    run, data = project
    monkeypatch.chdir(tmp_path)
    if not git:
        monkeypatch.setenv("PATH", str(tmp_path))
    run("inra", inra={"steps": 1, "seed": 31 + git})
    assert f"| commit | {said} |" in (data / "06_models" / "inra" / "README.md").read_text()


@pytest.mark.full
def test_the_tax_of_every_candidate_joins_the_report(project, finished, monkeypatch):
    run, data = project
    monkeypatch.chdir(PROJECT)  # tax.include_path is relative to it
    run("tax", tax={"limit": 3})
    run("reporting")
    results = pd.read_csv(data / "07_model_output" / "tax_results.csv")
    sweep = pd.read_csv(data / "08_reporting" / "sweep_table.csv").set_index("candidate")
    without_a_model_of_their_own = {"reference-min-p", "aligned-min-p", "close-bias-2"}
    assert set(results["candidate"]) == set(sweep.index) - without_a_model_of_their_own
    assert set(results["task"]) == {"sums_choice", "sums_written", "KL sums_short", "KL sums_long"}
    of_harness = ~results["task"].str.startswith("KL ")
    assert set(results.loc[of_harness, "problems"]) == {3}
    assert (results.loc[~of_harness & (results["candidate"] == "reference"), "value"] == 0).all()
    choice = results.query("task == 'sums_choice'").set_index("candidate")
    assert choice.loc["inra-0", "difference"] == choice.loc["reference", "difference"] == 0  # one model
    column = sweep["tax/sums_choice/acc"].dropna()
    assert column.to_dict() == choice["value"].to_dict()
    assert "<h2>The alignment tax" in (data / "08_reporting" / "report.html").read_text(encoding="utf-8")
    (data / "07_model_output" / "tax_results.csv").unlink()


def test_the_alpha_for_a_wish_is_found_beside_the_default_run(project, finished):
    """In it are neither its pipeline nor its data; any alpha of a smoke run loses less than all."""
    run, data = project
    assert not (data / "08_reporting" / "find_alpha.json").exists()
    run("find_alpha", find_alpha={"lose_at_most": 0.99})
    found = json.loads((data / "08_reporting" / "find_alpha.json").read_text())
    assert (found["wish"], found["knob"], found["alpha"]) == ({"lose_at_most": 0.99}, "dera", 10.0)
    assert found["completions_drawn"] == (3 + 2) * 15  # to search: the reference, the knob's end and the student
    assert json.loads((data / "06_models" / "find_alpha" / "realignment.json").read_text())["alpha"] == 10.0
    AutoModelForCausalLM.from_pretrained(data / "06_models" / "find_alpha")
    assert (data / "08_reporting" / "search_figure.json").exists()
