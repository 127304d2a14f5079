"""How an environment's YAML and `--params` change base's parameters."""

from pathlib import Path

import pytest
import yaml
from kedro.config import OmegaConfigLoader

from realign_pipes.config import ConfigLoader, merge
from realign_pipes.errors import InputError, MissingFileError
from realign_pipes.settings import CONFIG_LOADER_ARGS

PROJECT = Path(__file__).parents[1]

BASE = {"stage": {"steps": 3, "task": {"kind": "game", "rules": {"size": 2, "players": 1}}, "alphas": [1, 2]}}


@pytest.fixture
def load(tmp_path):
    """`load(mine, params, base)`: the parameters of an environment over base's, as a run has them."""

    def parameters(mine=None, params=None, base=BASE, env="mine"):
        for name, values in (("base", base), ("mine", mine)):
            (tmp_path / name).mkdir(exist_ok=True)
            if values is not None:
                (tmp_path / name / "parameters.yml").write_text(yaml.safe_dump(values))
        return ConfigLoader(tmp_path, env, runtime_params=params, **CONFIG_LOADER_ARGS)["parameters"]

    return parameters


@pytest.mark.parametrize(
    ("over", "merged"),
    [
        ({"steps": 4}, {**BASE["stage"], "steps": 4}),
        ({"alphas": [5]}, {**BASE["stage"], "alphas": [5]}),
        ({"task": None}, {**BASE["stage"], "task": None}),
        (
            {"task": {"rules": {"size": 9}}},
            {**BASE["stage"], "task": {"kind": "game", "rules": {"size": 9, "players": 1}}},
        ),
        ({"task": {"kind": "file", "path": "x"}}, {**BASE["stage"], "task": {"kind": "file", "path": "x"}}),
        ({"task": {"kind": "game", "rules": {}}}, {**BASE["stage"], "task": {"kind": "game", "rules": {}}}),
        ({"source": "elsewhere"}, {"source": "elsewhere"}),
        ({"new": {"key": 1}}, {**BASE["stage"], "new": {"key": 1}}),
    ],
)
def test_an_environment_and_params_change_what_they_name_and_replace_another_kind_whole(load, over, merged):
    assert merge(BASE, {"stage": over}) == {"stage": merged}
    assert load(mine={"stage": over}) == {"stage": merged}
    assert load(mine={}, params={"stage": over}) == {"stage": merged}


def test_params_win_over_the_environment(load):
    mine = {"stage": {"steps": 5, "task": {"kind": "file", "path": "x", "rows": 1}}}
    assert load(mine, {"stage": {"task": {"rows": 2}}})["stage"]["task"] == {"kind": "file", "path": "x", "rows": 2}
    assert load(mine, {"stage": {"task": {"kind": "game"}}})["stage"]["task"] == {"kind": "game"}
    assert load(mine, {"stage": {"steps": 7}})["stage"]["steps"] == 7


def test_params_reach_base_where_there_is_no_other_environment(load):
    assert load(env="base", params={"stage": {"task": {"kind": "file"}}})["stage"]["task"] == {"kind": "file"}
    assert load(mine=None, params={"stage": {"steps": 7}})["stage"]["steps"] == 7


def test_values_may_refer_to_others_that_params_change(load):
    base = {"stage": {"steps": 3, "save_steps": "${.steps}"}}
    assert load({}, {"stage": {"steps": 7}}, base) == {"stage": {"steps": 7, "save_steps": 7}}


def test_without_kinds_it_merges_as_kedro_does():
    for env in ("base", "smoke"):
        ours, kedros = (
            loader(str(PROJECT / "conf"), env, **CONFIG_LOADER_ARGS)["parameters"]
            for loader in (ConfigLoader, OmegaConfigLoader)
        )
        assert ours == kedros


def test_an_environment_that_does_not_exist_is_named_beside_those_that_do(tmp_path):
    for name in ("base", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "globals.yml").write_text("data: data")
    (tmp_path / "local").mkdir()
    with pytest.raises(MissingFileError, match=r"no environment 'mien' in .*\. It has: base, mine\. "):
        ConfigLoader(tmp_path, "mien", **CONFIG_LOADER_ARGS)
    ConfigLoader(tmp_path, "mine", **CONFIG_LOADER_ARGS)


def test_yaml_that_cannot_be_read_is_shown_with_its_file_and_line(load, tmp_path):
    load({})
    (tmp_path / "mine" / "parameters.yml").write_text("stage:\n  steps: 3\n  a: b: c\n")
    with pytest.raises(InputError, match=r"(?s)mine/parameters.yml: .*line 3, column 7"):
        load(base=None)
