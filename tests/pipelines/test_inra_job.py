"""Training the adapter: the three losses against plain formulas, and that nothing but the adapter moves."""

import json
from contextlib import nullcontext

import pandas as pd
import pytest
import torch
from datasets import Dataset
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from realign_pipes.datasets.arrow import ArrowDataset
from realign_pipes.errors import InputError
from realign_pipes.models.fingerprint import fingerprint_model
from realign_pipes.models.load import load_model
from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.paper.objective import divergence_between, fuse_logits
from realign_pipes.pipelines.inra import job
from realign_pipes.pipelines.inra.job import TrainAdapter, train_by_trl
from realign_pipes.pipelines.inra.parameters import InRa
from realign_pipes.runtime import training as trainings
from realign_pipes.teachers.parameters import Teachers

CPU = torch.device("cpu")
ONLINE = Teachers(mode="online", dtype="auto", batch_size=4, shard_tokens=12)


DPO = {"beta": 0.3, "loss_type": ["sigmoid"], "loss_weights": None, "steps": None, "learning_rate": None}


def make_parameters(**changes) -> InRa:
    defaults = {
        "num_adapter_layers": 1,
        "init": "identity",
        "placement": "bottom",
        "method": "sft",
        "adapter": "full",
        "lora": {"rank": 2, "alpha": 4},
        "dpo": DPO,
        "trra": {"alpha": 1.5, "divergence": "forward_kl", "temperature": 1.0, "chunk_tokens": 5},
        "plausibility": 0.2,
        "steps": 4,
        "batch_size": 4,
        "micro_batch_size": 2,
        "learning_rate": 1e-2,
        "warmup_ratio": 0.0,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
        "save_steps": 2,
        "seed": 5,
    }
    return InRa.model_validate({**defaults, **changes})


@pytest.fixture
def pairs(tiny_tokenizer) -> Dataset:
    generator = torch.Generator().manual_seed(4)

    def tokens(count):
        return torch.randint(4, len(tiny_tokenizer), (count,), generator=generator).tolist()

    return Dataset.from_list(
        [
            {"id": f"p{i}", "prompt_ids": tokens(2 + i % 2), "chosen_ids": tokens(2 + i % 3),
             "rejected_ids": tokens(5 + i % 2)}
            for i in range(6)
        ]
    )  # fmt: skip


@pytest.fixture
def make(pair, examples, pairs, tmp_path):
    """`make(**parameters)` trains an adapter for the tiny pair of models; its checkpoint."""
    examples.save_to_disk(tmp_path / "examples")
    pairs.save_to_disk(tmp_path / "pairs")

    def make(work="work", chat_template=None, **changes):
        adapter = TrainAdapter(
            parameters=make_parameters(**changes),
            teachers=ONLINE,
            reference=pair[0],
            aligned=pair[1],
            short_solutions=tmp_path / "examples",
            preference_pairs=tmp_path / "pairs",
            calibration_set=tmp_path / "examples",
            teacher_cache=tmp_path / "none",
            chat_template=chat_template,
            work=tmp_path / work,
        )
        return adapter.run().checkpoint

    return make


def parts(path):
    """Weights of an InRa checkpoint: those of the adapter, and those of stream R as the base model names them."""
    model = InRaForCausalLM.from_pretrained(path)
    adapter = [layer.state_dict() for layer in model.adapter_layers]
    return adapter, model.base_model_view().state_dict()


@pytest.mark.parametrize("placement", ["bottom", "top"])
@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("method", ["sft", "dpo", "trra"])
def test_nothing_but_the_adapter_moves(make, pair, method, adapter, placement):
    count = 2 if placement == "top" else 1
    path = make(method=method, adapter=adapter, placement=placement, num_adapter_layers=count)
    adapters, base = parts(path)
    reference = AutoModelForCausalLM.from_pretrained(pair[0]).state_dict()
    assert base.keys() == reference.keys()
    for name, weight in reference.items():
        assert torch.equal(base[name], weight), name
    fresh = InRaForCausalLM.from_base(pair[0], count, placement=placement).adapter_layers
    assert len(adapters) == count
    for trained, layer in zip(adapters, fresh, strict=True):
        moved = {name: trained[name] - start for name, start in layer.state_dict().items()}
        for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
            assert moved[name].abs().max() > 1e-4, name
        if adapter == "lora":
            for name, change in moved.items():
                if change.ndim == 2:
                    assert torch.linalg.matrix_rank(change, atol=1e-6) <= 2, name
                else:
                    assert not change.any(), name
        else:
            assert moved["input_layernorm.weight"].any()


def one_step(folder) -> dict[str, float]:
    """What the trainer logged at its first step."""
    (state,) = folder.glob("trainer/checkpoint-1/trainer_state.json")
    return json.loads(state.read_text())["log_history"][0]


def log_probabilities(model, prompt, completion) -> torch.Tensor:
    """Of each completion token [N], plainly."""
    ids = torch.tensor([prompt + completion])
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion)]


ONE_STEP = {"steps": 1, "save_steps": 1, "init": "random"}


def random_adapter(reference) -> InRaForCausalLM:
    """Far from the base model, so that both streams count in a loss."""
    torch.manual_seed(0)
    return InRaForCausalLM.from_base(reference, init="random")


def test_sft_minimises_the_mean_cross_entropy_of_completion_tokens(pair, examples, tmp_path):
    model = random_adapter(pair[0])
    stock = [log_probabilities(model.expanded, row["prompt_ids"], row["completion_ids"]) for row in examples]
    parameters = make_parameters(**ONE_STEP, batch_size=9, micro_batch_size=3)
    train_by_trl(model, examples, pair[0], parameters, tmp_path / "work")
    assert one_step(tmp_path / "work")["loss"] == pytest.approx(-torch.cat(stock).mean().item(), rel=1e-4)


def test_dpo_compares_stream_a_with_stream_r(pair, pairs, tmp_path):
    model, base = random_adapter(pair[0]), AutoModelForCausalLM.from_pretrained(pair[0])
    margins = []
    for row in pairs:
        chosen, rejected = (
            sum(sign * log_probabilities(one, row["prompt_ids"], row[side]).sum()
                for one, sign in ((model.expanded, 1), (base, -1)))
            for side in ("chosen_ids", "rejected_ids")
        )  # fmt: skip
        margins.append(chosen - rejected)
    expected = -torch.nn.functional.logsigmoid(0.3 * torch.stack(margins)).mean()
    parameters = make_parameters(**ONE_STEP, method="dpo", batch_size=6, micro_batch_size=6)
    train_by_trl(model, pairs, pair[0], parameters, tmp_path / "work")
    assert one_step(tmp_path / "work")["loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_dpo_with_its_term_of_sft(pair, pairs, tmp_path):
    """-log sigmoid(beta x margin) over pairs, and cross-entropy over the chosen tokens, each times its weight."""
    model, base = random_adapter(pair[0]), AutoModelForCausalLM.from_pretrained(pair[0])
    margins, chosen_tokens = [], []
    for row in pairs:
        ratios = []
        for side in ("chosen_ids", "rejected_ids"):
            ours, theirs = (log_probabilities(one, row["prompt_ids"], row[side]) for one in (model.expanded, base))
            ratios.append(ours.sum() - theirs.sum())
            if side == "chosen_ids":
                chosen_tokens.append(ours)
        margins.append(ratios[0] - ratios[1])
    preference = torch.log1p(torch.exp(-0.3 * torch.stack(margins))).mean()
    expected = 0.5 * preference - 2 * torch.cat(chosen_tokens).mean()
    dpo = {**DPO, "loss_type": ["sigmoid", "sft"], "loss_weights": [0.5, 2.0]}
    parameters = make_parameters(**ONE_STEP, method="dpo", batch_size=6, micro_batch_size=6, dpo=dpo)
    train_by_trl(model, pairs, pair[0], parameters, tmp_path / "work")
    assert one_step(tmp_path / "work")["loss"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_sft_and_then_dpo(make, monkeypatch, tmp_path, kill, adapter):
    """The DPO begins where the SFT ended, with its own steps and rate; killed in either, it ends with the same."""
    options = {"method": "sft_dpo", "adapter": adapter, "steps": 6, "learning_rate": 1e-2}
    dpo = {**DPO, "steps": 8, "learning_rate": 1e-3}
    whole = make(work="whole", **options, dpo=dpo)
    sft = make(work="sft", **{**options, "method": "sft"})
    first = load_file(tmp_path / "whole_sft" / "trained" / "adapter.safetensors")
    if adapter == "full":  # LoRA's matrices are merged in a checkpoint
        theirs = load_model(sft, device=CPU).state_dict()
        assert all(torch.equal(weight, theirs[name]) for name, weight in first.items())
    rates = [
        pd.read_csv(path / "curves/plots/metrics/learning_rate.tsv", sep="\t")["learning_rate"].max()
        for path in (whole, whole / "sft")
    ]
    assert rates == [pytest.approx(1e-3, rel=0.2), pytest.approx(1e-2, rel=0.2)]
    seconds = [
        json.loads((path / "curves/metrics.json").read_text())["train_seconds"] for path in (whole, whole / "sft")
    ]
    assert trainings.training_seconds(whole) == pytest.approx(sum(seconds))

    callback, killed = kill
    for training in ("SFT", "DPO"):
        with monkeypatch.context() as patch:
            patch.setattr(trainings, "ProgressCallback", lambda advance: callback)
            with pytest.raises(killed):
                make(**options, dpo=dpo)
        assert (tmp_path / "work_sft" / "trained").exists() == (training == "DPO")
        if training == "SFT":
            with monkeypatch.context() as patch:  # let the SFT end, and stop before the DPO
                patch.setattr(job, "dpo_trainer", lambda *_, **__: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    make(**options, dpo=dpo)
    with monkeypatch.context() as patch:
        patch.setattr(job, "sft_trainer", lambda *_, **__: 1 / 0)  # it is not trained again
        resumed = make(**options, dpo=dpo)
    theirs = AutoModelForCausalLM.from_pretrained(whole).state_dict()
    for name, weight in AutoModelForCausalLM.from_pretrained(resumed).state_dict().items():
        assert torch.equal(weight, theirs[name]), name
    made = json.loads((resumed / "realignment.json").read_text())
    assert made["method"] == "InRa (sft_dpo)" and made["parameters"]["dpo"]["steps"] == 8
    assert made["sft_data_fingerprint"] != made["dpo_data_fingerprint"]
    plain = AutoModelForCausalLM.from_pretrained(sft).state_dict()
    assert any(not torch.equal(weight, plain[name]) for name, weight in theirs.items())


def test_dpo_without_pairs_is_refused(make, pairs, tmp_path):
    ArrowDataset(filepath=str(tmp_path / "pairs")).save(pairs.select([]))
    for method in ("dpo", "sft_dpo"):
        with pytest.raises(InputError, match=f"preference_pairs is empty, so inra.method cannot be {method}"):
            make(method=method)


@pytest.mark.parametrize(
    ("dpo", "message"),
    [
        ({"loss_type": ["sigmoid", "sigmoid"]}, "names one term twice"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "there are 1 loss_weights for the 2 terms"),
        ({"loss_type": []}, "at least 1"),
        ({"loss_type": ["kto"]}, "'sigmoid' or 'sft'"),
    ],
)
def test_terms_of_the_loss_are_checked(dpo, message):
    with pytest.raises(ValidationError, match=message):
        make_parameters(dpo={**DPO, **dpo})


@pytest.mark.parametrize("name", ["loss_type", "loss_weights", "steps", "learning_rate"])
def test_the_dpos_values_are_in_the_parameters_alone(name):
    with pytest.raises(ValidationError, match=rf"dpo\.{name}\n  Field required"):
        make_parameters(dpo={key: value for key, value in DPO.items() if key != name})


@pytest.mark.parametrize("change", ["renamed", "lost", "more"])
def test_weights_of_other_names_are_refused(pair, change):
    """Loading would leave the adapter as it was, in silence."""
    model, other = random_adapter(pair[0]), random_adapter(pair[0])
    weights = {name: other.expanded.state_dict()[name] + 1 for name in job._trained_names(model)}
    job._load_trained(model, weights)
    assert all(torch.equal(model.expanded.state_dict()[name], weight) for name, weight in weights.items())
    first = next(iter(weights))
    if change != "more":
        weights.pop(first)
    if change != "lost":
        weights[f"base_model.{first}"] = other.expanded.state_dict()[first]
    with pytest.raises(InputError, match=r"the adapter's weights do not fit the model's: "):
        job._load_trained(model, weights)


def test_the_dpo_has_its_own_steps_and_rate_where_they_are_given():
    parameters = make_parameters(method="sft_dpo", steps=4, learning_rate=1e-2, dpo={**DPO, "learning_rate": 5e-7})
    assert (parameters.of_dpo().steps, parameters.of_dpo().learning_rate) == (4, 5e-7)
    assert (parameters.of_sft().steps, parameters.of_sft().learning_rate) == (4, 1e-2)


def test_trra_moves_stream_a_to_the_fused_teacher(make, pair, examples, tiny_tokenizer):
    def distance(model):
        reference, aligned = (load_model(path, device=CPU) for path in pair)
        vocab, total = len(tiny_tokenizer), 0.0
        for row in examples:
            ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
            own = slice(len(row["prompt_ids"]) - 1, -1)
            with torch.no_grad():
                z, *pair_z = (one(ids).logits[0, own, :vocab] for one in (model, reference, aligned))
                total += divergence_between(z, fuse_logits(*pair_z, 1.5), "forward_kl").sum()
        return total

    path = make(method="trra", steps=60)
    assert distance(load_model(path, device=CPU)) < 0.8 * distance(load_model(pair[0], device=CPU))


def test_stream_r_is_the_base_model_without_a_copy_of_its_weights(pair):
    model = random_adapter(pair[0])
    view, base = model.base_model_view(), AutoModelForCausalLM.from_pretrained(pair[0])
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(view(ids).logits, base(ids).logits)
    mine = {parameter.data_ptr() for parameter in model.expanded.parameters()}
    assert {parameter.data_ptr() for parameter in view.parameters()} <= mine


class FirstStep(TrainerCallback):
    """Notes the gradients of the first optimizer step."""

    def __init__(self):
        self.gradients = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", ["sft", "dpo", "trra"])
def test_gradient_checkpointing_changes_no_gradient(make, monkeypatch, method):
    noted = {on: FirstStep() for on in (False, True)}
    for on, callback in noted.items():
        monkeypatch.setattr(trainings, "ProgressCallback", lambda advance, callback=callback: callback)
        make(work=f"{on}", method=method, gradient_checkpointing=on, steps=1, save_steps=1, max_grad_norm=1e9)
    assert noted[False].gradients.keys() == noted[True].gradients.keys()
    for name, gradient in noted[False].gradients.items():
        torch.testing.assert_close(noted[True].gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("method", ["sft", "trra"])
def test_padding_free_batches_change_no_gradient(make, monkeypatch, method):
    noted = {on: FirstStep() for on in (False, True)}
    for on, callback in noted.items():
        monkeypatch.setattr(trainings, "ProgressCallback", lambda advance, callback=callback: callback)
        make(work=f"{on}", method=method, padding_free=on, steps=1, save_steps=1, max_grad_norm=1e9, init="random")
    assert noted[False].gradients.keys() == noted[True].gradients.keys()
    for name, gradient in noted[False].gradients.items():
        torch.testing.assert_close(noted[True].gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("method", ["dpo", "sft_dpo"])
def test_dpo_has_no_padding_free_batches(method):
    with pytest.raises(ValidationError, match=f"padding_free is not available for method {method}"):
        make_parameters(method=method, padding_free=True)


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("method", ["sft", "dpo", "trra"])
def test_the_frozen_weights_may_be_bfloat16_and_are_saved_as_they_were(make, monkeypatch, pair, method, adapter):
    dtypes = []

    class Note(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            dtypes.append({p.dtype: p.requires_grad for p in model.parameters()})

    monkeypatch.setattr(trainings, "ProgressCallback", lambda advance: Note())
    adapters, base = parts(make(method=method, adapter=adapter, frozen_dtype="bfloat16", bf16=True))
    assert dtypes == [{torch.bfloat16: False, torch.float32: True}] * 4
    for name, weight in AutoModelForCausalLM.from_pretrained(pair[0]).state_dict().items():
        assert torch.equal(base[name], weight), name
    assert adapters[0]["self_attn.o_proj.weight"].abs().max() > 1e-4


def test_two_dtypes_without_autocast_are_refused_before_training(make):
    with pytest.raises(InputError, match=r"Set inra\.bf16 to true"):
        make(frozen_dtype="bfloat16")


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"frozen_dtype": "bfloat16"}, True),
        ({"dtype": "bfloat16"}, True),
        ({"dtype": "bfloat16", "frozen_dtype": "bfloat16", "adapter": "lora"}, True),  # LoRA's are float32
        ({"dtype": "bfloat16", "frozen_dtype": "bfloat16"}, False),
        ({"dtype": "bfloat16", "adapter": "lora"}, False),
        ({"frozen_dtype": "auto"}, False),  # the checkpoint decides
        ({"frozen_dtype": "bfloat16", "bf16": None}, False),  # the device decides
        ({"frozen_dtype": "bfloat16", "bf16": True}, False),
    ],
)
def test_two_dtypes_that_never_meet_are_refused_with_the_parameters(changes, refused):
    with pytest.raises(ValidationError, match="Set bf16 to true") if refused else nullcontext():
        make_parameters(**{"bf16": False, **changes})


@pytest.mark.parametrize("method", ["sft", "dpo", "trra"])
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_a_state_has_the_trained_weights_alone(make, monkeypatch, tmp_path, kill, method, adapter, caplog):
    callback, killed = kill
    with monkeypatch.context() as patch:
        patch.setattr(trainings, "ProgressCallback", lambda advance: callback)
        with pytest.raises(killed):
            make(method=method, adapter=adapter, steps=6)
    (state,) = (tmp_path / "work" / "trainer").glob("checkpoint-*")
    assert state.name == "checkpoint-4"  # the older one is removed
    saved = load_file(state / "model.safetensors")
    layer = "model.layers.0."
    assert saved and all(name.startswith(layer) for name in saved)
    assert all("lora_" in name for name in saved) == (adapter == "lora")
    make(method=method, adapter=adapter, steps=6)
    assert "missing keys" not in caplog.text


@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_an_interrupted_training_ends_with_the_same_weights(make, monkeypatch, method, adapter, kill):
    whole = make(work="whole", method=method, adapter=adapter, steps=6)

    callback, killed = kill
    with monkeypatch.context() as patch:
        patch.setattr(trainings, "ProgressCallback", lambda advance: callback)
        with pytest.raises(killed):
            make(method=method, adapter=adapter, steps=6)
    resumed = make(method=method, adapter=adapter, steps=6)
    theirs = AutoModelForCausalLM.from_pretrained(whole).state_dict()
    for name, weight in AutoModelForCausalLM.from_pretrained(resumed).state_dict().items():
        assert torch.equal(weight, theirs[name]), name


def test_a_finished_adapter_is_found_again_until_what_it_is_made_from_changes(make, monkeypatch):
    path = make()
    trained = []
    with monkeypatch.context() as patch:

        def train_nothing(model, examples, reference, parameters, folder, *_):
            trained.append(parameters.learning_rate)
            (folder / "curves").mkdir()
            return model.expanded.state_dict()

        patch.setattr(job, "train_by_trl", train_nothing)
        assert make() == path
        make(dpo={**DPO, "beta": 0.9})  # which SFT does not use
        assert not trained
        make(learning_rate=1e-3)
        assert trained == [1e-3]


def test_the_checkpoint_says_what_it_is(make, pair):
    path = make(method="dpo")
    made = json.loads((path / "realignment.json").read_text())
    assert made["method"] == "InRa (dpo)"
    assert made["reference"] == {"name": "reference", "fingerprint": fingerprint_model(pair[0])}
    dpo = {"beta": 0.3, "loss_type": ["sigmoid"], "loss_weights": None, "steps": None, "learning_rate": None}
    assert made["parameters"]["dpo"] == dpo
    card = (path / "README.md").read_text()
    for fact in ("layer adapter of 1 layer at the bottom", fingerprint_model(pair[0]), made["data_fingerprint"]):
        assert fact in card
    assert InRaForCausalLM.from_pretrained(path, base=pair[0]).config.num_hidden_layers == 2


def test_the_checkpoint_has_the_chat_template_that_the_models_were_given(make, tmp_path):
    """Also in place of the reference's own; another template makes another checkpoint."""
    (tmp_path / "given.jinja").write_text("given: {{ messages[0].content }}")
    own = make(steps=1)
    fingerprints = [json.loads((own / "realignment.json").read_text()).get("chat_template")]
    assert AutoTokenizer.from_pretrained(own).chat_template.startswith("{% for")
    for text in ("given: {{ messages[0].content }}", "other: {{ messages[0].content }}"):
        (tmp_path / "given.jinja").write_text(text)
        path = make(steps=1, chat_template=tmp_path / "given.jinja")
        assert AutoTokenizer.from_pretrained(path).chat_template == text
        fingerprints.append(json.loads((path / "realignment.json").read_text())["chat_template"])
    assert fingerprints[0] is None and len(set(fingerprints)) == 3


def test_the_mask_is_the_teachers_where_the_adapter_learns_from_one(make, tmp_path):
    """Elsewhere it only tells how InRa is measured: the same adapter is found again."""
    assert fingerprint_model(make("a", method="trra", plausibility=0.9)) != fingerprint_model(
        make("b", method="trra", plausibility=0.0)
    )
    first = make("sft", plausibility=0.9)
    changed = first.stat().st_mtime_ns
    assert make("sft", plausibility=0.1).stat().st_mtime_ns == changed
    assert "plausibility" not in (first / "realignment.json").read_text()


def test_a_mask_and_reverse_kl_are_refused_where_the_adapter_learns_from_a_teacher():
    reverse = {"alpha": 1.5, "divergence": "reverse_kl", "temperature": 1.0, "chunk_tokens": 5}
    with pytest.raises(ValidationError, match=r"inra\.trra\.divergence is .* inra\.plausibility is 0\.2"):
        make_parameters(method="trra", trra=reverse)
    assert make_parameters(method="sft", trra=reverse).plausibility == 0.2
    assert make_parameters(method="trra", trra=reverse, plausibility=0.0).method == "trra"
