"""`realign-pipes init`: every stage accepts what it writes, and its sizes fit the models."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from kedro.io import DataCatalog

from realign_pipes.cli import program
from realign_pipes.config import ConfigLoader
from realign_pipes.environments import PAPERS_TOKENS, write_environment
from realign_pipes.errors import InputError
from realign_pipes.hooks import check_parameters
from realign_pipes.pipelines.data_prep.parameters import DataPrep
from realign_pipes.pipelines.inra.parameters import InRa
from realign_pipes.pipelines.plan.stages import Run
from realign_pipes.pipelines.trra.parameters import TrRa
from realign_pipes.settings import CONFIG_LOADER_ARGS
from realign_pipes.sweep.parameters import AlphaSweep

PROJECT = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path, make_checkpoint, monkeypatch):
    """A project's folder with two checkpoints, in which the test now is."""
    root = tmp_path / "project"
    shutil.copytree(PROJECT / "conf", root / "conf", ignore=shutil.ignore_patterns("local"))
    make_checkpoint(root / "models" / "slow", seed=1)
    make_checkpoint(root / "models" / "fast", seed=2)
    monkeypatch.chdir(root)
    return root


def loader_of(project, name):
    return ConfigLoader(project / "conf", name, **CONFIG_LOADER_ARGS)


def plan_of(parameters):
    kinds = Run.__annotations__
    stages = ("plan", "data_prep", "teachers", "trra", "inra", "alpha_sweep", "generation")
    return Run(**{name: kinds[name].model_validate(parameters[name]) for name in stages}, processes=1, shards=False)


def test_what_it_writes_is_an_environment_for_the_two_checkpoints(project):
    said = write_environment(project, "mine", "models/slow", str(project / "models" / "fast"))
    conf = loader_of(project, "mine")
    assert conf["globals"] == {"data": "data/mine"}
    check_parameters(conf["parameters"])
    catalog = DataCatalog.from_config({name: conf["catalog"][f"{name}_model"] for name in ("reference", "aligned")})
    assert catalog.load("reference").resolve() == project / "models" / "slow"
    assert catalog.load("aligned").resolve() == project / "models" / "fast"
    assert conf["catalog"]["aligned_model"]["filepath"] == "models/fast"  # moves with the project
    assert said.splitlines() == [
        "Written: conf/mine/catalog.yml, globals.yml, parameters.yml",
        "Put your problems into data/01_raw/mine/calibration.jsonl and data/01_raw/mine/evaluation.jsonl: a JSON "
        "object a line, with `question` and `answer`.",
        "Then run: kedro run --env mine --pipeline realign",
    ]


def test_a_chat_template_that_fails_is_refused(project):
    (project / "models" / "slow" / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(InputError, match=r"the chat template of .*slow is damaged"):
        write_environment(project, "mine", "models/slow", "models/fast")


def test_nothing_of_the_demo_is_left_in_it(project):
    write_environment(project, "mine", "models/slow", "models/fast")
    parameters = loader_of(project, "mine")["parameters"]
    assert list(DataPrep.model_validate(parameters["data_prep"]).tasks) == ["evaluation"]
    sweep = AlphaSweep.model_validate(parameters["alpha_sweep"])
    assert (sweep.dera_alphas, sweep.budgets.tokens) == ([], [])
    trra = TrRa.model_validate(parameters["trra"])
    assert trra.iteration_alphas == trra.ablation_alphas == []
    assert trra.learning_rate == InRa.model_validate(parameters["inra"]).learning_rate == 2e-5  # the paper's


def test_nothing_is_measured_that_it_does_not_name(project):
    """Lists in base are the demo's: each candidate that an environment inherits costs its user hours."""
    write_environment(project, "mine", "models/slow", "models/fast")
    run = plan_of(loader_of(project, "mine")["parameters"])
    assert [candidate.name for candidate in run.candidates()] == [
        "reference", "aligned", "merge-0.5", "merge-1", "merge-1.5", "trra-1", "trra-1.5",
        "inra-0", "inra-0.5", "inra-1",
    ]  # fmt: skip
    text = (project / "conf" / "mine" / "parameters.yml").read_text()
    named = yaml.safe_load(text)["alpha_sweep"]
    lists = [name for name, field in AlphaSweep.model_fields.items() if "list" in str(field.annotation)]
    assert set(lists) - {"lora_scale_alphas"} <= named.keys(), "lora_scale_alphas mean nothing without trra.scaled_lora"


def test_it_can_be_planned(project):
    write_environment(project, "mine", "models/slow", "models/fast")
    table = plan_of(loader_of(project, "mine")["parameters"]).table(free=10**12)
    assert "| in all |" in table and "WARNING" not in table


@pytest.mark.parametrize(("padding", "alphas"), [(0, [0.5, 1.0, 1.5]), (3, [])])
def test_weights_are_merged_where_they_fit_together(project, make_checkpoint, padding, alphas):
    make_checkpoint(project / "models" / "other", seed=2, vocab_padding=padding)
    write_environment(project, "mine", "models/slow", "models/other")
    sweep = AlphaSweep.model_validate(loader_of(project, "mine")["parameters"]["alpha_sweep"])
    assert (sweep.merge_alphas, sweep.ties.alphas) == (alphas, [])


@pytest.mark.parametrize(
    ("positions", "longest", "kept"),
    [(512, 384, (6, 192)), (4096, 3072, (48, 1536)), (32768, PAPERS_TOKENS, (256, 8192))],
)
def test_lengths_leave_room_for_the_prompt_and_end_at_the_papers(project, make_checkpoint, positions, longest, kept):
    make_checkpoint(project / "models" / "slow", seed=1, max_position_embeddings=positions)
    make_checkpoint(project / "models" / "fast", seed=2, max_position_embeddings=2 * positions)
    write_environment(project, "mine", "models/slow", "models/fast")
    parameters = loader_of(project, "mine")["parameters"]
    calibration = parameters["data_prep"]["calibration"]
    assert calibration["sampling"]["max_new_tokens"] == longest < positions
    assert parameters["alpha_sweep"]["sampling"]["max_new_tokens"] == longest
    assert (calibration["min_tokens"], calibration["max_tokens"]) == kept


@pytest.mark.parametrize(
    ("parameters", "micro", "sampling"),
    [(10**5, 16, 256), (135 * 10**6, 4, 256), (1_500 * 10**6, 1, 32), (70_000 * 10**6, 1, 1)],
)
def test_batches_shrink_as_models_grow(project, make_checkpoint, monkeypatch, parameters, micro, sampling):
    for name in ("slow", "fast"):
        make_checkpoint(project / "models" / name, max_position_embeddings=32768)
    monkeypatch.setattr("realign_pipes.environments._count", lambda path: parameters)
    write_environment(project, "mine", "models/slow", "models/fast")
    written = loader_of(project, "mine")["parameters"]
    assert written["trra"]["micro_batch_size"] == written["inra"]["micro_batch_size"] == micro
    assert written["alpha_sweep"]["sampling"]["batch_size"] == sampling


def test_problems_that_are_there_are_named_and_not_asked_for(project):
    files = {}
    for name in ("calibration", "evaluation"):
        files[name] = project / f"my: {name}.jsonl"  # YAML would make a mapping of it, were it not quoted
        files[name].write_text(json.dumps({"question": "1 + 1?", "answer": "2"}) + "\n")
    said = write_environment(project, "mine", "models/slow", "models/fast", **files)
    assert "Put your problems" not in said
    data_prep = DataPrep.model_validate(loader_of(project, "mine")["parameters"]["data_prep"])
    assert data_prep.calibration.task.path == str(files["calibration"])
    assert data_prep.tasks["evaluation"].path == str(files["evaluation"])


def test_a_repository_of_the_hub_is_pinned_to_the_commit_that_was_downloaded(project, monkeypatch):
    asked = []

    def download(repo_id, revision, allow_patterns):
        asked.append((repo_id, revision))
        snapshot = project / "cache" / "snapshots" / "0123abc"
        shutil.copytree(project / "models" / "fast", snapshot, dirs_exist_ok=True)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    write_environment(project, "mine", "models/slow", "some/model-1.5B@v2")
    write_environment(project, "other", "models/slow", "some/model-1.5B")
    assert asked == [("some/model-1.5B", "v2"), ("some/model-1.5B", None)]
    for name in ("mine", "other"):
        entry = loader_of(project, name)["catalog"]["aligned_model"]
        assert (entry["repo_id"], entry["revision"]) == ("some/model-1.5B", "0123abc")


def refused(project, message, *, name="mine", reference="models/slow", aligned="models/fast"):
    before = sorted((project / "conf").rglob("*"))
    with pytest.raises(InputError, match=message):
        write_environment(project, name, reference, aligned)
    assert sorted((project / "conf").rglob("*")) == before


def test_what_cannot_be_realigned_is_refused_and_nothing_is_written(project, make_checkpoint, thinking_tokenizer):
    refused(project, "smoke already exists", name="smoke")
    refused(project, "cannot name an environment", name="../mine")
    refused(project, "/models/slo is neither a folder nor the name of a repository", reference="/models/slo")
    refused(project, "models/slo is not a folder in .*, and could not be loaded from the hub", reference="models/slo")
    thinking_tokenizer.add_tokens(["<another>"])
    make_checkpoint(project / "models" / "fast", tokenizer=thinking_tokenizer)
    refused(project, "the tokenizers of .*slow and .*fast differ")


def test_a_reference_without_chat_template_needs_one(project, make_checkpoint, tiny_tokenizer, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text(tiny_tokenizer.chat_template)
    tiny_tokenizer.chat_template = None
    make_checkpoint(project / "models" / "slow", seed=1, tokenizer=tiny_tokenizer)
    (project / "models" / "slow" / "chat_template.jinja").unlink()  # of the fixture's own checkpoint
    refused(project, "no chat template. Name a file that holds one .* with --chat-template")
    write_environment(project, "mine", "models/slow", "models/fast", chat_template=template)
    parameters = loader_of(project, "mine")["parameters"]
    check_parameters(parameters)
    assert parameters["models"]["chat_template"] == str(template)
    template.write_text("no messages")
    with pytest.raises(InputError, match="leaves out what the user says"):
        write_environment(project, "other", "models/slow", "models/fast", chat_template=template)


def test_outside_of_a_project_it_says_so(project, monkeypatch):
    (project / "elsewhere").mkdir()
    with pytest.raises(InputError, match=r"no folder conf/base\. Change to the project's folder"):
        write_environment(project / "elsewhere", "mine", "models/slow", "models/fast")


def test_the_command_prints_what_was_written_or_one_line(project):
    command = ["init", "mine", "--reference", "models/slow", "--aligned", "models/fast"]
    done = CliRunner().invoke(program, command)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "Then run: kedro run --env mine --pipeline realign"
    assert {path.name for path in (project / "conf" / "mine").iterdir()} == {
        "catalog.yml", "globals.yml", "parameters.yml", "models",
    }  # fmt: skip
    assert all(yaml.safe_load(path.read_text()) for path in (project / "conf" / "mine").glob("*.yml"))
    again = CliRunner().invoke(program, command)
    assert (again.exit_code, again.stdout) == (1, "")
    assert again.stderr.count("\n") == 1 and "already exists" in again.stderr
