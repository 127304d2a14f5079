"""InRa, inference-time realignment, of "Flexible Realignment of Language Models" (https://arxiv.org/abs/2506.12704), in
vLLM: a plug-in that serves an expanded checkpoint with an alpha for each request.

    realign-pipes serve data/06_models/inra

What alpha, a token budget and plausibility mean is defined in `realign_pipes.paper`; this package has what vLLM needs
to run two streams, and to know which request a token belongs to.
"""

VLLM = "0.32"
"""The minor version of vLLM whose internals `models` and `requests` use."""

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""The stock architectures that can be served. `InRa` in front of the name is what vLLM is asked for."""


def register() -> None:
    """Tell vLLM about the models. vLLM calls it in each of its processes.

    RuntimeError under another minor version of vLLM: the plug-in would fail later, or mix wrongly.
    """
    from vllm import __version__
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from inra_vllm.config import InRaServing

    if not __version__.startswith(f"{VLLM}."):
        raise RuntimeError(
            f"inra-vllm is for vLLM {VLLM}, and this is {__version__}. Uninstall it, or set VLLM_PLUGINS to the "
            "plug-ins that you want."
        )
    for architecture in ARCHITECTURES:
        name = f"InRa{architecture}"
        ModelRegistry.register_model(name, f"inra_vllm.models:{name}")
        MODELS_CONFIG_MAP[name] = InRaServing
