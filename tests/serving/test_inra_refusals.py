"""What InRa is not served with is refused at start, by name."""

import json
import subprocess
from pathlib import Path

import pytest
from transformers import AutoConfig

PROJECT = Path(__file__).parents[2]
PYTHON = PROJECT / ".venv-serve" / "bin" / "python"

SHAPE = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
REFUSED = {
    "plain": ({}, {}, None),
    "runner": ({}, {"VLLM_USE_V2_MODEL_RUNNER": "1"}, "Model Runner V2: set VLLM_USE_V2_MODEL_RUNNER=0"),
    "compile": ({"enforce_eager": False}, {}, "torch.compile and CUDA graphs: add --enforce-eager"),
    "tensor": ({"tensor_parallel_size": 2}, {}, "tensor parallelism: set --tensor-parallel-size 1"),
    "pipeline": ({"pipeline_parallel_size": 2}, {}, "pipeline parallelism: set --pipeline-parallel-size 1"),
    "context": ({"tensor_parallel_size": 2, "decode_context_parallel_size": 2}, {}, "context parallelism"),
    "speculation": (
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}}, {},
        "speculative decoding: leave out --speculative-config",
    ),
    "lora": ({"enable_lora": True}, {}, "LoRA adapters: leave out --enable-lora"),
    "cache": ({"kv_cache_dtype": "fp8"}, {}, "a quantised KV cache: leave out --kv-cache-dtype"),
    "embeds": ({"enable_prompt_embeds": True}, {}, "prompts as embeddings: leave out --enable-prompt-embeds"),
    "transfer": (
        {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}}, {},
        "KV transfer: leave out --kv-transfer-config",
    ),
    "quantised": ({"model": "quantised"}, {}, "quantised weights: use a checkpoint that is not quantised"),
    "sliding": ({"model": "sliding"}, {}, "sliding windows: this model's layers have them"),
    "adapter": ({"model": "no base"}, {}, "has 4 layers, which leaves none beside 4"),
    "damaged": ({"model": "damaged"}, {}, "inra_config.json is damaged"),
}  # fmt: skip


def write(folder, model_type="llama", adapter='{"num_adapter_layers": 1}', **more):
    config = AutoConfig.for_model(model_type, **SHAPE, architectures=["Any"], dtype="float32", **more)
    config.save_pretrained(folder)
    (folder / "inra_config.json").write_text(adapter)


@pytest.mark.serve
@pytest.mark.skipif(not PYTHON.exists(), reason="needs vLLM's environment: make serve-setup")
def test_what_is_not_supported_is_refused_by_name(tmp_path):
    write(tmp_path / "plain")
    write(tmp_path / "quantised", quantization_config={"quant_method": "awq", "bits": 4, "group_size": 32,
                                                       "zero_point": True})  # fmt: skip
    write(tmp_path / "sliding", "mistral", sliding_window=16)
    write(tmp_path / "no base", adapter='{"num_adapter_layers": 4}')
    write(tmp_path / "damaged", adapter='{"num_adapter_layers": 1')
    cases = {}
    for name, (given, environment, _) in REFUSED.items():
        model = given.get("model", "plain")
        architecture = "InRaMistralForCausalLM" if model == "sliding" else "InRaLlamaForCausalLM"
        options = {"enforce_eager": True, "skip_tokenizer_init": True, "max_num_batched_tokens": 128}
        options |= {"dtype": "bfloat16" if model == "quantised" else "float32"}
        options |= {**given, "model": str(tmp_path / model), "hf_overrides": {"architectures": [architecture]}}
        cases[name] = {"options": options, "environment": environment}
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    run = subprocess.run(
        [PYTHON, Path(__file__).parent / "refuse_options.py", tmp_path / "cases.json", tmp_path / "answers.json"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-5000:]
    answers = json.loads((tmp_path / "answers.json").read_text())
    wrong = {
        name: answers[name]
        for name, (_, _, message) in REFUSED.items()
        if (answers[name] != "" if message is None else message not in answers[name])
    }
    assert not wrong
