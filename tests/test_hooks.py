"""Wrong parameters are reported by their names in the YAML, all at once."""

import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import DataCatalog
from kedro.pipeline import Node, Pipeline

from realign_pipes.config import ConfigLoader
from realign_pipes.datasets.files import CSVDataset, OptionalCSVDataset
from realign_pipes.errors import InputError
from realign_pipes.graders.parameters import Scores
from realign_pipes.hooks import MissingInputError, MissingInputs, WrongParameters, check_parameters
from realign_pipes.runtime import tracking
from realign_pipes.runtime.launch import Folders
from realign_pipes.settings import CONFIG_LOADER_ARGS

PROJECT = Path(__file__).parents[1]
CONF = PROJECT / "conf"


def load(env, params=None):
    return ConfigLoader(CONF, env, runtime_params=params, **CONFIG_LOADER_ARGS)["parameters"]


def test_a_run_that_starts_elsewhere_works_in_the_projects_folders(copy_project, tmp_path, monkeypatch):
    """As the catalog's data sets are: two runs in one data folder have one lock, wherever they start."""
    root = copy_project()
    bootstrap_project(CONF.parent)
    monkeypatch.chdir(tmp_path)
    with KedroSession.create(root, env="smoke") as session:
        context = session.load_context()
    folders = context.params["folders"]
    assert folders.work == root / "data" / "smoke" / "work"
    assert folders == Folders.of_run(context) == context.catalog["params:folders"].load()
    assert folders.validation.parent == context.catalog["data_docs"]._filepath.parent
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_the_results_of_the_tax_is_not_stopped(tmp_path):
    results = OptionalCSVDataset(filepath=str(tmp_path / "tax.csv"))
    catalog = DataCatalog({"tax_results": results, "sweep_results": CSVDataset(filepath=str(tmp_path / "sweep.csv"))})
    needed = [Node(lambda one: None, name, None, name=name) for name in ("tax_results", "sweep_results")]
    MissingInputs().before_pipeline_run({}, Pipeline(needed[:1]), catalog)
    with pytest.raises(MissingInputError) as error:
        MissingInputs().before_pipeline_run({}, Pipeline(needed), catalog)
    assert "tax_results" not in str(error.value) and "stage alpha_sweep makes it" in str(error.value)


@pytest.mark.parametrize("env", sorted(path.parent.name for path in CONF.glob("*/globals.yml")))
def test_every_environment_is_accepted(env):
    check_parameters(load(env))


def test_all_that_is_wrong_is_said_at_once_and_where():
    parameters = deepcopy(load("base"))
    parameters["trra"]["stepps"] = 3
    parameters["trra"]["alphas"] = [1.0, "much"]
    parameters["inra"]["lora"]["rank"] = 0
    parameters["data_prep"]["calibration"]["task"]["problems"] = "many"
    del parameters["data_prep"]["tasks"]["sums_long"]["problems"]
    parameters["reportin"] = parameters.pop("reporting")
    with pytest.raises(InputError) as error:
        check_parameters(parameters)
    _, *lines = str(error.value).splitlines()
    assert sorted(lines) == [
        "data_prep.calibration.task.problems: Input should be a valid integer, unable to parse string as an integer",
        "data_prep.tasks.sums_long: the parameter 'problems' is missing",
        "inra.lora.rank: Input should be greater than 0",
        "reporting: Input should be a valid dictionary or instance of Reporting",
        "there is no parameter 'reportin': did you mean 'reporting'?",
        "trra: there is no parameter 'stepps': did you mean 'steps'?",
    ]
    del parameters["trra"]["stepps"]
    with pytest.raises(InputError, match=r"trra\.alphas\.1: Input should be a valid"):
        check_parameters(parameters)


@pytest.mark.parametrize(("to", "packages"), [("mlflow", "mlflow-skinny sqlalchemy alembic"), ("wandb", "wandb")])
def test_a_tracker_that_is_not_installed_stops_the_run_before_it_starts(to, packages, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"tracking.to: {to} is not installed. Install it \(pip install {packages}\)"):
        check_parameters({**load("base"), "tracking": {"to": to}})
    check_parameters(load("base"))


def test_the_completions_of_an_environments_own_problems_can_be_sampled(tmp_path):
    """Base's task is of another kind, whose options mean nothing to this one."""
    (tmp_path / "base").symlink_to(CONF / "base")
    (tmp_path / "mine").mkdir()
    calibration = {
        "source": "sampled",
        "task": {"kind": "dataset", "path": "problems.jsonl"},
        "sampling": load("base")["data_prep"]["calibration"]["sampling"],
        "keep": "all",
        "min_tokens": 1,
        "max_tokens": 10,
    }
    mine = {"data_prep": {"calibration": calibration}, "trra": {"alphas": [2.0], "iteration_alphas": None}}
    (tmp_path / "mine" / "parameters.yml").write_text(yaml.safe_dump(mine))
    parameters = ConfigLoader(tmp_path, "mine", **CONFIG_LOADER_ARGS)["parameters"]
    check_parameters(parameters)
    assert parameters["data_prep"]["calibration"] == calibration
    assert parameters["trra"]["alphas"] == [2.0]


@pytest.mark.parametrize(
    ("name", "parameter"), [("work_dir", "work"), ("log_dir", "logs"), ("validation_results", "validation")]
)
def test_a_catalog_entry_that_became_a_parameter_is_refused_with_its_new_name(tmp_path, name, parameter):
    shutil.copytree(PROJECT / "conf", tmp_path / "conf", ignore=shutil.ignore_patterns("local"))
    mine = tmp_path / "conf" / "mine"
    mine.mkdir()
    entry = {name: {"type": "pandas.CSVDataset", "filepath": "elsewhere"}}
    (mine / "catalog.yml").write_text(yaml.safe_dump(entry))
    bootstrap_project(PROJECT)
    with (
        KedroSession.create(PROJECT, env="mine", conf_source=str(tmp_path / "conf")) as session,
        pytest.raises(InputError, match=rf"{name} is the parameter folders\.{parameter} now"),
    ):
        session.load_context().catalog  # noqa: B018  a property that makes the catalog


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("teachers", {"mode": "cached"}, r"trra\.on_policy 0\.5 needs the teachers .* Set teachers\.mode=online"),
        (
            "launcher",
            {"num_processes": 2},
            r"works in one process, but launcher\.num_processes is 2",
        ),
    ],
)
def test_an_on_policy_training_that_cannot_work_stops_the_run_before_its_first_stage(stage, changes, message):
    parameters = deepcopy(load("base"))
    parameters["trra"]["on_policy"] = 0.5
    parameters["teachers"]["mode"] = "online"
    check_parameters(parameters)
    parameters[stage].update(changes)
    with pytest.raises(InputError, match=message):
        check_parameters(parameters)
    parameters["trra"]["on_policy"] = 0
    check_parameters(parameters)


@pytest.mark.parametrize(("gain", "loss"), [("tokens", "pass_at_1"), ("tokens", "words"), ("words", "likes")])
def test_a_margin_in_points_is_refused_unless_the_loss_is_a_reward(gain, loss):
    parameters = deepcopy(load("base"))
    reward = {"kind": "reward", "model": "here", "input": "pair", "batch_size": 1, "tokens": 9}
    parameters["scores"]["graders"] = {"likes": reward}
    parameters["reporting"].update(gain=gain, loss=loss, margin=2)
    if loss == "likes":
        check_parameters(parameters)
    else:
        with pytest.raises(InputError, match=rf"reporting\.margin is 2, but of {loss} it is a share below 1"):
            check_parameters(parameters)
    parameters["reporting"]["margin"] = 0.99
    check_parameters(parameters)


def test_a_grader_that_cannot_work_stops_the_run_before_it_starts(monkeypatch):
    parameters = deepcopy(load("base"))
    judge = {"kind": "judge", "url": "http://localhost:1", "model": "m", "prompt": str(CONF / "base/prompts/judge.txt")}
    parameters["scores"]["graders"] = {"judge": judge | {"key_variable": "KEY_OF_THE_JUDGE", "tasks": ["sums_lnog"]}}
    with pytest.raises(InputError, match=r"scores\.graders\.judge\.tasks: there is no task 'sums_lnog': did you mean"):
        check_parameters(parameters)
    del parameters["scores"]["graders"]["judge"]["tasks"]
    check_parameters(parameters)
    catalog = DataCatalog()
    catalog["params:scores"] = Scores(**parameters["scores"])
    scores, other = (Pipeline([Node(lambda: None, None, name, name=name)]) for name in ("scores", "sweep_results"))
    WrongParameters().before_pipeline_run(other, catalog)
    with pytest.raises(InputError, match="the environment has no variable KEY_OF_THE_JUDGE"):
        WrongParameters().before_pipeline_run(scores, catalog)
    monkeypatch.setenv("KEY_OF_THE_JUDGE", "secret")
    WrongParameters().before_pipeline_run(scores, catalog)


def test_a_metric_that_no_grader_gives_stops_the_run_before_it_starts():
    parameters = deepcopy(load("base"))
    parameters["reporting"]["gain"] = "brief"
    with pytest.raises(InputError, match=r"reporting\.gain: there is no metric 'brief'"):
        check_parameters(parameters)
    parameters["scores"]["graders"] = {"brief": {"kind": "rules", "instructions": [{"kind": "words", "at_most": 9}]}}
    check_parameters(parameters)
    parameters["reporting"]["loss"] = "brief"
    with pytest.raises(InputError, match="gain and loss are both brief"):
        check_parameters(parameters)
