"""Ladders of adapters: what is in their folders, by PEFT, and what is refused before anything is computed."""

import json
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file

from realign_pipes.errors import InputError, MissingFileError
from realign_pipes.models.fingerprint import fingerprint_model
from realign_pipes.models.load import load_model, read_model
from realign_pipes.pipelines.ladder import job as module
from realign_pipes.pipelines.ladder.job import MakeLadder
from realign_pipes.pipelines.ladder.parameters import Ladder
from realign_pipes.pipelines.trra.parameters import TrRa
from realign_pipes.serving.ladder import Summary, describe, ladder_command
from realign_pipes.serving.server import Installed
from realign_pipes.teachers.parameters import Teachers

PROJECT = Path(__file__).parents[2]
IDS = torch.tensor([[5, 6, 7, 8]])


def make_trra(rank=4):
    base = yaml.safe_load((PROJECT / "conf" / "base" / "parameters_trra.yml").read_text())["trra"]
    own = {"steps": 2, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 0.1, "warmup_ratio": 0.0}
    return TrRa.model_validate({**base, **own, "lora": {"rank": rank, "alpha": 2 * rank, "merge": False}})


@pytest.fixture
def make_job(tmp_path, make_checkpoint, examples):
    """`make_job(ladder, **fields)`, on tiny float64 models and nine examples."""
    examples.save_to_disk(tmp_path / "examples")
    (tmp_path / "cache").mkdir()
    reference, aligned = (
        make_checkpoint(tmp_path / name, seed=seed, dtype="float64")
        for seed, name in enumerate(("reference", "aligned"))
    )

    def make(ladder, **fields):
        values = {
            "parameters": {"method": "svd", "alphas": [0.5, 2], "rank": 5, **ladder},
            "trra": make_trra(),
            "teachers": Teachers(mode="online", dtype="auto", batch_size=4, shard_tokens=12),
            "reference": reference,
            "aligned": aligned,
            "examples": tmp_path / "examples",
            "teacher_cache": tmp_path / "cache",
            "environment": tmp_path / "no-vllm",
            "work": tmp_path / "work",
            "students": tmp_path / "students",
        }
        return MakeLadder.model_validate({**values, **fields})

    return make


def logits(path):
    with torch.no_grad():
        return load_model(path, device=torch.device("cpu"))(IDS).logits


def by_hand(reference, adapter, scale):
    """Logits of the reference with `scale` times B A added to its weights."""
    model, matrices = read_model(reference), load_file(adapter / "adapter_model.safetensors")
    with torch.no_grad():
        for name, matrix in matrices.items():
            if "lora_A" in name:
                layer = name.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
                weight = model.get_parameter(layer)
                weight += scale * (matrices[name.replace("lora_A", "lora_B")] @ matrix).to(weight)
        return model(IDS).logits


def test_the_difference_of_the_weights_needs_no_data(make_job, tmp_path, monkeypatch):
    job = make_job({}, examples=tmp_path / "none", teacher_cache=tmp_path / "none")
    folder = job.run().folder
    assert sorted(path.name for path in folder.iterdir()) == ["alpha-0.5", "alpha-2", "ladder.json"]
    summary = Summary.load(folder)
    assert (summary.method, summary.rank, summary.rungs) == ("svd", 5, {"alpha-0.5": 0.5, "alpha-2": 2.0})
    assert sum(summary.shares.values()) == pytest.approx(1) and set(summary.shares) == {
        "kept", "cut", "embeddings", "norms", "biases", "output head",
    }  # fmt: skip
    assert summary.errors["alpha-2"] == pytest.approx(4 * summary.errors["alpha-0.5"])
    ours, theirs = (read_model(path).state_dict() for path in (job.reference, job.aligned))
    layers = [name for name, weight in ours.items() if weight.ndim == 2 and ".layers." in name]
    tails = [torch.linalg.svdvals(theirs[name] - ours[name])[5:].square().sum() for name in layers]
    assert summary.errors["alpha-2"] == pytest.approx(2 * sum(tails).sqrt().item())
    reference = logits(job.reference)
    for name, alpha in summary.rungs.items():
        torch.testing.assert_close(logits(folder / name), by_hand(job.reference, folder / name, alpha))
        assert not torch.allclose(logits(folder / name), reference)
        assert json.loads((folder / name / "realignment.json").read_text())["alpha"] == alpha
    assert fingerprint_model(folder / "alpha-2") != fingerprint_model(folder / "alpha-0.5")
    monkeypatch.setattr(module, "truncated_difference", lambda *_, **__: pytest.fail("made again"))
    assert job.run().folder == folder


def test_the_readme_has_the_command_that_is_printed(make_job, tmp_path, monkeypatch):
    job = make_job({"alphas": [-0.5, 2]})
    monkeypatch.chdir(tmp_path)
    command, text = describe(job.run().folder, job.reference, tmp_path / "no-vllm")
    assert f"```\n{command}\n" in text
    assert command == (
        "no-vllm/bin/python -m vllm.entrypoints.openai.api_server --model reference --served-model-name reference "
        "--host 127.0.0.1 --dtype float64 --enable-lora --max-lora-rank 8 --max-loras 3 "
        "--lora-modules alpha--0.5=work/ladder/alpha--0.5 alpha-2=work/ladder/alpha-2"
    )
    assert shlex.split(command)[-1] == "alpha-2=work/ladder/alpha-2"
    assert "| alpha--0.5 | -0.5 |" in text and "LoRA has no place for biases (0.00%), embeddings (" in text


def test_the_command_has_the_chat_template_that_prompts_went_through(make_job, tmp_path, monkeypatch):
    job = make_job({})
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0].content }}")
    monkeypatch.chdir(tmp_path)
    command, text = describe(job.run().folder, job.reference, tmp_path / "no-vllm", template)
    assert dict(pairwise(shlex.split(command)))["--chat-template"] == "template.jinja"
    assert f"```\n{command}\n" in text


def test_the_how_to_shows_the_command_of_the_demo(make_checkpoint, tmp_path, monkeypatch):
    page = (PROJECT / "docs" / "how_to" / "ladder.md").read_text()
    shown = shlex.split(page[page.index("env VLLM") : page.index("```", page.index("env VLLM"))].replace("\\\n", ""))
    base, python = tmp_path / "data" / "06_models" / "reference", tmp_path / ".venv-serve" / "bin" / "python"
    for folder in (base, python.parent):
        folder.mkdir(parents=True)
    make_checkpoint(base, num_attention_heads=1, num_key_value_heads=1)
    python.touch()
    monkeypatch.setattr("realign_pipes.serving.ladder.find_vllm", lambda _: Installed(python, "0.32.0", cpu=True))
    monkeypatch.chdir(tmp_path)
    ladder = yaml.safe_load((PROJECT / "conf" / "base" / "parameters_ladder.yml").read_text())["ladder"]
    rungs = {name: Path("data/06_models/ladder") / name for name in Ladder.model_validate(ladder).rungs()}
    rank = yaml.safe_load((PROJECT / "conf" / "base" / "parameters_trra.yml").read_text())["trra"]["lora"]["rank"]
    assert shown == ladder_command(base, rungs, rank, Path(".venv-serve"))


def test_students_are_scaled_or_trained_at_each_alpha(make_job):
    scaled = make_job({"method": "scaled", "alphas": [1, 2]})
    folder = scaled.run().folder
    student = scaled.students / "trra-lora-1" / "checkpoint"
    torch.testing.assert_close(logits(folder / "alpha-1"), logits(student))
    torch.testing.assert_close(logits(folder / "alpha-2"), by_hand(scaled.reference, student, 2 * 2))
    assert json.loads((folder / "alpha-2" / "realignment.json").read_text())["scaled_by"] == 2
    assert Summary.load(folder).errors is None
    before = (student / "adapter_model.safetensors").stat().st_mtime_ns
    trained = make_job({"method": "trained", "alphas": [1, 2]}).run().folder
    assert (student / "adapter_model.safetensors").stat().st_mtime_ns == before, "the same student at alpha 1"
    torch.testing.assert_close(logits(trained / "alpha-1"), logits(student))
    assert not torch.allclose(logits(trained / "alpha-2"), logits(student))
    about = json.loads((trained / "alpha-2" / "realignment.json").read_text())
    assert about["alpha"] == 2 and "scaled_by" not in about


@pytest.fixture
def _nothing_computed(monkeypatch):
    for name in ("truncated_difference", "train_student", "FusedTeachers"):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("computes"))


@pytest.mark.usefixtures("_nothing_computed")
class TestRefusals:
    def test_weights_that_do_not_fit(self, make_job, make_checkpoint, tmp_path):
        wide = make_checkpoint(tmp_path / "wide", intermediate_size=66)
        with pytest.raises(InputError, match=r"gate_proj.weight is .* set ladder.method to trained or scaled"):
            make_job({}, aligned=wide).run()

    @pytest.mark.parametrize("method", ["svd", "trained"])
    def test_tokenizers_that_differ(self, make_job, make_checkpoint, tmp_path, thinking_tokenizer, method):
        thinking_tokenizer.add_tokens(["<another>"])
        theirs = make_checkpoint(tmp_path / "theirs", tokenizer=thinking_tokenizer)
        with pytest.raises(InputError, match=r"tokenizers of .*reference and .*theirs differ"):
            make_job({"method": method}, aligned=theirs).run()

    def test_a_student_of_too_high_a_rank(self, make_job):
        with pytest.raises(InputError, match=r"trra.lora.rank is 600, and vLLM serves no LoRA adapter above 512"):
            make_job({"method": "scaled"}, trra=make_trra(rank=600)).run()

    def test_a_training_without_data(self, make_job, tmp_path):
        with pytest.raises(MissingFileError, match=r"none is missing. Make it: .* or set ladder.method to svd"):
            make_job({"method": "trained"}, examples=tmp_path / "none").run()

    def test_a_reference_that_is_an_adapter(self, make_job, tmp_path):
        (tmp_path / "reference" / "adapter_config.json").write_text("{}")
        with pytest.raises(InputError, match="reference is an adapter"):
            make_job({}).run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alphas": [0.5, 1.0, 0.5]}, "contain a value twice"),
        ({"alphas": []}, "at least 1 item"),
        ({"rank": 513}, r"rank is 513, and vLLM serves no LoRA adapter above 512 .* 1, 8, 16, .*, 320, 512"),
        ({"method": "merged"}, "'trained', 'scaled' or 'svd'"),
    ],
)  # fmt: skip
def test_wrong_parameters_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        Ladder.model_validate({"method": "svd", "alphas": [0.5], "rank": 8, **changes})
