"""Students that draw completions themselves: what they draw and learn, how such a training resumes, what is refused."""

import copy
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig, TrainerCallback, TrainingArguments

from realign_pipes.errors import InputError
from realign_pipes.generation.transformers_engine import draw_uniforms
from realign_pipes.models.load import load_model
from realign_pipes.paper.objective import divergence_between, fuse_logits
from realign_pipes.paper.trra import OnPolicy, TrRaTrainer, collate, examples_of
from realign_pipes.pipelines.trra import job as trra
from realign_pipes.pipelines.trra.job import train_student, train_trra
from realign_pipes.pipelines.trra.parameters import StudentName, TrRa
from realign_pipes.runtime import training as trainings
from realign_pipes.runtime.training import in_training_order
from realign_pipes.teachers import fused
from realign_pipes.teachers.fused import FusedTeachers
from realign_pipes.teachers.parameters import Teachers
from realign_pipes.teachers.signals import OnlineTeacher

CPU = torch.device("cpu")
TEACHERS = Teachers(mode="online", dtype="auto", batch_size=4, shard_tokens=12)
PARAMETERS = {
    "alphas": [1.5],
    "only_alpha": None,
    "iterations": 0,
    "iteration_alphas": [],
    "plausibility": 0.0,
    "ablation_alphas": [],
    "scaled_lora": False,
    "divergence": "forward_kl",
    "temperature": 1.0,
    "steps": 1,
    "batch_size": 8,
    "micro_batch_size": 4,
    "learning_rate": 1e-2,
    "warmup_ratio": 0.0,
    "weight_decay": 0.0,
    "max_grad_norm": 1e9,
    "gradient_checkpointing": False,
    "chunk_tokens": 7,
    "save_steps": 2,
    "seed": 5,
    "adapter": "full",
    "lora": {"rank": 4, "alpha": 8, "merge": False},
    "on_policy": 1.0,
    "on_policy_sampling": {"temperature": 0.8, "top_p": 0.9, "max_new_tokens": 6, "batch_size": 3},
}


@pytest.fixture
def make_pair(tmp_path, make_checkpoint):
    """`make_pair(**config)` makes a reference and an aligned checkpoint.

    In float64, where it does not matter to a draw what it is decoded together with. Every fifth token ends a turn, so
    that completions have different lengths.
    """

    def make(**config):
        paths = []
        for seed, name in ((1, "reference"), (2, "aligned")):
            paths.append(make_checkpoint(tmp_path / name, seed=seed, dtype="float64", **config))
            GenerationConfig(eos_token_id=list(range(4, 264, 5)), pad_token_id=1).save_pretrained(paths[-1])
        return paths

    return make


@pytest.fixture
def pair(make_pair):
    """The two with dropout in training."""
    return make_pair(attention_dropout=0.3)


class Noted(TrainerCallback):
    """The student's weights before each optimizer step, and its gradients at the first."""

    def __init__(self):
        self.weights, self.gradients = [], None

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.weights.append(copy.deepcopy(model.state_dict()))

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.gradients is None:
            self.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def train(pair, examples, work, callback=None, student=None, own=trra.on_policy, **changes):
    """A student trained in the folder `work`; `own(student, parameters)` says what it draws."""
    parameters = TrRa(**{**PARAMETERS, **changes})
    student = student or load_model(pair[0], device=CPU)
    with pytest.MonkeyPatch.context() as patch:
        if callback is not None:
            patch.setattr(trainings, "ProgressCallback", lambda advance: callback)
        train_trra(
            student,
            OnlineTeacher(*(load_model(path, device=CPU) for path in pair)),
            1.5,
            examples,
            training=parameters,
            distillation=parameters,
            plausibility=parameters.plausibility,
            vocab_size=264,
            folder=work,
            description="test",
            on_policy=own(student, parameters),
        )
    return student


def naive_draw(model, prompt_ids, uniforms, temperature=0.8, top_p=0.9):
    """Token by token, without a cache or a batch: the smallest set of tokens that has `top_p`, then its inverse CDF."""
    ids, stops = list(prompt_ids), model.generation_config.eos_token_id
    for uniform in uniforms:
        with torch.no_grad():
            p = torch.softmax(model(torch.tensor([ids])).logits[0, -1] / temperature, -1)
        order = p.argsort(descending=True)
        kept = order[: int((p[order].cumsum(0) < top_p).sum()) + 1]
        inside = torch.zeros_like(p)
        inside[kept] = p[kept] / p[kept].sum()
        ids.append(int((inside.cumsum(0) > float(uniform)).nonzero()[0]))
        if ids[-1] in stops:
            break
    return ids[len(prompt_ids) :]


def naive_completions(model, rows, first=0):
    """Of the examples `rows`, the first of which is number `first` of the training."""
    return [
        naive_draw(model, row["prompt_ids"], draw_uniforms(5, str(number), 0, 6))
        for number, row in enumerate(rows, start=first)
    ]


@pytest.mark.parametrize(
    ("divergence", "beta"), [("forward_kl", 0), ("forward_kl", 0.3), ("reverse_kl", 0), ("jsd", 0)]
)
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_step_has_the_loss_and_gradient_of_the_completions_that_the_student_draws(
    tmp_path, make_pair, examples, share, divergence, beta
):
    """The mean over the tokens of the whole step, in micro-batches of 4, 8 and 1: plain autograd over full logits."""
    pair = make_pair()
    reference, aligned = (load_model(path, device=CPU) for path in pair)
    student = copy.deepcopy(reference)
    rows = list(in_training_order(examples, TrRa(**PARAMETERS)))
    for number, completion_ids in enumerate(naive_completions(reference, rows)):
        if share == 1 or number % 2 == 1:
            rows[number]["completion_ids"] = completion_ids
    losses = []
    for row in rows:
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        own = slice(len(row["prompt_ids"]) - 1, -1)
        with torch.no_grad():
            z = [model(ids).logits[0, own] for model in (reference, aligned)]
        losses.append(divergence_between(student(ids).logits[0, own], fuse_logits(*z, 1.5, beta), divergence))
    assert len({len(loss) for loss in losses}) > 2
    loss = torch.cat(losses).mean()
    loss.backward()
    for micro_batch_size in (4, 8, 1):
        noted, work = Noted(), tmp_path / f"by-{micro_batch_size}"
        train(pair, examples, work, noted, on_policy=share, micro_batch_size=micro_batch_size, save_steps=1,
              divergence=divergence, plausibility=beta)  # fmt: skip
        logged = json.loads((work / "trainer" / "checkpoint-1" / "trainer_state.json").read_text())["log_history"][0]
        assert logged["loss"] == pytest.approx(loss.item(), rel=1e-4)
        for name, gradient in student.named_parameters():
            torch.testing.assert_close(noted.gradients[name], gradient.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_each_step_is_drawn_from_the_student_as_it_then_is(tmp_path, pair, examples, adapter):
    """With the random numbers of that step, without dropout and by its own forward; after that it trains on."""
    drawn = {}

    def own(student, parameters):
        what = trra.on_policy(student, parameters)

        def draw(prompts):
            assert not student.training
            assert "forward" not in vars(student)
            completions = what.draw(prompts)
            drawn.update(completions)
            return completions

        return OnPolicy(what.share, draw)

    noted, parameters = Noted(), TrRa(**{**PARAMETERS, "steps": 3, "adapter": adapter})
    student, _ = trra._fresh_student(pair[0], parameters, CPU)
    student.double()
    train(pair, examples, tmp_path / "work", noted, student, own, steps=3, adapter=adapter)
    assert student.training
    rows = list(in_training_order(examples, parameters))
    naive, before = copy.deepcopy(student).eval(), []
    for step, weights in enumerate(noted.weights):
        naive.load_state_dict(weights)
        part = slice(8 * step, 8 * step + 8)
        expected = naive_completions(naive, rows[part], first=8 * step)
        assert [drawn[number] for number in range(24)[part]] == expected
        naive.load_state_dict(noted.weights[0])
        before.append(naive_completions(naive, rows[part], first=8 * step) == expected)
    assert before == [True, False, False]
    assert sorted(drawn) == list(range(24))


def test_a_killed_training_ends_with_the_same_weights(tmp_path, pair, examples, kill):
    """From a checkpoint in the middle of the second pass over the examples; dropout and draws go on as they would."""
    changes = {"steps": 6, "on_policy": 0.6}
    whole = train(pair, examples, tmp_path / "whole", **changes)
    callback, killed = kill
    with pytest.raises(killed):
        train(pair, examples, tmp_path / "cut", callback, **changes)
    shutil.rmtree(tmp_path / "cut" / "trainer" / "checkpoint-4")
    resumed = train(pair, examples, tmp_path / "cut", **changes)
    for (name, ours), theirs in zip(resumed.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    off = train(pair, examples, tmp_path / "off", steps=6, on_policy=0)
    assert not torch.equal(off.lm_head.weight, whole.lm_head.weight)


def test_completions_as_they_were_train_as_off_policy_to_the_bit(tmp_path, pair, examples):
    """The detour over examples changes neither batches, their order, nor the random numbers of dropout."""
    assert trra.on_policy(None, TrRa(**{**PARAMETERS, "on_policy": 0})) is None
    completions = in_training_order(examples, TrRa(**{**PARAMETERS, "steps": 3}))["completion_ids"]
    off, same = (
        train(pair, examples, tmp_path / name, steps=3, own=lambda student, parameters, own=own: own)
        for name, own in (
            ("off", None),
            ("same", OnPolicy(0.7, lambda prompts: {number: completions[number] for number in prompts})),
        )
    )
    for (name, ours), theirs in zip(same.state_dict().items(), off.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_gradient_checkpointing_changes_nothing(tmp_path, pair, examples):
    notes = Noted(), Noted()
    for noted, given in zip(notes, (False, True), strict=True):
        train(pair, examples, tmp_path / str(given), noted, gradient_checkpointing=given)
    for name, gradient in notes[0].gradients.items():
        torch.testing.assert_close(notes[1].gradients[name], gradient)


def test_a_draw_that_fails_leaves_the_students_own_forward(tmp_path, pair, examples):
    def fail(prompts):
        raise KeyboardInterrupt

    student = load_model(pair[0], device=CPU).train()
    with pytest.raises(KeyboardInterrupt):
        train(pair, examples, tmp_path / "work", student=student, own=lambda *_: OnPolicy(1.0, fail))
    assert student.training
    assert student(torch.tensor([[5, 9]])).logits.shape == (1, 2, 264)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.3, 1 / 3, 0.5, 0.99, 1.0])
def test_a_share_is_spread_evenly(share):
    own = [OnPolicy(share, dict).includes(number) for number in range(3000)]
    assert abs(sum(own) - 3000 * share) <= 1
    for start in range(0, 3000, 100):
        assert abs(sum(own[start : start + 100]) - 100 * share) <= 1


def test_a_batch_is_taken_apart_into_its_examples():
    """Also where the padding is a token that completions have."""
    examples = [{"prompt_ids": [1], "completion_ids": [0, 2, 0]}, {"prompt_ids": [0, 0], "completion_ids": [0]}]
    assert examples_of(collate(examples, pad_token_id=0)) == examples


def realign(pair, examples, folder, teachers=TEACHERS, chat_template=None, **changes):
    both = FusedTeachers(*pair, examples, teachers=teachers, teacher_cache=folder / "cache")
    parameters = TrRa(**{**PARAMETERS, **changes})
    student = StudentName("trra-1.5", "trra", 1.5, 0.0)
    return train_student(student, pair[1], both, parameters, folder / "work", chat_template)


def test_a_student_knows_what_it_drew_and_another_share_or_sampling_makes_another(tmp_path, pair, examples):
    sampling, made, weights = PARAMETERS["on_policy_sampling"], [], []
    for changes in ({}, {"on_policy_sampling": {**sampling, "top_p": 0.1}}, {"on_policy": 0.5}, {"on_policy": 0.0}):
        path = realign(pair, examples, tmp_path, **changes)
        made.append(json.loads((path / "realignment.json").read_text())["parameters"])
        weights.append(load_model(path, device=CPU).lm_head.weight)
    assert not any(torch.equal(weights[0], other) for other in weights[1:])
    assert (made[0]["on_policy"], made[0]["on_policy_sampling"]) == (1.0, sampling)
    assert "on_policy_sampling" not in made[-1]


def test_what_cannot_be_trained_on_policy_is_refused_before_anything_is_computed(
    tmp_path, pair, examples, monkeypatch, make_checkpoint, tiny_tokenizer
):
    monkeypatch.setattr(trra, "do_once", lambda *_: pytest.fail("it began"))
    monkeypatch.setattr(fused, "open_cache", lambda *_: None)
    with pytest.raises(InputError, match=r"trra\.on_policy 1 needs the teachers .* Set teachers\.mode=online"):
        realign(pair, examples, tmp_path, teachers=TEACHERS.model_copy(update={"mode": "cached"}))
    with pytest.raises(InputError, match=r"trra\.on_policy_sampling\.max_new_tokens is 600 and the longest prompt has"):
        sampling = {**PARAMETERS["on_policy_sampling"], "max_new_tokens": 600}
        realign(pair, examples, tmp_path, on_policy_sampling=sampling)
    with monkeypatch.context() as patch:
        patch.setattr(trra, "PartialState", lambda: SimpleNamespace(num_processes=2))
        with pytest.raises(InputError, match=r"works in one process, but launcher\.num_processes is 2"):
            realign(pair, examples, tmp_path)
    tiny_tokenizer.chat_template = None
    bare = make_checkpoint(tmp_path / "bare", tokenizer=tiny_tokenizer)
    with pytest.raises(InputError, match="has no chat template, and prompts have to go through one"):
        realign([bare, pair[1]], examples, tmp_path)
    (tmp_path / "given.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(pytest.fail.Exception, match="it began"):
        realign([bare, pair[1]], examples, tmp_path, chat_template=tmp_path / "given.jinja")


def test_shares_outside_0_to_1_are_refused():
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match="on_policy"):
            TrRa(**{**PARAMETERS, "on_policy": share})
    for share in (0.0, 1.1):
        with pytest.raises(ValueError, match=f"must be above 0 and at most 1, not {share}"):
            OnPolicy(share, dict)


def test_the_trainer_refuses_several_processes(tmp_path, pair, examples, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    reference = load_model(pair[0], device=CPU)
    with pytest.raises(InputError, match="an on-policy student is trained in one process"):
        TrRaTrainer(
            model=reference,
            teacher=OnlineTeacher(reference, reference),
            alpha=1.0,
            train_dataset=examples,
            on_policy=OnPolicy(1.0, dict),
            args=TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"),
        )
