"""Training students: loss and gradients against full logits, checkpoints, and how a training stops and resumes."""

import copy
import json
import re

import pytest
import torch
from datasets import Dataset
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from realign_pipes.datasets.folders import CheckpointsDataset
from realign_pipes.models.card import base_name, checkpoint_name
from realign_pipes.models.fingerprint import fingerprint_model
from realign_pipes.models.load import load_model
from realign_pipes.paper.objective import divergence_between, fuse_logits
from realign_pipes.paper.trra import TrainingDivergedError
from realign_pipes.pipelines.trra import job as trra
from realign_pipes.pipelines.trra.job import TrainStudents, train_student, train_trra
from realign_pipes.pipelines.trra.parameters import StudentName, TrRa
from realign_pipes.runtime import training as trainings
from realign_pipes.runtime.training import in_training_order, training_seconds
from realign_pipes.teachers.fused import FusedTeachers
from realign_pipes.teachers.hidden_states import write_cache
from realign_pipes.teachers.parameters import Teachers
from realign_pipes.teachers.signals import OnlineTeacher

CPU = torch.device("cpu")
TEACHERS = Teachers(mode="online", dtype="auto", batch_size=4, shard_tokens=12)


def make_parameters(**changes):
    defaults = {
        "alphas": [1.5],
        "only_alpha": None,
        "iterations": 1,
        "iteration_alphas": [1.5],
        "plausibility": 0.0,
        "ablation_alphas": [],
        "scaled_lora": False,
        "divergence": "forward_kl",
        "temperature": 1.0,
        "steps": 4,
        "batch_size": 8,
        "micro_batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_ratio": 0.0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
        "chunk_tokens": 7,
        "save_steps": 2,
        "seed": 5,
        "adapter": "full",
        "lora": {"rank": 4, "alpha": 8, "merge": False},
        "on_policy": 0,
        "on_policy_sampling": {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8, "batch_size": 8},
    }
    return TrRa(**{**defaults, **changes})


@pytest.fixture
def vocab_size(tiny_tokenizer):
    return len(tiny_tokenizer)


def train(pair, examples, vocab_size, work, teacher=None, **changes):
    """A student trained in the folder `work`, by the online teacher unless another is given."""
    teacher = teacher or OnlineTeacher(*(load_model(path, device=CPU) for path in pair))
    parameters = make_parameters(**changes)
    student = load_model(pair[0], device=CPU, dtype=torch.float32)
    train_trra(
        student,
        teacher,
        1.5,
        examples,
        training=parameters,
        distillation=parameters,
        plausibility=parameters.plausibility,
        vocab_size=vocab_size,
        folder=work,
        description="test",
    )
    return student.eval()


class FirstStep(TrainerCallback):
    """Notes the gradients of the first optimizer step, before they are clipped away by another."""

    def __init__(self):
        self.gradients = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.gradients is None:
            self.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def first_gradients(monkeypatch, pair, examples, vocab_size, work, **changes):
    noted = FirstStep()
    monkeypatch.setattr(trainings, "ProgressCallback", lambda advance: noted)
    train(pair, examples, vocab_size, work, steps=1, max_grad_norm=1e9, **changes)
    return noted.gradients


def test_one_step_has_the_gradient_of_the_mean_over_all_completion_tokens(
    monkeypatch, tmp_path, pair, examples, vocab_size
):
    """1x8, 2x4 and 8x1 micro-batches against plain autograd over full logits, one example at a time."""
    examples = examples.select(range(8))
    reference, aligned = (load_model(path, device=CPU) for path in pair)
    student = copy.deepcopy(reference)
    losses = []
    for row in examples:
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        own = slice(len(row["prompt_ids"]) - 1, -1)
        with torch.no_grad():
            z = [model(ids).logits[0, own, :vocab_size] for model in (reference, aligned)]
        losses.append(divergence_between(student(ids).logits[0, own, :vocab_size], fuse_logits(*z, 1.5), "forward_kl"))
    torch.cat(losses).mean().backward()
    expected = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    for micro_batch_size in (8, 4, 1):
        work = tmp_path / f"by-{micro_batch_size}"
        got = first_gradients(
            monkeypatch, pair, examples, vocab_size, work, batch_size=8, micro_batch_size=micro_batch_size
        )
        assert got.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6, msg=f"{name}, by {micro_batch_size}")


def test_the_loss_is_what_the_head_gives(monkeypatch, tmp_path, pair, examples, vocab_size):
    """FSDP gathers the head's weight around the head's own call, so nothing may read it outside."""
    given, load = [], load_model

    def noted(*args, **kwargs):
        model = load(*args, **kwargs)
        model.lm_head.register_forward_hook(lambda module, inputs, output: given.append(output.item()))
        return model

    monkeypatch.setitem(globals(), "load_model", noted)
    teacher = OnlineTeacher(*(load(path, device=CPU) for path in pair))
    train(pair, examples, vocab_size, tmp_path / "work", teacher, steps=1, save_steps=1)
    (state,) = (tmp_path / "work").glob("trainer/checkpoint-1/trainer_state.json")
    logged = json.loads(state.read_text())["log_history"][0]["loss"]
    assert len(given) == 2  # micro-batches
    assert sum(given) == pytest.approx(logged, rel=1e-4)


def test_gradient_checkpointing_changes_nothing(monkeypatch, tmp_path, pair, examples, vocab_size):
    plain = first_gradients(monkeypatch, pair, examples, vocab_size, tmp_path / "plain")
    saved = first_gradients(monkeypatch, pair, examples, vocab_size, tmp_path / "saved", gradient_checkpointing=True)
    for name, gradient in plain.items():
        torch.testing.assert_close(saved[name], gradient)


def test_padding_free_batches_change_no_gradient(monkeypatch, tmp_path, pair, examples, vocab_size):
    padded = first_gradients(monkeypatch, pair, examples, vocab_size, tmp_path / "padded")
    flat = first_gradients(monkeypatch, pair, examples, vocab_size, tmp_path / "flat", padding_free=True)
    assert flat.keys() == padded.keys()
    for name, gradient in padded.items():
        torch.testing.assert_close(flat[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("changes", "weights", "states"),
    [
        ({}, torch.float32, {"exp_avg": torch.float32, "exp_avg_sq": torch.float32}),
        ({"dtype": "bfloat16"}, torch.bfloat16, {"exp_avg": torch.bfloat16, "exp_avg_sq": torch.bfloat16}),
        ({"bf16": True}, torch.float32, {"exp_avg": torch.float32, "exp_avg_sq": torch.float32}),
        ({"optim": "adagrad"}, torch.float32, {"sum": torch.float32}),
    ],
)
def test_weights_and_the_optimizers_states_have_the_dtypes_asked_for(
    tmp_path, pair, examples, changes, weights, states
):
    """Bytes a parameter: 16 with float32 masters (weight, gradient, two moments), 8 without, 12 with Adagrad."""
    work = tmp_path / "work"
    teachers = FusedTeachers(*pair, examples, teachers=TEACHERS, teacher_cache=tmp_path / "none")
    parameters = make_parameters(steps=2, save_steps=2, **changes)
    noted = {}
    with pytest.MonkeyPatch.context() as patch:

        class Note(TrainerCallback):
            def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
                noted["weights"] = {p.dtype for p in model.parameters()}
                inner = optimizer.optimizer if hasattr(optimizer, "optimizer") else optimizer
                noted["states"] = {
                    name: value.dtype for name, value in next(iter(inner.state.values())).items() if name != "step"
                }

        patch.setattr(trainings, "ProgressCallback", lambda advance: Note())
        path = train_student(StudentName("trra-1.5", "trra", 1.5, 0.0), pair[1], teachers, parameters, work)
    assert noted == {"weights": {weights}, "states": states}
    saved = AutoModelForCausalLM.from_pretrained(path)
    assert saved.dtype == torch.float32  # the reference's
    start = AutoModelForCausalLM.from_pretrained(pair[0]).state_dict()
    assert any(not torch.equal(weight, start[name]) for name, weight in saved.state_dict().items())


def test_the_attention_asked_for_is_used_by_student_and_teachers(tmp_path, pair, examples, monkeypatch):
    used = []
    monkeypatch.setattr(
        trra, "train_trra", lambda student, teacher, *args, **kwargs: used.extend([student, *teacher.models]) or 1 / 0
    )
    teachers = FusedTeachers(
        *pair, examples, teachers=TEACHERS, teacher_cache=tmp_path / "none", attn_implementation="eager"
    )
    with pytest.raises(ZeroDivisionError):
        train_student(StudentName("trra-1.5", "trra", 1.5, 0.0), pair[1], teachers, make_parameters(), tmp_path / "w")
    assert [model.config._attn_implementation for model in used] == ["eager"] * 3


def test_bf16_rounds_the_products_and_keeps_the_gradient(monkeypatch, tmp_path, pair, examples, vocab_size):
    """Masters and gradients stay in float32; bfloat16 has 8 bits, so a gradient is a few per cent off."""
    exact = first_gradients(monkeypatch, pair, examples, vocab_size, tmp_path / "exact")
    rounded = first_gradients(monkeypatch, pair, examples, vocab_size, tmp_path / "rounded", bf16=True)
    assert {gradient.dtype for gradient in rounded.values()} == {torch.float32}
    flat, other = (torch.cat([one.flatten() for one in found.values()]) for found in (exact, rounded))
    error = (flat - other).norm() / flat.norm()
    assert 1e-4 < error < 0.05


def test_training_moves_the_student_to_the_teacher(tmp_path, pair, examples, vocab_size):
    def distance(student):
        """On completion tokens, which are all that is learnt from."""
        reference, aligned = (load_model(path, device=CPU) for path in pair)
        total = 0.0
        for row in examples:
            ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
            own = slice(len(row["prompt_ids"]) - 1, -1)
            with torch.no_grad():
                z, *pair_z = (one(ids).logits[0, own, :vocab_size] for one in (student, reference, aligned))
                total += divergence_between(z, fuse_logits(*pair_z, 1.5), "forward_kl").sum()
        return total

    student = train(pair, examples, vocab_size, tmp_path / "work", steps=60)
    assert distance(student) < 0.3 * distance(load_model(pair[0], device=CPU))


def test_an_interrupted_training_ends_with_the_same_weights(monkeypatch, tmp_path, pair, examples, vocab_size, kill):
    whole = train(pair, examples, vocab_size, tmp_path / "whole", steps=6)

    callback, killed = kill
    with monkeypatch.context() as patch:
        patch.setattr(trainings, "ProgressCallback", lambda advance: callback)
        with pytest.raises(killed):
            train(pair, examples, vocab_size, tmp_path / "cut", steps=6)
    saved = sorted(path.name for path in (tmp_path / "cut" / "trainer").glob("checkpoint-*"))
    assert saved == ["checkpoint-4"]
    resumed = train(pair, examples, vocab_size, tmp_path / "cut", steps=6)
    for (name, ours), theirs in zip(resumed.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_nan_stops_with_step_and_examples_and_keeps_the_last_checkpoint(tmp_path, pair, examples, vocab_size):
    class Breaks(OnlineTeacher):
        calls = 0

        def signal(self, batch):
            signal = super().signal(batch)
            self.calls += 1
            if self.calls > 5:
                signal.aligned_hidden.fill_(float("nan"))
            return signal

    teacher = Breaks(*(load_model(path, device=CPU) for path in pair))
    ids = in_training_order(examples, make_parameters())["id"][20:24]  # steps of 8, in halves: the sixth of these
    with pytest.raises(TrainingDivergedError, match=re.escape(f"the loss is nan at step 3, on examples {ids}.")):
        train(pair, examples, vocab_size, tmp_path / "work", teacher=teacher)
    AutoModelForCausalLM.from_pretrained(tmp_path / "work" / "trainer" / "checkpoint-2")


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path, pair, examples, vocab_size):
    """The loss is finite, its gradient is not, at the very last step."""

    class Breaks(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:
                model.lm_head.weight.grad[0, 0] = float("nan")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainings, "ProgressCallback", lambda advance: Breaks())
        with pytest.raises(TrainingDivergedError, match="the gradient of step 4 is not finite"):
            train(pair, examples, vocab_size, tmp_path / "work")


def make_teachers(pair, examples, folder, teachers=TEACHERS):
    return FusedTeachers(*pair, examples, teachers=teachers, teacher_cache=folder / "cache")


def realign(pair, examples, folder, name="trra-1.5", *, teachers=TEACHERS, aligned=None, iteration=0, alpha=1.5,
            **changes):  # fmt: skip
    """The checkpoint of a student; `aligned` is the last round's in a later `iteration`."""
    parameters = make_parameters(**changes)
    student = StudentName(name, "trra", alpha, parameters.plausibility, iteration)
    teachers = make_teachers(pair, examples, folder, teachers)
    return train_student(student, aligned or pair[1], teachers, parameters, folder / "work")


def cache_for(pair, examples, folder):
    teachers = make_teachers(pair, examples, folder)
    for path, name in zip(pair, ("reference", "aligned"), strict=True):
        write_cache(
            folder / "cache" / name,
            load_model(path, device=CPU),
            teachers.examples,
            teachers._cache_source(path),
            dtype=torch.float32,
            batch_size=4,
            shard_tokens=12,
            advance=lambda n: None,
        )


def test_a_full_disk_keeps_earlier_checkpoints(monkeypatch, tmp_path, pair, examples):
    """While the finished student is written: nothing stands under its name, and the next run writes it."""
    from transformers import PreTrainedModel

    first = realign(pair, examples, tmp_path)
    save, calls = PreTrainedModel.save_pretrained, []

    def full_disk(self, folder, *args, **kwargs):
        calls.append(folder)
        if len(calls) == 3:  # after Trainer's two
            save(self, folder, *args, **kwargs)
            raise OSError(28, "No space left on device")
        return save(self, folder, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", full_disk)
        with pytest.raises(OSError, match="No space left"):
            realign(pair, examples, tmp_path, "trra-2", alpha=2.0)
    AutoModelForCausalLM.from_pretrained(first)
    assert sorted(p.name for p in (tmp_path / "work" / "trra-2").iterdir()) == [
        "curves",
        "trainer",
        "work.json",
    ]
    second = realign(pair, examples, tmp_path, "trra-2", alpha=2.0)
    AutoModelForCausalLM.from_pretrained(second)


def test_cached_and_online_teachers_give_the_same_gradient(monkeypatch, tmp_path, pair, examples):
    """The first step's, and not weights after it: Adam divides by a gradient's size, and so magnifies its last bit."""
    cache_for(pair, examples, tmp_path / "cached")
    aligned = pair[1]
    for iteration in (0, 1):
        steps = {"online": FirstStep(), "cached": FirstStep()}
        for mode, noted in steps.items():
            with monkeypatch.context() as patch:
                patch.setattr(trainings, "ProgressCallback", lambda advance, noted=noted: noted)
                trained = realign(pair, examples, tmp_path / mode, f"trra-{iteration}", aligned=aligned,
                                  teachers=TEACHERS.model_copy(update={"mode": mode}), iteration=iteration)  # fmt: skip
        ours, theirs = (noted.gradients for noted in steps.values())
        assert ours.keys() == theirs.keys()
        for name, gradient in ours.items():
            torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-6, msg=f"{iteration}: {name}")
        aligned = trained


def test_checkpoints_open_with_stock_tools_and_say_what_they_are(tmp_path, pair, examples):
    path = realign(pair, examples, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(path)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert model.config.vocab_size == load_model(pair[0], device=CPU).config.vocab_size
    assert AutoTokenizer.from_pretrained(path).chat_template == AutoTokenizer.from_pretrained(pair[0]).chat_template
    made = json.loads((path / "realignment.json").read_text())
    assert (made["alpha"], made["iteration"]) == (1.5, 0)
    assert made["reference"]["fingerprint"] == fingerprint_model(pair[0])
    assert made["aligned"]["fingerprint"] == fingerprint_model(pair[1])
    card = (path / "README.md").read_text()
    for fact in ("alpha = 1.5", fingerprint_model(pair[0]), made["data_fingerprint"], made["commit"], '"steps": 4'):
        assert fact in card


def test_a_model_of_the_hub_is_named_by_repository_and_revision(tmp_path):
    assert (
        checkpoint_name(tmp_path / "models--my-org--fast-thinker" / "snapshots" / "3f2a") == "my-org/fast-thinker@3f2a"
    )
    assert checkpoint_name(tmp_path / "slow") == "slow"
    snapshot = tmp_path / "models--my-org--fast-thinker" / "snapshots" / "3f2a"
    assert base_name(snapshot) == ("my-org/fast-thinker", "3f2a")


def test_a_later_rounds_card_names_the_round_before(tmp_path, pair, examples):
    first = realign(pair, examples, tmp_path)
    second = realign(pair, examples, tmp_path, "trra-iter1-1.5", aligned=first, iteration=1)
    made = json.loads((second / "realignment.json").read_text())
    assert made["iteration"] == 1
    assert made["aligned"] == {"name": "trra-1.5", "fingerprint": fingerprint_model(first)}


def test_a_finished_checkpoint_is_found_again_until_something_changes(monkeypatch, tmp_path, pair, examples):
    path = realign(pair, examples, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(trra, "train_trra", lambda *args, **kwargs: pytest.fail("trained again"))
        assert realign(pair, examples, tmp_path) == path
    before = fingerprint_model(path)
    realign(pair, examples, tmp_path, learning_rate=2e-2)
    assert fingerprint_model(path) != before


def test_the_cache_of_other_models_data_or_dtype_is_refused_before_training(tmp_path, pair, examples):
    cache_for(pair, examples, tmp_path)
    cached = TEACHERS.model_copy(update={"mode": "cached"})
    make_teachers(pair, examples, tmp_path, cached)
    with pytest.raises(ValueError, match="another data"):
        make_teachers(pair, Dataset.from_list(list(examples)[:5]), tmp_path, cached)
    with pytest.raises(ValueError, match="another model"):
        make_teachers(pair[::-1], examples, tmp_path, cached)
    with pytest.raises(ValueError, match=r"another dtype .* kedro run --pipeline teacher_logits"):
        make_teachers(pair, examples, tmp_path, cached.model_copy(update={"dtype": "bfloat16"}))
    make_teachers(pair, examples, tmp_path, cached.model_copy(update={"dtype": "float32"}))


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([[5, 9, 20, 33, 7]])).logits


def test_a_lora_student_as_adapter_and_merged_is_one_model(tmp_path, pair, examples, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lora = {"rank": 4, "alpha": 8, "merge": False}
    adapter = realign(pair, examples, tmp_path / "a", adapter="lora", lora=lora)
    merged = realign(pair, examples, tmp_path / "m", adapter="lora", lora={**lora, "merge": True})
    theirs = logits(load_model(merged, device=CPU))
    for ours in (load_model(adapter, device=CPU), AutoModelForCausalLM.from_pretrained(adapter)):
        torch.testing.assert_close(logits(ours), theirs, rtol=1e-4, atol=1e-4)  # the sum of the weights is rounded
    assert (theirs - logits(load_model(pair[0], device=CPU))).abs().max() > 0.1
    assert not list(adapter.glob("model*.safetensors"))
    assert not list(merged.glob("adapter*"))
    reference, plain = load_model(pair[0], device=CPU).state_dict(), load_model(merged, device=CPU).state_dict()
    assert plain.keys() == reference.keys()
    for name, weight in reference.items():
        change = plain[name] - weight
        projection = weight.ndim == 2 and "proj" in name
        assert bool(change.any()) == projection, name
        assert not projection or torch.linalg.matrix_rank(change, atol=1e-5) <= 4, name
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "reference"
    assert "library_name: peft" in (adapter / "README.md").read_text()
    assert AutoTokenizer.from_pretrained(adapter).chat_template == AutoTokenizer.from_pretrained(pair[0]).chat_template


def test_an_adapter_moves_with_its_base_and_says_when_that_is_not_there(tmp_path, pair, examples, monkeypatch):
    project = tmp_path / "project"
    project.mkdir()
    for path in pair:
        path.rename(project / path.name)
    monkeypatch.chdir(project)
    here = [project / path.name for path in pair]
    path = realign(here, examples, project, "s", adapter="lora")
    before, fingerprint = logits(load_model(path, device=CPU)), fingerprint_model(path)
    moved = tmp_path / "elsewhere"
    project.rename(moved)
    monkeypatch.chdir(moved)
    path = moved / path.relative_to(project)
    assert torch.equal(logits(load_model(path, device=CPU)), before)
    assert fingerprint_model(path) == fingerprint
    assert CheckpointsDataset(filepath=str(moved / "work")).load() == {"s/checkpoint": path}
    made = json.loads((path / "realignment.json").read_text())
    assert made["parameters"]["lora"] == {"rank": 4, "alpha": 8, "merge": False}
    made["reference"]["fingerprint"] = "another"
    (path / "realignment.json").write_text(json.dumps(made))
    assert fingerprint_model(path) != fingerprint
    (moved / "reference").rename(moved / "gone")
    with pytest.raises(FileNotFoundError, match=r"an adapter for the checkpoint reference, which is not a folder in"):
        load_model(path, device=CPU)


def test_a_later_round_takes_an_adapter_as_its_aligned_model(tmp_path, pair, examples):
    cache_for(pair, examples, tmp_path)
    for mode in ("online", "cached"):
        recipe = {"teachers": TEACHERS.model_copy(update={"mode": mode}), "adapter": "lora"}
        first = realign(pair, examples, tmp_path, f"{mode}-0", **recipe)
        second = realign(pair, examples, tmp_path, f"{mode}-1", aligned=first, iteration=1, **recipe)
        made = json.loads((second / "realignment.json").read_text())
        assert made["aligned"]["fingerprint"] == fingerprint_model(first)
        assert not torch.equal(logits(load_model(second, device=CPU)), logits(load_model(first, device=CPU)))


def test_a_job_means_the_same_to_the_processes_that_read_it(tmp_path, pair):
    """Alphas name folders as YAML spells them: 1 and 1.0 are other folders."""
    job = TrainStudents(
        parameters=make_parameters(alphas=[1, 2.0, 1e-7, -0.5], iteration_alphas=[2.0]), teachers=TEACHERS,
        reference=pair[0], aligned=pair[1], examples=tmp_path / "examples", teacher_cache=tmp_path / "cache",
        work=tmp_path / "work",
    )  # fmt: skip
    read = TrainStudents.model_validate_json(job.model_dump_json())
    assert read == job
    names = [[list(one.parameters.students(alpha)) for alpha in one.parameters.alphas] for one in (job, read)]
    assert names[0] == names[1] == [["1/trra-1"], ["2.0/trra-2", "2.0/trra-iter1-2"], ["1e-07/trra-1e-07"],
                                    ["-0.5/trra--0.5"]]  # fmt: skip


def test_only_one_alpha_is_trained_where_it_is_asked_for(tmp_path, pair, examples, monkeypatch):
    """And each further round has the round before as its aligned model."""
    examples.save_to_disk(tmp_path / "examples")
    trained = []

    def train(student, aligned, *others):
        trained.append((student, aligned))
        return tmp_path / student.name

    monkeypatch.setattr(trra, "train_student", train)
    job = TrainStudents(
        parameters=make_parameters(alphas=[0.5, 1.5], only_alpha=1.5, iterations=2), teachers=TEACHERS,
        reference=pair[0], aligned=pair[1], examples=tmp_path / "examples", teacher_cache=tmp_path / "cache",
        work=tmp_path / "work",
    )  # fmt: skip
    names = ["trra-1.5", "trra-iter1-1.5", "trra-iter2-1.5"]
    assert job.run().checkpoints == {f"1.5/{name}": tmp_path / name for name in names}
    assert trained == [
        (StudentName(name, "trra_iter" if iteration else "trra", 1.5, 0.0, iteration), aligned)
        for iteration, (name, aligned) in enumerate(zip(names, [pair[1], *(tmp_path / n for n in names)], strict=False))
    ]


def test_the_order_of_examples_is_permutation_after_permutation(examples):
    parameters = make_parameters(steps=5, batch_size=4)  # 20 examples: two of nine and a part of a third
    ids = in_training_order(examples, parameters)["id"][:]
    assert len(ids) == 20
    assert set(ids[:9]) == set(ids[9:18]) == set(examples["id"])
    assert ids[:9] != ids[9:18]
    assert ids == in_training_order(examples, make_parameters(steps=10, batch_size=2, micro_batch_size=1))["id"][:]
    assert ids != in_training_order(examples, make_parameters(steps=5, batch_size=4, seed=6))["id"][:]


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_a_student_has_the_chat_template_that_the_models_were_given(tmp_path, pair, examples, adapter):
    """Also in place of the reference's own; another template makes another student."""
    fingerprints = []
    for text in ("given: {{ messages[0].content }}", "other: {{ messages[0].content }}"):
        (tmp_path / "given.jinja").write_text(text)
        path = train_student(
            StudentName("trra-1.5", "trra", 1.5, 0.2),
            pair[1],
            make_teachers(pair, examples, tmp_path, TEACHERS),
            make_parameters(steps=1, adapter=adapter),
            tmp_path / "work",
            tmp_path / "given.jinja",
        )
        assert AutoTokenizer.from_pretrained(path).chat_template == text
        fingerprints.append(json.loads((path / "realignment.json").read_text())["chat_template"])
    assert len(set(fingerprints)) == 2
    own = realign(pair, examples, tmp_path, steps=1, adapter=adapter)
    assert AutoTokenizer.from_pretrained(own).chat_template.startswith("{% for")
    assert "chat_template" not in json.loads((own / "realignment.json").read_text())


def test_the_mask_is_left_out_and_lora_trained_beside_the_students_of_each_alpha():
    parameters = make_parameters(
        alphas=[1, 1.5, 2.0],
        iteration_alphas=[1.5],
        plausibility=0.2,
        ablation_alphas=[7.0, 2.0, 1.5],
        scaled_lora=True,
    )
    assert {name: (one.kind, one.plausibility, one.lora) for name, one in parameters.all_students().items()} == {
        "1/trra-1": ("trra", 0.2, False),
        "1/trra-lora-1": ("lora_scale", 0.2, True),
        "1.5/trra-1.5": ("trra", 0.2, False),
        "1.5/trra-iter1-1.5": ("trra_iter", 0.2, False),
        "1.5/trra-1.5-unmasked": ("trra", 0.0, False),
        "2.0/trra-2": ("trra", 0.2, False),
        "2.0/trra-2-unmasked": ("trra", 0.0, False),
    }
    assert list(make_parameters(plausibility=0.0, ablation_alphas=[1.5]).all_students()) == [
        "1.5/trra-1.5", "1.5/trra-iter1-1.5",
    ]  # fmt: skip


def test_each_student_is_trained_as_it_is_named(tmp_path, pair, examples):
    """Masked, unmasked and LoRA students differ, and say what they are; a mask of 0 is the training without one."""
    examples.save_to_disk(tmp_path / "examples")

    def run(work, **changes):
        job = TrainStudents(
            parameters=make_parameters(alphas=[1], iterations=0, iteration_alphas=[], **changes), teachers=TEACHERS,
            reference=pair[0], aligned=pair[1], examples=tmp_path / "examples", teacher_cache=tmp_path / "cache",
            work=tmp_path / work,
        )  # fmt: skip
        return {path.parent.name: path for path in job.run().checkpoints.values()}

    made = run(
        "all", plausibility=0.9, ablation_alphas=[1], scaled_lora=True, lora={"rank": 4, "alpha": 8, "merge": True}
    )
    assert list(made) == ["trra-1", "trra-1-unmasked", "trra-lora-1"]
    assert (made["trra-lora-1"] / "adapter_model.safetensors").exists(), "its matrices are kept, to be scaled"
    described = {name: json.loads((path / "realignment.json").read_text()) for name, path in made.items()}
    assert {name: facts["parameters"]["plausibility"] for name, facts in described.items()} == {
        "trra-1": 0.9, "trra-1-unmasked": 0.0, "trra-lora-1": 0.9,
    }  # fmt: skip
    assert all(training_seconds(path) > 0 for path in made.values())
    assert "plausibility was 0.9" in (made["trra-1"] / "README.md").read_text()
    assert "plausibility was" not in (made["trra-1-unmasked"] / "README.md").read_text()
    plain = run("plain", plausibility=0.0)["trra-1"]
    assert fingerprint_model(plain) == fingerprint_model(made["trra-1-unmasked"]) != fingerprint_model(made["trra-1"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"divergence": "reverse_kl", "plausibility": 0.2},
            "trra.divergence is reverse_kl and trra.plausibility is 0.2.*Set trra.plausibility to 0, or trra.div",
        ),
        ({"plausibility": 1.0}, "plausibility"),
        ({"plausibility": -0.1}, "plausibility"),
        ({"plausibility": float("nan")}, "plausibility"),
    ],
)
def test_a_mask_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        make_parameters(**changes)


def test_reverse_kl_without_mask_is_the_papers():
    assert make_parameters(divergence="reverse_kl", plausibility=0.0).plausibility == 0
