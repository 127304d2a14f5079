"""The two models of the embedded dialogues, by trainings of a few steps."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from realign_pipes.dialogue import training
from realign_pipes.dialogue.parameters import DialogueModels
from realign_pipes.models.load import load_tokenizer

RUN = {"steps": 3, "batch_size": 4, "learning_rate": 1e-3, "warmup_ratio": 0.1, "save_steps": 3}
PARAMETERS = DialogueModels.model_validate(
    {
        "styles": {
            "reference": {"extras": 0.75, "short": 0.1, "refuses_harmful": 0.1, "refuses_harmless": 0},
            "aligned": {"extras": 0.3, "short": 0.5, "refuses_harmful": 0.7, "refuses_harmless": 0},
        },
        "sets": {
            "calibration": 4,
            "replies": 4,
            "pairs": 4,
            "questions": 4,
            "requests": 4,
            "conversations": 4,
            "seed": 7,
        },
        "architecture": {"layers": 1, "width": 16, "heads": 2, "kv_heads": 1, "mlp_width": 32},
        "vocabulary": 300,
        "reference": {**RUN, "seed": 1, "sums": 0.5, "earlier": 0.0},
        "aligned": {**RUN, "seed": 3, "sums": 0.0, "earlier": 0.5},
    }
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    reference = training.train_reference(PARAMETERS, work / "reference")
    return reference, training.train_aligned(PARAMETERS, reference, work / "aligned"), work


def test_examples_are_the_chat_as_its_template_writes_it(models):
    tokenizer = load_tokenizer(models[0])
    chats = training.make_chats(PARAMETERS.styles.aligned, PARAMETERS.aligned, "alignment")
    lengths = {len(prompt) for prompt, _ in chats}
    assert lengths <= {1, 3, 5, 7} and max(lengths) > 3, "dialogues of one turn and of two, and two of them"
    for (prompt, text), (prompt_ids, reply_ids) in zip(chats, training.encode(tokenizer, chats), strict=True):
        whole = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": text}], tokenize=False)
        assert tokenizer.decode([*prompt_ids, *reply_ids]) + "\n" == whole
        assert reply_ids[-1] == tokenizer.eos_token_id and tokenizer.eos_token_id not in reply_ids[:-1]


def test_so_many_examples_are_plain_sums():
    recipe = PARAMETERS.reference.model_copy(update={"steps": 500})
    chats = training.make_chats(PARAMETERS.styles.reference, recipe, "training")
    sums = [(prompt, text) for prompt, text in chats if "arithmetic" in prompt[0]["content"]]
    assert len(chats) == 2000 and len(sums) == pytest.approx(1000, abs=90)
    for prompt, text in sums:
        assert eval(prompt[0]["content"].split(":")[1].strip().removesuffix("=")) == int(text)  # noqa: S307
    assert chats == training.make_chats(PARAMETERS.styles.reference, recipe, "training")


def test_the_models_are_ordinary_checkpoints_and_the_aligned_one_moved(models):
    reference, aligned, work = models
    weights = [AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (reference, aligned)]
    config = AutoModelForCausalLM.from_pretrained(aligned).config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (1, 16, 300)
    assert not torch.equal(*(one["model.layers.0.mlp.up_proj.weight"] for one in weights))
    written = (reference / "model.safetensors").stat().st_mtime_ns
    assert training.train_reference(PARAMETERS, work / "reference") == reference
    assert (reference / "model.safetensors").stat().st_mtime_ns == written, "a finished model is reused"


def test_another_style_is_another_model(models):
    chatty = PARAMETERS.styles.reference.model_copy(update={"extras": 0.5})
    styles = PARAMETERS.styles.model_copy(update={"reference": chatty})
    before = (models[0] / "model.safetensors").read_bytes()
    other = training.train_reference(PARAMETERS.model_copy(update={"styles": styles}), models[2] / "reference")
    assert (other / "model.safetensors").read_bytes() != before
