"""The demo's tokenizer: Qwen2's byte-level kind, with a token for each whole number, sign and word of a sum.

It is byte-level, not a plain word list, because Transformers rebuilds the tokenizer of any checkpoint whose model type
is qwen2 as `Qwen2Tokenizer`, from its vocabulary and added tokens, and drops the rest of tokenizer.json. So our words
are added tokens: sums take one token per word, and any other text is encoded as bytes.
"""

from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

PAD, TURN_OPEN, TURN_CLOSE = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
# Words carry the space before them, so that decoding gives the text back.
CHECK, RIGHT, WRONG = " check", " yes", " no"
QUESTION = "State the final answer to the following arithmetic problem:"
"""The fixed sentence of reasoning-gym's chain_sum: one token, so that prompts stay short."""

TURNS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)


def byte_tokenizer(opened: str) -> Qwen2Tokenizer:
    """A token for each byte, and a chat template whose generation prompt has `opened` after the assistant's role."""
    prompt = "{% if add_generation_prompt %}<|im_start|>assistant\n" + opened + "{% endif %}"
    return Qwen2Tokenizer(
        vocab={byte: index for index, byte in enumerate(sorted(ByteLevel.alphabet()))},
        merges=[],
        pad_token=PAD,
        eos_token=TURN_CLOSE,
        additional_special_tokens=[TURN_OPEN],
        padding_side="left",
        chat_template=TURNS + prompt,
    )


def build_tokenizer(largest_number: int) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each whole number from -largest_number to largest_number.

    `<think>`, `<answer>` and their like are not special tokens: decoding with skip_special_tokens keeps them.
    """
    tokenizer = byte_tokenizer(opened=THINK_OPEN)  # as with DeepSeek-R1, a completion starts inside the thinking
    words = [THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE, QUESTION, "user", "assistant"]
    words += [CHECK, RIGHT, WRONG, " +", " -", " ="]
    words += [f" {number}" for number in range(-largest_number, largest_number + 1)]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    return tokenizer
