"""A broken or hostile checkpoint is refused with the name of its file before any model runs, and runs no code."""

import builtins
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from realign_pipes.models.fingerprint import fingerprint_model
from realign_pipes.models.load import check_pair, load_chat_tokenizer, load_model
from realign_pipes.models.trust import CheckpointError, check_checkpoint
from realign_pipes.paper.inra import InRaForCausalLM

CPU = torch.device("cpu")
EVIL = "from pathlib import Path\nPath({!r}).touch()\n"


@pytest.fixture
def good(tmp_path, make_checkpoint) -> Path:
    return make_checkpoint(tmp_path / "good", vocab_padding=3)


@pytest.fixture
def copy(good, tmp_path) -> Path:
    """A copy of it, to be broken."""
    return shutil.copytree(good, tmp_path / "broken")


@pytest.fixture(autouse=True)
def nobody_answers(monkeypatch) -> None:
    """Transformers asks on the terminal whether to trust code; whoever runs this would say yes."""
    monkeypatch.setattr(builtins, "input", lambda *_: "y")


def use(path: Path, other: Path) -> None:
    """All that is done with a checkpoint before it runs."""
    check_pair(path, other)
    load_chat_tokenizer(path)
    fingerprint_model(path)
    load_model(path, device=CPU)


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return load_model(path, device=CPU).state_dict()


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
@given(data=st.data())
def test_broken_json(data, name, good, copy, broken_json, broken_bytes):
    content = (good / name).read_bytes()
    (copy / name).write_bytes(data.draw(broken_json(json.loads(content)) | broken_bytes(content)))
    try:
        use(copy, good)
    except (CheckpointError, FileNotFoundError) as error:
        assert str(copy) in str(error)
    except ValueError as error:  # it can be read, and does not fit the other
        assert str(copy) in str(error) or "chat template" in str(error)
    else:
        assert all(torch.equal(a, b) for a, b in zip(weights_of(copy).values(), weights_of(good).values(), strict=True))


@given(data=st.data())
def test_broken_weights(data, good, copy, broken_bytes):
    content = (good / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    whole_after_it = broken_bytes(content[:header]).map(lambda head: head + content[header:])
    (copy / "model.safetensors").write_bytes(data.draw(whole_after_it | broken_bytes(content)))
    try:
        use(copy, good)
    except CheckpointError as error:
        assert str(copy) in str(error)


@given(data=st.data())
def test_broken_inra_config(data, tmp_path, good, copy, broken_json, broken_bytes):
    written = tmp_path / "inra"
    if not written.exists():
        InRaForCausalLM.from_base(good).save_pretrained(written)
        InRaForCausalLM.from_base(good).inra.save(written)
    content = (written / "inra_config.json").read_bytes()
    broken = data.draw(broken_json(json.loads(content)) | broken_bytes(content))
    (written / "inra_config.json").write_bytes(broken)
    try:
        model = InRaForCausalLM.from_pretrained(written)
        assert 1 <= model.inra.num_adapter_layers <= 2
    except CheckpointError as error:
        assert str(written) in str(error)
    finally:
        (written / "inra_config.json").write_bytes(content)


# -- what was found ---------------------------------------------------------------------------------------------------
def refused(path: Path, other: Path) -> str:
    with pytest.raises((CheckpointError, ValueError, FileNotFoundError)) as refusal:
        use(path, other)
    assert str(path) in str(refusal.value)
    return str(refusal.value)


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"3", b"\xff\xfe", b"[" * 100_000])
def test_files_that_are_no_json_object(copy, good, name, content):
    """JSONDecodeError, TypeError, AttributeError, KeyError, RecursionError and more, before, without a path."""
    (copy / name).write_bytes(content)
    assert "damaged or not supported" in refused(copy, good)


def test_code_that_came_with_a_checkpoint_never_runs(copy, good, tmp_path):
    """Transformers asks on the terminal, if it was not told beforehand."""
    for name in ("evil.py", "custom_generate/generate.py"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text(EVIL.format(str(tmp_path / "executed")))
    use(copy, good)  # an architecture that Transformers knows: what came with it is not needed
    evil = {name: "evil.Evil" for name in ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")}
    change(copy / "config.json", auto_map=evil)
    change(copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    change(copy / "generation_config.json", custom_generate="evil", auto_map=evil)
    use(copy, good)
    change(copy / "config.json", model_type="evil")
    assert "custom code" in refused(copy, good)
    assert not (tmp_path / "executed").exists() and "evil" not in sys.modules


def test_weights_that_are_missing_are_not_made_up(copy, good):
    """Transformers draws them at random, and says so in a table on standard error."""
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 of the weights that its config.json asks for: model.layers.1.mlp.up_proj.weight" in refused(
        copy, good
    )
    shutil.copy(good / "model.safetensors", copy)
    change(copy / "config.json", model_type="bert")
    assert "lacks" in refused(copy, good)


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "../good/model.safetensors", "/etc/passwd", 3, None])
def test_an_index_of_weights_names_safetensors_of_the_folder(copy, good, weights):
    """Others would be unpickled, or read from outside of the folder."""
    (copy / "model.safetensors").rename(copy / "model-00001-of-00001.safetensors")
    torch.save({}, copy / "pytorch_model.bin")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": weights}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"names {str(weights)!r}, which is not a *.safetensors in the folder" in refused(copy, good)


def test_weights_named_in_the_config_are_safetensors(copy, good):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    change(copy / "config.json", transformers_weights="pytorch_model.bin")
    assert "names the weights 'pytorch_model.bin', which are not safetensors" in refused(copy, good)


def test_nothing_but_safetensors_is_loaded(copy, good):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    assert "has no *.safetensors" in refused(copy, good)
    for use_it in (check_checkpoint, fingerprint_model, InRaForCausalLM.from_base, InRaForCausalLM.from_pretrained):
        with pytest.raises(FileNotFoundError, match=r"has no \*.safetensors"):
            use_it(copy)


def test_adapters_are_safetensors_too(copy, good):
    """PEFT takes an adapter_model.bin where there is no other."""
    save_file({}, copy / "other.safetensors")
    torch.save({}, copy / "adapter_model.bin")
    (copy / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(good), "revision": None}))
    with pytest.raises(FileNotFoundError, match=r"is an adapter and has no adapter_model.safetensors"):
        load_model(copy, device=CPU)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, '{"base_model_name_or_path": 3}'])
def test_adapter_configs_that_are_refused(copy, text):
    (copy / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"adapter_config.json (is damaged|does not say what the adapter is for)"):
        load_model(copy, device=CPU)


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("value", ["evil/kernel", {"": "evil/kernel@main:evil"}])
def test_kernels_from_the_hub_are_refused(copy, good, name, value):
    """Compiled code, which Transformers downloads and runs where the package `kernels` is installed."""
    change(copy / "config.json", **{name: value})
    assert f"asks for {name}" in refused(copy, good) or "Class validation" in refused(copy, good)


@pytest.mark.parametrize(
    ("name", "value"), [("num_hidden_layers", 10**9), ("hidden_size", 10**10), ("head_dim", 10**9), ("vocab_size", -5)]
)
def test_sizes_that_the_weights_do_not_have(copy, good, name, value):
    """A billion layers would be built before anyone looked at the weights."""
    change(copy / "config.json", **{name: value, "layer_types": None})
    assert f"config.json has {name} {value}, which does not fit the weights" in refused(copy, good)


@pytest.mark.parametrize("stops", ["x", 10**12, -1, 1.5, True, [3, "x"], {"a": 1}])
def test_stops_that_are_no_tokens(copy, good, stops):
    change(copy / "generation_config.json", eos_token_id=stops)
    assert "is not one of the head's 267 tokens" in refused(copy, good)


def test_no_stops(copy, good):
    change(copy / "generation_config.json", eos_token_id=[])
    assert "names no eos_token_id" in refused(copy, good)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"num_adapter_layers": "1"}', "num_adapter_layers"),
        ('{"num_adapter_layers": 0}', "num_adapter_layers"),
        ('{"num_adapter_layers": 2}', "2"),
        ('{"placement": "left"}', "placement"),
        ('{"evil": 1}', "evil"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_inra_configs_that_are_refused(good, tmp_path, text, where):
    InRaForCausalLM.from_base(good).save_pretrained(tmp_path / "inra")
    (tmp_path / "inra" / "inra_config.json").write_text(text)
    if where == "2":  # layers that there are
        assert InRaForCausalLM.from_pretrained(tmp_path / "inra").inra.num_adapter_layers == 2
        return
    with pytest.raises(CheckpointError, match=f"inra_config.json is damaged: {where}"):
        InRaForCausalLM.from_pretrained(tmp_path / "inra")


@pytest.mark.parametrize("template", [3, ["x"], {"default": 3}, {}])
def test_templates_that_are_no_text(copy, template):
    (copy / "chat_template.jinja").unlink(missing_ok=True)
    change(copy / "tokenizer_config.json", chat_template=template)
    with pytest.raises(ValueError, match=r"chat template|tokenizer.json is damaged"):
        load_chat_tokenizer(copy)
