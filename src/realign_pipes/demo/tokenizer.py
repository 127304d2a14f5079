"""A fast tokenizer of whole numbers, signs and a few words: sums fit in a hundred tokens, one number a token."""

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from realign_pipes.tasks.completion import THINK_CLOSE, THINK_OPEN

PAD, TURN_OPEN, TURN_CLOSE = "<|pad|>", "<|im_start|>", "<|im_end|>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
CHECK, RIGHT, WRONG = "check", "yes", "no"
QUESTION = "State the final answer to the following arithmetic problem:"
"""The fixed sentence of reasoning-gym's chain_sum: one token, so that prompts stay short."""

# As DeepSeek-R1's, the generation prompt opens the thinking, so that a completion starts inside it.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|> {{ message['role'] }} {{ message['content'] }} <|im_end|> "
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant <think>{% endif %}"
)


def build_tokenizer(largest_number: int) -> PreTrainedTokenizerFast:
    """A tokenizer that knows the whole numbers from -largest_number to largest_number, and raises on anything else.

    There is no unknown token on purpose: text that the models cannot read is an error, not a row of blanks.
    """
    words = [PAD, TURN_OPEN, TURN_CLOSE, THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE, QUESTION]
    words += ["user", "assistant", CHECK, RIGHT, WRONG, "+", "-", "="]
    words += [str(number) for number in range(-largest_number, largest_number + 1)]
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.add_special_tokens([PAD, TURN_OPEN, TURN_CLOSE])
    # Found anywhere in text, but not "special": they survive decoding with skip_special_tokens.
    tags = [THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE, QUESTION]
    backend.add_tokens([AddedToken(tag, normalized=False) for tag in tags])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=TURN_CLOSE,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
