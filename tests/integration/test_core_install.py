"""What `pip install .` gives, in a virtual environment with nothing else.

The examples are those of docs/how_to/as_a_library.md, run as they are printed there.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from realign_pipes.paper import InRaForCausalLM

pytestmark = pytest.mark.full  # installs torch and more; tests/paper/test_as_a_library.py runs without that

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs" / "how_to" / "as_a_library.md").read_text(encoding="utf-8")
EXAMPLES = {
    section.partition("\n")[0]: "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
    for section in PAGE.split("\n## ")[1:]
}
"""The Python of each section, by its heading."""

TORCH_ALONE = """
import re, sys
from importlib.metadata import requires

class Refuse:
    allowed = {"torch", "torchgen", "functorch", "realign_pipes", "mpmath", *sys.stdlib_module_names}
    allowed |= {re.match(r"[\\w-]+", line)[0].replace("-", "_") for line in requires("torch")}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.allowed:
            raise ModuleNotFoundError(f"refused: {name}", name=name)

sys.meta_path.insert(0, Refuse())
"""
"""Makes everything unimportable but torch, what torch itself requires, and this project."""

NUMPY_IS_REFUSED = """
try:
    import numpy
except ModuleNotFoundError as error:
    assert "refused" in str(error)
else:
    raise AssertionError("nothing was refused")
"""

INSTALLED = """
from importlib.metadata import distributions
from importlib.resources import files
from realign_pipes.generation.engine import Engine
from realign_pipes.generation.graded import sample_and_grade
from realign_pipes.generation.transformers_engine import TransformersEngine
from realign_pipes.models.load import load_model
from realign_pipes.teachers.hidden_states import write_cache

assert (files("realign_pipes") / "py.typed").is_file()
"""

SAME_AS_THE_STOCK_MODELS = """
from transformers import AutoModelForCausalLM
for row, folder in ((0, "models/slow"), (2, "models/inra")):  # alpha 0 is the base model, alpha 1 the expanded one
    stock = AutoModelForCausalLM.from_pretrained(folder)
    prompt = {name: rows[row : row + 1] for name, rows in prompts.items()}
    alone = stock.generate(**prompt, max_new_tokens=160, do_sample=False)
    width = alone.shape[1]
    assert completions[row, :width].equal(alone[0]), folder
    assert (completions[row, width:] == tokenizer.pad_token_id).all()
assert not completions[0].equal(completions[2])
"""

NEARER_TO_THE_MIXTURE = """
import torch
from realign_pipes.paper import divergence_between, fuse_logits

ids = torch.tensor([examples[0]["prompt_ids"] + examples[0]["completion_ids"]])
trainer.save_model("models/moved-1.5")
completion = slice(len(examples[0]["prompt_ids"]) - 1, -1)
moved = AutoModelForCausalLM.from_pretrained("models/moved-1.5")
with torch.no_grad():
    z_slow, z_fast, z_moved = (model(ids).logits[0, completion] for model in (slow, fast, moved))
teacher = fuse_logits(z_slow, z_fast, 1.5)
before, after = (divergence_between(z, teacher, "forward_kl").mean() for z in (z_slow, z_moved))
assert 0 < after < before, (before, after)
"""


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """The Python of a virtual environment in which this project was installed without any extra."""
    folder = tmp_path_factory.mktemp("core")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, folder / name)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(PROJECT / "src", folder / "src", ignore=ignored)  # a build leaves files beside its source
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        folder,
        "--constraint",
        PROJECT / "requirements.lock",
    ]
    subprocess.run(install, check=True, env=_environment())
    return python


@pytest.fixture
def run(core, tmp_path, make_checkpoint):
    """`run(source)` runs it with the core's Python in a folder with the checkpoints that the page names."""
    make_checkpoint(tmp_path / "models" / "slow", seed=0)
    make_checkpoint(tmp_path / "models" / "fast", seed=1)
    InRaForCausalLM.from_base(tmp_path / "models" / "slow", init="random").save_pretrained(tmp_path / "models" / "inra")
    for file in (tmp_path / "models" / "slow").glob("*token*"):
        shutil.copy(file, tmp_path / "models" / "inra")
    shutil.copy(tmp_path / "models" / "slow" / "chat_template.jinja", tmp_path / "models" / "inra")

    def run_source(source):
        command = [core, "-c", source]
        done = subprocess.run(command, cwd=tmp_path, env=_environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_source


def _environment():
    """Without the path to this project's source."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**environment, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_the_core_has_nothing_of_the_pipelines(run):
    names = set(run(INSTALLED + "print(*(one.name.lower() for one in distributions()))").split())
    assert {"realign_pipes", "torch", "transformers"} <= names
    assert not names & {"kedro", "kedro-viz", "dvc", "dvclive", "great-expectations", "trl", "plotly", "reasoning-gym"}


def test_inra_generates(run):
    run(EXAMPLES["Generate with InRa"] + SAME_AS_THE_STOCK_MODELS)


def test_trra_trains(run):
    run(EXAMPLES["Train with TrRa"] + NEARER_TO_THE_MIXTURE)


def test_dera_decodes(run):
    run(
        EXAMPLES["Decode with both models"] + "import torch\npair.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4)"
    )


def test_the_equations_need_torch_alone(run):
    run(TORCH_ALONE + EXAMPLES["Use only the equations"] + NUMPY_IS_REFUSED)
