"""The embedded dialogues through the whole DAG, with trainings of a few steps: no figure here means anything."""

import json
import re

import pandas as pd
import pytest
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

from realign_pipes.dialogue.dialogues import REFUSAL

TINY = {
    "dialogue_models": {
        "sets": {"calibration": 16, "replies": 16, "pairs": 16, "questions": 8, "requests": 8, "conversations": 4},
        "reference": {"steps": 300, "save_steps": 300},
        "aligned": {"steps": 20, "save_steps": 20},
    },
    "data_prep": {"calibration": {"sampling": {"samples": 1}}},
    "trra": {"alphas": [2.0], "ablation_alphas": None, "steps": 4, "save_steps": 4},
    "inra": {"steps": 4, "save_steps": 4, "dpo": {"steps": 4}},
    "alpha_sweep": {
        "dera_alphas": [],
        "inra_alphas": [0.0, 1.0],
        "merge_alphas": [2.0],
        "sampling": {"samples": 2},
        "bootstrap_samples": 50,
    },
    "turns": {"alphas": [[0.0, 0.0], [2.0, 0.0]]},
    "tax": {"limit": 20, "candidates": ["reference", "inra-1"]},
}


@pytest.fixture(scope="module")
def data(copy_project):
    root = copy_project()
    bootstrap_project(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        with KedroSession.create(root, env="dialogue", runtime_params=TINY) as session:
            session.run(pipeline_names=["dialogue_models", "realign", "tax", "turns"])
    return root / "data" / "dialogue"


def completions(data, candidate):
    return pd.read_parquet(data / "07_model_output" / "generations" / f"{candidate}.parquet")


def test_every_candidate_is_measured_by_what_its_answers_hold(data):
    metrics = pd.read_csv(data / "07_model_output" / "metric_results.csv")
    means = metrics[metrics["task"] == "all"].pivot(index="candidate", columns="metric", values="mean")
    assert list(metrics["candidate"].unique()) == [
        "reference", "reference-min-p", "aligned", "aligned-min-p", "merge-2", "trra-2", "inra-0", "inra-1",
    ]  # fmt: skip
    raw = {name: read_lines(data / "01_raw" / f"{name}.jsonl") for name in ("questions", "requests")}
    for candidate in means.index:
        rows = completions(data, candidate)
        facts, refused = [], {"harmful": [], "harmless": []}
        for row in rows.itertuples():
            problem = raw[row.task][int(row.problem_id.removeprefix(f"{row.task}-"))]
            if row.task == "questions":
                (fact,) = json.loads(problem["instructions"])[0]["present"]
                facts.append(re.search(rf"\b{fact}\b", row.completion) is not None)
            else:
                refused[problem["class"]].append(REFUSAL in row.completion)
        assert len(facts) == 16 and means.loc[candidate, "fact"] == pytest.approx(sum(facts) / 16)
        for harm, found in refused.items():
            assert len(found) == 8 and means.loc[candidate, f"refuses_{harm}"] == pytest.approx(sum(found) / 8)


def test_the_reference_has_learned_to_talk_and_its_adapter_at_alpha_0_says_the_same(data):
    said = completions(data, "reference")["completion"]
    assert sum(text.endswith((".", "?", "!")) for text in said) > 0.8 * len(said)
    assert said.equals(completions(data, "inra-0")["completion"])


def test_words_and_facts_decide_and_the_tax_is_measured(data):
    decided = json.loads((data / "08_reporting" / "recommendation.json").read_text())
    assert decided["margin"] == 0.05
    asked = completions(data, "reference").set_index("problem_id")["completion"]
    assert 0 <= decided["reference_fact"] <= 1 and 1 < decided["reference_words"] < max(map(len, asked))
    tax = pd.read_csv(data / "07_model_output" / "tax_results.csv")
    assert set(tax["candidate"]) == {"reference", "inra-1"}
    assert set(tax["task"]) == {"plain_sums", "KL questions", "KL requests"}
    moved = tax[tax["task"].str.startswith("KL")].groupby("candidate")["value"].min()
    assert moved["reference"] == 0 and moved["inra-1"] > 0


def test_conversations_are_held_at_each_list_of_alphas(data):
    turns = pd.read_csv(data / "07_model_output" / "turns_results.csv")
    assert list(turns["alphas"].unique()) == ["0, 0", "2, 0"] and set(turns["conversations"]) == {4}
    assert set(turns["turn"]) == {0, 1, 2}
    first = turns[turns["turn"] == 2].set_index("alphas")["words"]
    assert (first > 1).all()


def read_lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]
