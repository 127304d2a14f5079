"""Two tiny steps of each training: what comes out is an ordinary checkpoint, and work is not done twice."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTTrainer

from realign_pipes.demo import training
from realign_pipes.demo.parameters import DemoModels
from realign_pipes.errors import InputError
from realign_pipes.generation.transformers_engine import TransformersEngine
from realign_pipes.models.load import load_tokenizer
from realign_pipes.paper.adapters import sft_trainer
from realign_pipes.runtime import sft
from realign_pipes.runtime.training import last_complete_checkpoint

RUN = {"steps": 2, "batch_size": 4, "learning_rate": 1e-3, "warmup_ratio": 0.1, "save_steps": 1}
SAMPLING = {"samples": 2, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8, "batch_size": 8, "seed": 2}
PARAMETERS = DemoModels.model_validate(
    {
        "problems": {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1},
        "traces": {"check_share": 0.5, "max_checks": 1, "slip_rate": 0.1, "cut_share": 0.3},
        "architecture": {"layers": 2, "width": 16, "heads": 2, "kv_heads": 1, "mlp_width": 32},
        "reference": {**RUN, "problem_seed": 1000, "seed": 1},
        "aligned": {**RUN, "problem_seed": 2000, "seed": 3, "problems": 4, "verified_share": 1.0, "sampling": SAMPLING},
    }
)


def weights_digest(checkpoint: Path) -> str:
    return hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.train_reference(PARAMETERS, tmp_path_factory.mktemp("work") / "reference")


def test_the_reference_is_an_ordinary_checkpoint(reference: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(reference, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(reference)
    assert model.config.model_type == "qwen2"
    assert (
        model.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    )
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert tokenizer.chat_template is not None


def test_what_is_learnt_after_cut_thinking_has_no_slips() -> None:
    """Half of the other traces' later minuses are slips."""
    traces = {"check_share": 0.0, "max_checks": 1, "slip_rate": 0.5, "cut_share": 0.5}
    wide = {**RUN, "batch_size": 200, "problem_seed": 1000, "seed": 1}
    parameters = DemoModels.model_validate({**PARAMETERS.model_dump(), "traces": traces, "reference": wide})
    tokenizer = training.build_tokenizer(27)
    cut, whole = [], []
    for prompt, completion in training.slow_examples(parameters, tokenizer):
        text = tokenizer.decode(prompt)
        answer = re.search(r"> (-?\d+)<", tokenizer.decode(completion))[1]
        right = eval_sum(text) == int(answer)
        (cut if text.endswith("</think>") else whole).append(right)
    assert 170 < len(cut) < 230 and len(cut) + len(whole) == 400
    assert sum(cut) / len(cut) > 0.95
    assert sum(whole) / len(whole) < 0.95


def test_a_finished_reference_is_not_trained_again(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "fine_tune", lambda *_, **__: pytest.fail("trained again"))
    assert training.train_reference(PARAMETERS, reference.parent) == reference


def test_the_same_seed_gives_the_same_weights_and_another_one_others(reference: Path, tmp_path: Path) -> None:
    again = training.train_reference(PARAMETERS, tmp_path / "again")
    assert weights_digest(again) == weights_digest(reference)
    seeded = PARAMETERS.model_copy(update={"reference": PARAMETERS.reference.model_copy(update={"seed": 7})})
    assert weights_digest(training.train_reference(seeded, tmp_path / "other")) != weights_digest(reference)


class Interruption(TrainerCallback):
    def on_save(self, *args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt


def test_an_interrupted_training_resumes_and_ends_the_same(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> SFTTrainer:
        trainer = sft_trainer(*arguments)
        trainer.add_callback(Interruption())
        return trainer

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sft, "sft_trainer", interrupted)
        training.train_reference(PARAMETERS, tmp_path / "reference")
    saved = last_complete_checkpoint(tmp_path / "reference" / "trainer")
    assert saved is not None and saved.name == "checkpoint-1"
    assert not (tmp_path / "reference" / "checkpoint").exists()
    assert weights_digest(training.train_reference(PARAMETERS, tmp_path / "reference")) == weights_digest(reference)


def test_an_incomplete_trainer_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step, state in ((9, "{}"), (10, '{"global_'), (11, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    assert last_complete_checkpoint(tmp_path / "nowhere") is None


def test_training_is_sft_on_the_completion_tokens_alone(
    reference: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainers: list[SFTTrainer] = []
    monkeypatch.setattr(sft, "train", lambda trainer, description: trainers.append(trainer))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(reference), AutoTokenizer.from_pretrained(reference)
    examples = [([5, 6, 7], [8, 9]), ([5], [8])]
    sft.fine_tune(model, tokenizer, examples, PARAMETERS.reference, tmp_path, "")
    [trainer] = trainers
    assert len(trainer.train_dataset) == PARAMETERS.reference.steps * PARAMETERS.reference.batch_size
    assert (trainer.args.max_steps, trainer.args.learning_rate, trainer.args.adam_beta2) == (2, 1e-3, 0.98)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(2)])
    pad = tokenizer.pad_token_id
    rows = {
        tuple(ids): tuple(labels)
        for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)
    }
    assert rows == {(5, 6, 7, 8, 9): (-100, -100, -100, 8, 9), (5, 8, pad, pad, pad): (-100, 8, -100, -100, -100)}
    # The loss of the batch is the mean cross-entropy of its three completion tokens.
    logits = model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits.log_softmax(-1)
    expected = (
        -sum(logits[r, at - 1, batch["input_ids"][r, at]] for r, at in (batch["labels"] >= 0).nonzero().tolist()) / 3
    )
    torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), expected)


def write(prompt: str, sample: int) -> str:
    """Of a long right, a short right, a shorter wrong and a shortest unfinished completion."""
    answer = eval_sum(prompt)
    return (
        f" 1 1</think><answer> {answer}</answer><|im_end|>",
        f" 1</think><answer> {answer}</answer><|im_end|>",
        f"</think><answer> {answer + 1}</answer><|im_end|>",
        f"</think><answer> {answer}</answer>",
    )[sample]


def eval_sum(prompt: str) -> int:
    terms = re.search(r": (.*?) =", prompt)[1].replace("+ ", "+").replace("- ", "-").split()
    return sum(map(int, terms))


@pytest.fixture
def four_samples() -> DemoModels:
    sampling = PARAMETERS.aligned.sampling.model_copy(update={"samples": 4})
    return PARAMETERS.model_copy(update={"aligned": PARAMETERS.aligned.model_copy(update={"sampling": sampling})})


def test_examples_of_the_aligned_model_are_the_shortest_correct_completions_if_all_are_verified(
    reference: Path, tmp_path: Path, scripted_engine: Callable[..., Any], four_samples: DemoModels
) -> None:
    """With an engine that only writes text, in two runs, the first of which is killed."""
    tokenizer = load_tokenizer(reference)
    killed = scripted_engine(write, tokenizer, killed_in=1)
    with pytest.raises(KeyboardInterrupt):
        training.shortest_completions(killed.open, tokenizer, four_samples, tmp_path / "completions.jsonl")
    engine = scripted_engine(write, tokenizer)
    chosen = training.shortest_completions(engine.open, tokenizer, four_samples, tmp_path / "completions.jsonl")
    assert len(engine.asked) == 1, "two problems of four were done"
    questions = training.aligned_questions(four_samples, tokenizer)
    assert [prompt for prompt, _ in chosen] == [question.prompt_ids for question in questions]
    for question, (_, completion) in zip(questions, chosen, strict=True):
        assert tokenizer.decode(completion) == f" 1</think><answer> {question.answer}</answer><|im_end|>"
        assert question.prompt == tokenizer.decode(question.prompt_ids)


def test_of_problems_whose_answer_is_not_known_the_shortest_finished_completion_is_kept(
    reference: Path, tmp_path: Path, scripted_engine: Callable[..., Any], four_samples: DemoModels
) -> None:
    tokenizer = load_tokenizer(reference)
    half = four_samples.model_copy(update={"aligned": four_samples.aligned.model_copy(update={"verified_share": 0.5})})
    engine = scripted_engine(write, tokenizer)
    chosen = training.shortest_completions(engine.open, tokenizer, half, tmp_path / "completions.jsonl")
    questions = training.aligned_questions(half, tokenizer)
    answers = [f"<answer> {question.answer}<" for question in questions]
    right = [answer in tokenizer.decode(ids) for answer, (_, ids) in zip(answers, chosen, strict=True)]
    assert right == [True, True, False, False]


def test_problems_without_a_correct_completion_are_left_out(
    reference: Path, tmp_path: Path, scripted_engine: Callable[..., Any]
) -> None:
    tokenizer = load_tokenizer(reference)
    first = training.aligned_questions(PARAMETERS, tokenizer)[0]
    engine = scripted_engine(lambda prompt, sample: write(prompt, 0 if prompt == first.prompt else 2), tokenizer)
    [(prompt, _)] = training.shortest_completions(engine.open, tokenizer, PARAMETERS, tmp_path / "completions.jsonl")
    assert prompt == first.prompt_ids


def test_the_aligned_model_is_the_reference_trained_on_them(
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scripted_engine: Callable[..., Any],
    four_samples: DemoModels,
) -> None:
    opened = []
    engine = scripted_engine(write, load_tokenizer(reference))
    monkeypatch.setattr(TransformersEngine, "of_checkpoint", lambda path: opened.append(path) or engine)
    trained = []
    train = training.fine_tune
    monkeypatch.setattr(
        training, "fine_tune", lambda *arguments, **named: trained.append(arguments) or train(*arguments, **named)
    )
    aligned = training.train_aligned(four_samples, reference, tmp_path / "aligned")
    assert opened == [reference]
    [(_, _, examples, given, _, _)] = trained
    assert examples == training.shortest_completions(
        engine.open, load_tokenizer(reference), four_samples, tmp_path / "c"
    )
    assert given == four_samples.aligned
    ours, theirs = (AutoModelForCausalLM.from_pretrained(path) for path in (reference, aligned))
    assert not torch.equal(ours.get_input_embeddings().weight, theirs.get_input_embeddings().weight)
    assert sorted(path.name for path in aligned.parent.iterdir()) == ["checkpoint", "work.json"]
    assert (aligned / "curves").is_dir()
    training.train_aligned(four_samples, reference, tmp_path / "aligned")
    assert len(trained) == 1, "a finished model is not trained again"


def test_a_reference_that_solves_nothing_is_an_error(reference: Path, tmp_path: Path) -> None:
    """Two steps teach nothing, and eight tokens hold no answer."""
    with pytest.raises(InputError, match=r"reference solved none of the problems.*more steps"):
        training.train_aligned(PARAMETERS, reference, tmp_path / "aligned")


def test_completions_longer_than_the_model_s_positions_are_refused_before_any_training(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "fine_tune", lambda *_, **__: pytest.fail("trained"))
    tokenizer = training.build_tokenizer(50)
    [longest] = {len(question.prompt_ids) for question in training.aligned_questions(PARAMETERS, tokenizer)}
    sampling = PARAMETERS.aligned.sampling.model_copy(update={"max_new_tokens": 1025 - longest})
    long = PARAMETERS.model_copy(update={"aligned": PARAMETERS.aligned.model_copy(update={"sampling": sampling})})
    message = rf"demo_models.aligned.sampling.max_new_tokens is {1025 - longest} .* 1025 tokens, .* is 1024. "
    with pytest.raises(InputError, match=message):
        training.train_reference(long, tmp_path / "reference")
    with pytest.raises(InputError, match=message):
        training.train_aligned(long, reference, tmp_path / "aligned")
