"""Random models in the sizes that the benchmarks name. What they compute means nothing; what it costs does."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

SIZES: dict[str, tuple[type[PreTrainedModel], type, dict[str, Any]]] = {
    # about the demo's
    "demo": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {
            "vocab_size": 383,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    ),
    # a sixth of SmolLM2's parameters, in about its proportions
    "22m": (
        LlamaForCausalLM,
        LlamaConfig,
        {
            "vocab_size": 8192,
            "hidden_size": 384,
            "intermediate_size": 1024,
            "num_hidden_layers": 12,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
        },
    ),
    "135m": (
        LlamaForCausalLM,
        LlamaConfig,
        {
            "vocab_size": 49_152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
        },
    ),
    # Qwen2.5-1.5B's width and vocabulary on two layers, and all of it
    **{
        size: (
            Qwen2ForCausalLM,
            Qwen2Config,
            {
                "vocab_size": 151_936,
                "hidden_size": 1536,
                "intermediate_size": 8960,
                "num_hidden_layers": layers,
                "num_attention_heads": 12,
                "num_key_value_heads": 2,
            },
        )
        for size, layers in (("1.5b-head", 2), ("1.5b", 28))
    },
}


def random_model(size: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of that size with tied embeddings, in eval mode on the CPU."""
    model_class, config_class, shape = SIZES[size]
    torch.manual_seed(seed)
    config = config_class(**shape, tie_word_embeddings=True, max_position_embeddings=4096, pad_token_id=0)
    return model_class(config).to(dtype).eval()


def parameters(model: PreTrainedModel) -> tuple[int, int]:
    """(N, V d): parameters of the body, and of the head, which the embeddings are tied to."""
    head = model.get_output_embeddings().weight.numel()
    return sum(parameter.numel() for parameter in model.parameters()) - head, head
