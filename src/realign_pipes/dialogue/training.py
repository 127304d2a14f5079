"""Training the two models of the embedded dialogues: from scratch on chatty replies, and from there on brief ones."""

import random
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from realign_pipes.demo.tokenizer import TURN_CLOSE, byte_tokenizer
from realign_pipes.demo.training import model_config
from realign_pipes.dialogue.dialogues import Message, draw_any, reply
from realign_pipes.dialogue.parameters import DialogueModels, DialogueTraining, Style
from realign_pipes.models.fingerprint import fingerprint_model
from realign_pipes.models.load import default_device, load_model, load_tokenizer, render_chats
from realign_pipes.runtime.sft import Examples, fine_tune
from realign_pipes.runtime.tracking import NOT_TRACKED, Tracking
from realign_pipes.runtime.work import do_once
from realign_pipes.tasks.parameters import ReasoningGymTask
from realign_pipes.tasks.reasoning_gym_task import make_problems
from realign_pipes.tasks.splits import Split

SUMS = ReasoningGymTask(
    kind="reasoning_gym",
    dataset="chain_sum",
    options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
)
"""The plain sums. The tax is measured on the same kind."""
SUMS_SEED, SUMS_APART = 30_000_000, 1_000_000
"""reasoning-gym's problem i of seed s is problem 0 of seed s + i."""
CORPUS = 2_000
"""Dialogues that the tokenizer is made from."""

Chat = tuple[list[Message], str]
"""What was said, and the reply to it."""


def train_reference(parameters: DialogueModels, work: Path, tracking: Tracking = NOT_TRACKED) -> Path:
    """Train the chatty model from scratch; the folder of its checkpoint, inside `work`.

    A finished model with the same parameters is reused; an interrupted training is resumed.
    """
    training = parameters.reference

    def do(folder: Path) -> Callable[[Path], None]:
        chats = make_chats(parameters.styles.reference, training, "training")
        tokenizer = build_tokenizer([*map(as_text, chats[:CORPUS])], parameters.vocabulary)
        torch.manual_seed(training.seed)
        model = Qwen2ForCausalLM(model_config(parameters.architecture, tokenizer))
        examples = encode(tokenizer, chats)
        return fine_tune(model, tokenizer, examples, training, folder, "training the chatty model", tracking=tracking)

    recipe = parameters.model_dump(mode="json", include={"architecture", "vocabulary", "reference"})
    style = parameters.styles.reference.model_dump(mode="json")
    return do_once(work, "checkpoint", {"what": "chatty model", "parameters": recipe, "style": style}, do)


def train_aligned(parameters: DialogueModels, reference: Path, work: Path, tracking: Tracking = NOT_TRACKED) -> Path:
    """Fine-tune the chatty model on brief replies and refusals; the folder of the checkpoint, inside `work`."""
    training, style = parameters.aligned, parameters.styles.aligned

    def do(folder: Path) -> Callable[[Path], None]:
        tokenizer = load_tokenizer(reference)
        examples = encode(tokenizer, make_chats(style, training, "alignment"))
        model = load_model(reference, device=default_device())
        return fine_tune(model, tokenizer, examples, training, folder, "training the brief model", tracking=tracking)

    recipe = {"aligned": training.model_dump(mode="json"), "style": style.model_dump(mode="json")}
    description = {"what": "brief model", "parameters": recipe, "reference": fingerprint_model(reference)}
    return do_once(work, "checkpoint", description, do)


def make_chats(style: Style, training: DialogueTraining, split: Split) -> list[Chat]:
    """A chat of the split for each example of the training; with probability `sums` it is a plain sum.

    Of the others, the share `earlier` is the second dialogue of a conversation.
    """
    draws = random.Random(f"{split}/{training.seed}")
    is_sum = [draws.random() < training.sums for _ in range(training.steps * training.batch_size)]
    seed = SUMS_SEED + SUMS_APART * training.seed
    sums = iter(make_problems(SUMS, sum(is_sum), seed=seed) if any(is_sum) else [])
    chats: list[Chat] = []
    for plain in is_sum:
        if plain:
            problem = next(sums)
            chats.append(([{"role": "user", "content": problem["question"]}], problem["answer"]))
        else:
            dialogue = draw_any(split, draws)
            before = draw_any(split, draws) if draws.random() < training.earlier else None
            said = [] if before is None else before.chat(reply(before, style, draws))
            chats.append(([*said, *dialogue.prompt], reply(dialogue, style, draws)))
    return chats


def encode(tokenizer: PreTrainedTokenizerFast, chats: list[Chat]) -> Examples:
    """Prompt and reply ids, which end with the end of the turn."""
    prompts = render_chats(tokenizer, [prompt for prompt, _ in chats])
    replies = tokenizer([text + TURN_CLOSE for _, text in chats], add_special_tokens=False)["input_ids"]
    return list(zip(prompts, replies, strict=True))


def as_text(chat: Chat) -> str:
    """All that is said in a chat."""
    prompt, text = chat
    return "\n".join([*(message["content"] for message in prompt), text])


def build_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Qwen2's byte-level BPE with merges of its own, which holds any text."""
    tokenizer: PreTrainedTokenizerFast = byte_tokenizer(opened="").train_new_from_iterator(
        [*texts, "user assistant"], vocab_size=vocabulary, show_progress=False
    )
    return tokenizer
