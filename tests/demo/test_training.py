"""Two tiny steps of each training: what comes out is an ordinary checkpoint, and work is not done twice."""

import hashlib
import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from realign_pipes.demo import training
from realign_pipes.demo.parameters import DemoModels
from realign_pipes.generation.engine import Completion
from realign_pipes.runtime.training import last_complete_checkpoint

RUN = {"steps": 2, "batch_size": 4, "learning_rate": 1e-3, "warmup_ratio": 0.1, "save_steps": 1}
SAMPLING = {"samples": 2, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8, "batch_size": 8, "seed": 2}
PARAMETERS = DemoModels.model_validate(
    {
        "problems": {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1},
        "traces": {"max_rechecks": 1, "slip_rate": 0.1, "cut_share": 0.3},
        "architecture": {"layers": 2, "width": 16, "heads": 2, "kv_heads": 1, "mlp_width": 32},
        "reference": {**RUN, "problem_seed": 1000, "seed": 1},
        "aligned": {**RUN, "problem_seed": 2000, "seed": 3, "problems": 4, "sampling": SAMPLING},
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


def test_a_cut_example_is_the_same_tokens_with_less_thinking_and_a_label_on_the_solution_alone() -> None:
    prompt, close = [1, 2], 9
    completion = [10, 11, 12, 13, close, 20, 21]
    kept = []
    rng = random.Random(0)
    for _ in range(400):
        given, learnt = training.cut_thinking(prompt, completion, close, rng)
        assert learnt == [20, 21]
        thinking = given[2:-1]
        assert given == [1, 2, *completion[: len(thinking)], close]
        kept.append(len(thinking))
    assert set(kept) == {0, 1, 2, 3, 4}
    assert 0.5 < kept.count(0) / 400 < 0.7  # half, and a fifth of the other half


def test_a_finished_reference_is_not_trained_again(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_train", lambda *_: pytest.fail("trained again"))
    assert training.train_reference(PARAMETERS, reference.parent) == reference


def test_the_same_seed_gives_the_same_weights_and_another_one_others(reference: Path, tmp_path: Path) -> None:
    again = training.train_reference(PARAMETERS, tmp_path / "again")
    assert weights_digest(again) == weights_digest(reference)
    seeded = PARAMETERS.model_copy(update={"reference": PARAMETERS.reference.model_copy(update={"seed": 7})})
    assert weights_digest(training.train_reference(seeded, tmp_path / "other")) != weights_digest(reference)


def test_an_interrupted_training_goes_on_and_ends_the_same(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interruption(TrainerCallback):
        def on_save(self, *args: object, **kwargs: object) -> None:
            raise KeyboardInterrupt

    trainer = training.Trainer
    monkeypatch.setattr(training, "Trainer", lambda **rest: trainer(callbacks=[Interruption()], **rest))
    with pytest.raises(KeyboardInterrupt):
        training.train_reference(PARAMETERS, tmp_path / "reference")
    monkeypatch.undo()
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


def test_only_completion_tokens_are_in_the_loss(
    reference: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    batches = []

    class Recorder:
        def __init__(self, train_dataset, data_collator, **_):
            batches.append(data_collator(list(train_dataset)))

    monkeypatch.setattr(training, "Trainer", Recorder)
    monkeypatch.setattr(training, "train", lambda trainer, description: None)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(reference), AutoTokenizer.from_pretrained(reference)
    examples = [([5, 6, 7], [8, 9]), ([5], [8])]
    training._train(model, tokenizer, examples, PARAMETERS.reference, tmp_path, "")
    pad = tokenizer.pad_token_id
    rows = {tuple(ids): tuple(labels) for ids, labels in zip(*(batches[0][k].tolist() for k in ("input_ids", "labels")),
                                                           strict=True)}  # fmt: skip
    assert rows == {(5, 6, 7, 8, 9): (-100, -100, -100, 8, 9), (5, 8, pad, pad, pad): (-100, 8, -100, -100, -100)}


def test_the_aligned_model_comes_from_the_shortest_correct_completions(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for sampling: of a long right, a short right and a shorter wrong completion the second is kept."""
    tokenizer = AutoTokenizer.from_pretrained(reference)

    def drawn(model, prompts, keys, sampling, **_):
        for index, key in enumerate(keys):
            answer = training.make_problems(training._task(PARAMETERS.problems), 4, seed=2000)[index]["answer"]
            assert key.endswith("=")
            texts = (f" 1 1</think><answer> {answer}</answer>", f"</think><answer> {answer}</answer>", "</think>")
            yield [
                Completion(index, sample, tokenizer(text + tokenizer.eos_token)["input_ids"], finished=True)
                for sample, text in enumerate(texts)
            ]

    monkeypatch.setattr(training, "sample_completions", drawn)
    aligned = training.train_aligned(PARAMETERS, reference, tmp_path / "aligned")
    chosen = json.loads((tmp_path / "aligned" / "chosen.json").read_text())
    assert len(chosen) == 4
    assert all(tokenizer.decode(completion).startswith("</think><answer>") for _, completion in chosen)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(path) for path in (reference, aligned))
    assert not torch.equal(ours.get_input_embeddings().weight, theirs.get_input_embeddings().weight)


def test_a_reference_that_solves_nothing_is_an_error(reference: Path, tmp_path: Path) -> None:
    """Two steps teach nothing, and eight tokens hold no answer."""
    with pytest.raises(ValueError, match=r"reference solved none of the problems.*more steps"):
        training.train_aligned(PARAMETERS, reference, tmp_path / "aligned")
