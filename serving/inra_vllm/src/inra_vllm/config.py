"""What vLLM's configuration must be for InRa: what is not supported is refused at start, by name."""

from pathlib import Path
from typing import Any

from vllm.config import VllmConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from realign_pipes.paper.expansion import InRaConfig

REQUESTS = "inra_vllm.requests:Requests"
SALTED = "inra_salted"
"""In --additional-config: whether `front` stands before the server, and salts what has one stream in the cache."""


def read_inra_config(model: str) -> InRaConfig:
    """The inra_config.json of the checkpoint that vLLM serves; without one, a single adapter layer at the bottom.

    ValueError for a `model` that is not a folder, and for a damaged file.
    """
    if not Path(model).is_dir():
        raise ValueError(f"InRa is served from a folder, and {model} is not one: download it first.")
    return InRaConfig.load(Path(model))


class InRaServing(VerifyAndUpdateConfig):
    """vLLM calls it with the whole configuration of an InRa model, before anything is loaded."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Refuse what is not supported (ValueError), and have vLLM tell `requests` which request is where."""
        refused = [reason for unsupported, reason in _unsupported(vllm_config) if unsupported]
        if refused:
            raise ValueError("InRa is not served with " + "; nor with ".join(refused))
        model = vllm_config.model_config
        inra = read_inra_config(model.model)
        layers = model.hf_text_config.num_hidden_layers
        if inra.num_adapter_layers >= layers:
            raise ValueError(f"{model.model} has {layers} layers, which leaves none beside {inra.num_adapter_layers}.")
        model.logits_processors = [*(model.logits_processors or []), REQUESTS]


def _unsupported(vllm_config: VllmConfig) -> list[tuple[Any, str]]:
    """Each thing that is not supported: whether this configuration has it, and its name with what to do."""
    model, parallel, text = (
        vllm_config.model_config,
        vllm_config.parallel_config,
        vllm_config.model_config.hf_text_config,
    )
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    return [
        (vllm_config.use_v2_model_runner, "Model Runner V2: set VLLM_USE_V2_MODEL_RUNNER=0"),
        (not model.enforce_eager, "torch.compile and CUDA graphs: add --enforce-eager"),
        (parallel.tensor_parallel_size > 1, "tensor parallelism: set --tensor-parallel-size 1"),
        (parallel.pipeline_parallel_size > 1, "pipeline parallelism: set --pipeline-parallel-size 1"),
        (
            parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1,
            "context parallelism: leave out --decode-context-parallel-size and --prefill-context-parallel-size",
        ),
        (parallel.enable_dbo, "dual batch overlap: leave out --enable-dbo"),
        (vllm_config.speculative_config, "speculative decoding: leave out --speculative-config"),
        (vllm_config.lora_config, "LoRA adapters: leave out --enable-lora"),
        (model.quantization, "quantised weights: use a checkpoint that is not quantised"),
        (vllm_config.cache_config.cache_dtype not in ("auto", str(model.dtype).removeprefix("torch.")),
         "a quantised KV cache: leave out --kv-cache-dtype"),
        (vllm_config.kv_transfer_config, "KV transfer: leave out --kv-transfer-config"),
        (vllm_config.cache_config.kv_sharing_fast_prefill, "fast prefill: leave out --kv-sharing-fast-prefill"),
        (model.enable_prompt_embeds, "prompts as embeddings: leave out --enable-prompt-embeds"),
        (model.runner_type != "generate", "a pooling runner: set --runner generate"),
        (kinds != {"full_attention"} or model.get_sliding_window(), "sliding windows: this model's layers have them"),
    ]  # fmt: skip
