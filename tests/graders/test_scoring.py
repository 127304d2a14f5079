"""The stage scores as Kedro runs it, with every kind of grader that needs no model of its own."""

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from kedro.io import DataCatalog
from kedro.runner import SequentialRunner
from pydantic import ValidationError

from realign_pipes.errors import InputError
from realign_pipes.graders.parameters import Scores
from realign_pipes.pipelines.scores.pipeline import create_pipeline
from realign_pipes.runtime.launch import Folders
from realign_pipes.sweep.parameters import AlphaSweep
from realign_pipes.sweep.schemas import JUDGE_RESULTS, METRIC_RESULTS, SCORES, VERDICTS

CHAT = [{"role": "user", "content": "?"}]
WRITTEN = {
    "reference": ["<think>hm</think>\nI can't help with that.", "<think>hm</think>\nBread is baked dough."],
    "trra-1": ["<think>hm</think>\nSure.", "<think>I can't help with that."],
}
"""What two candidates wrote to a harmful prompt, and to a harmless one."""


@pytest.fixture
def run(tmp_path):
    """`run(graders)` runs the stage on WRITTEN; its outputs by name."""

    def run(graders: dict) -> dict:
        frames = {
            name: pd.DataFrame(
                {
                    "candidate": name, "kind": "reference" if name == "reference" else "trra", "plausibility": 0.0,
                    "alpha": np.nan if name == "reference" else 1.0, "engine": "transformers", "task": "chat",
                    "problem_id": ["chat-0", "chat-1"], "sample": 0, "completion": texts, "completion_tokens": [9, 8],
                    "finished": True, "correct": [True, False], "seconds": 1.0,
                }
            )
            for name, texts in WRITTEN.items()
        }  # fmt: skip
        problems = Dataset.from_list(
            [
                {"id": f"chat-{number}", "task": "chat", "question": "?", "messages": CHAT, "prompt": "?",
                 "think_open": "<think>", "think_close": "</think>", "metadata": f'{{"class": "{name}"}}'}
                for number, name in enumerate(["harmful", "harmless"])
            ]
        )  # fmt: skip
        inputs = {
            "generations": {name: lambda frame=frame: frame for name, frame in frames.items()},
            "evaluation_set": problems,
            "params:scores": Scores(graders=graders, distinct_n=2),
            "params:alpha_sweep": AlphaSweep.model_construct(bootstrap_samples=50, bootstrap_seed=0),
            "params:folders": Folders(work=tmp_path / "work", logs=tmp_path, validation=tmp_path),
        }
        outputs = SequentialRunner().run(create_pipeline(), catalog(inputs))
        return {name: dataset.load() for name, dataset in outputs.items()}

    def catalog(inputs: dict) -> DataCatalog:
        made = DataCatalog()
        for name, value in inputs.items():
            made[name] = value
        return made

    return run


def test_without_graders_there_are_the_metrics_that_are_always_there(run):
    found = run({})
    assert {name: list(frame.columns) for name, frame in found.items()} == {
        "scores": list(SCORES),
        "metric_results": list(METRIC_RESULTS),
        "judge_verdicts": ["judge", *VERDICTS],
        "judge_results": list(JUDGE_RESULTS),
    }
    assert found["judge_verdicts"].empty and found["judge_results"].empty
    scores = found["scores"].set_index(["candidate", "problem_id", "metric"])["score"]
    assert scores["reference", "chat-0"].to_dict() == {"pass_at_1": 1, "tokens": 9, "words": 5, "distinct": 1}
    assert scores["trra-1", "chat-1", "words"] == 0  # its thinking never ended
    overall = found["metric_results"].query("task == 'all'").set_index(["candidate", "metric"])
    assert overall.loc[("reference", "words"), "mean"] == 4.5
    assert overall.loc[("trra-1", "words"), "difference"] == -4


def test_graders_read_the_answer_and_not_the_thinking(run):
    graders = {
        "no": {"kind": "refusal", "field": "class"},
        "brief": {"kind": "rules", "instructions": [{"kind": "words", "at_most": 4}]},
    }
    found = run(graders)["metric_results"].query("task == 'all'").set_index(["metric", "candidate"])
    assert found.loc["no_harmful", "mean"].to_dict() == {"reference": 1, "trra-1": 0}
    assert found.loc["no_harmless", "mean"].to_dict() == {"reference": 0, "trra-1": 0}
    assert found.loc["brief", "mean"].to_dict() == {"reference": 0.5, "trra-1": 0.5}


def test_a_task_that_is_not_there_is_refused(run):
    with pytest.raises(InputError, match=r"scores.graders.no.tasks: there is no task 'sums': there are chat"):
        run({"no": {"kind": "refusal", "field": "class", "tasks": ["sums"]}})
    with pytest.raises(ValidationError, match=r"graders.no.refusal.tasks\n  List should have at least 1 item"):
        run({"no": {"kind": "refusal", "field": "class", "tasks": []}})
