"""What README and docs print is true: environments are accepted, files are there, imports work."""

import importlib
import re
import shutil
from pathlib import Path

import pytest
import yaml
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

from realign_pipes.data.parameters import Models
from realign_pipes.generation.parameters import Generation
from realign_pipes.pipelines.data_prep.parameters import DataPrep
from realign_pipes.pipelines.inra.parameters import InRa
from realign_pipes.pipelines.trra.parameters import TrRa
from realign_pipes.runtime.launch import Launcher
from realign_pipes.sweep.parameters import AlphaSweep
from realign_pipes.teachers.parameters import Teachers

PROJECT = Path(__file__).parents[1]
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").rglob("*.md"))]
TYPES = {
    "data_prep": DataPrep,
    "teachers": Teachers,
    "models": Models,
    "trra": TrRa,
    "inra": InRa,
    "alpha_sweep": AlphaSweep,
    "generation": Generation,
    "launcher": Launcher,
}


def page_id(page):
    return page.relative_to(PROJECT).as_posix()


@pytest.mark.parametrize(
    "pages",
    [["your_own_models"], ["your_own_data"], ["your_own_models", "your_own_data"], ["your_own_dialogues"]],
)
def test_the_environment_of_the_how_tos_is_accepted(tmp_path, monkeypatch, pages):
    """The YAML blocks of a page, in the files that their first line names, make an environment that Kedro takes."""
    shutil.copytree(PROJECT / "conf", tmp_path / "conf", ignore=shutil.ignore_patterns("local"))
    (tmp_path / "conf" / "mine").mkdir()
    for page in pages:
        text = (PROJECT / "docs" / "how_to" / f"{page}.md").read_text(encoding="utf-8")
        blocks = re.findall(r"```yaml\n# conf/mine/(\w+)\.yml\n(.*?)```", text, re.DOTALL)
        assert "parameters" in dict(blocks)
        for name, block in blocks:
            file = "parameters_data" if (name, page) == ("parameters", "your_own_data") else name
            (tmp_path / "conf" / "mine" / f"{file}.yml").write_text(block)
    if pages == ["your_own_models", "your_own_data"]:  # the two give max_tokens, and an environment can only have one
        models = tmp_path / "conf" / "mine" / "parameters.yml"
        values = yaml.safe_load(models.read_text())
        del values["data_prep"]
        models.write_text(yaml.safe_dump(values))
    bootstrap_project(PROJECT)
    monkeypatch.chdir(PROJECT)  # the launcher's configuration of accelerate is relative to it
    with KedroSession.create(PROJECT, env="mine", conf_source=str(tmp_path / "conf")) as session:
        context = session.load_context()
        parameters = {stage: kind.model_validate(context.params[stage]) for stage, kind in TYPES.items()}
        if "your_own_models" in pages:
            assert context.config_loader["catalog"]["reference_model"]["filepath"] == "models/slow-thinker"
            assert parameters["trra"].alphas == [0.5, 1.5]
        if "your_own_data" in pages:
            assert list(parameters["data_prep"].tasks) == ["math500"]
            assert parameters["data_prep"].calibration.source == "dataset"
        if "your_own_dialogues" in pages:
            assert parameters["data_prep"].preference_pairs.source == "dataset"
            assert parameters["inra"].of_dpo().steps == 2 and parameters["inra"].dpo.loss_weights == (1.0, 1.0)


def test_what_the_how_to_adds_for_models_is_accepted(tmp_path, monkeypatch):
    text = (PROJECT / "docs" / "how_to" / "your_own_models.md").read_text(encoding="utf-8")
    added = re.findall(r"```yaml\n# added to conf/mine/parameters.yml\n(.*?)```", text, re.DOTALL)
    base = yaml.safe_load((PROJECT / "conf" / "base" / "parameters_models.yml").read_text())["models"]
    monkeypatch.chdir(tmp_path)
    Path("conf/mine").mkdir(parents=True)
    Path("conf/mine/chat_template.jinja").touch()
    template, tags = (Models.model_validate({**base, **yaml.safe_load(block)["models"]}) for block in added)
    assert template.chat_template == Path("conf/mine/chat_template.jinja")
    assert tags.thinking is not None and tags.thinking.close == "</reflect>"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_python_that_a_page_prints_can_be_compiled_and_imports_what_is_there(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for module, names in re.findall(r"^from (realign_pipes[\w.]*) import (.+)$", block, re.MULTILINE):
            for name in names.split(", "):
                assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_files_and_names_in_them_that_a_page_gives_are_there(page):
    """`conf/base/catalog.yml`, or without src/realign_pipes in front `paper/trra.py`: `TrRaTrainer`."""
    spans = r"`([\w-]+/[\w./-]+\.(?:py|ya?ml|ipynb|md))`(?:: `([\w.]+)`)?"
    for file, name in re.findall(spans, page.read_text(encoding="utf-8")):
        if file.startswith(("conf/mine/", "conf/local/", "data/0")):  # the reader's own, and what a run writes
            continue
        (found,) = [root / file for root in (PROJECT, PROJECT / "src" / "realign_pipes") if (root / file).exists()]
        for part in name.split("."):
            assert part in found.read_text(encoding="utf-8"), f"{file}: {name}"


def test_links_of_the_readme_lead_somewhere():
    for page in (PROJECT / "README.md", PROJECT / "CONTRIBUTING.md"):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (PROJECT / link).exists(), link


def test_the_readme_fits_on_one_screen_and_its_example_has_nine_lines():
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 110
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len([line for line in example.splitlines() if line]) == 9
