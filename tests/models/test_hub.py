"""Checkpoints uploaded to a hub on loopback that speaks the hub's protocol: its branches equal the folders."""

import base64
import json
import re
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub.constants
import pytest
import yaml

from realign_pipes.errors import InputError
from realign_pipes.models.card import write_model_card
from realign_pipes.models.hub import PushError
from realign_pipes.pipelines.push.nodes import push_checkpoints
from realign_pipes.pipelines.push.parameters import Push
from realign_pipes.pipelines.trra.parameters import TrRa

TOKEN = "hf_write"
REPOSITORY = "org/name"
BASE = yaml.safe_load((Path(__file__).parents[2] / "conf/base/parameters_trra.yml").read_text())["trra"]
TRRA = TrRa.model_validate({**BASE, "alphas": [0.5, 2.0], "iteration_alphas": [], "ablation_alphas": []})


class Hub(ThreadingHTTPServer):
    """Repositories by name, each with its branches: path -> bytes. Large files come by the LFS protocol."""

    def __init__(self, refuses: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.refuses = refuses
        self.repositories: dict[str, dict] = {}
        self.private: dict[str, bool] = {}
        self.commits: list[tuple[str, str]] = []
        self.large: dict[str, bytes] = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def answer(self, content=None, status=200) -> None:
        body = json.dumps(content if content is not None else {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_PUT(self) -> None:
        content = self.body()
        assert sha256(content).hexdigest() == self.path.rpartition("/")[2]
        self.server.large[sha256(content).hexdigest()] = content
        self.answer()

    def do_GET(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        tree = re.fullmatch(rf"/api/models/{REPOSITORY}/tree/([\w.-]+)", path)
        if hub.refuses or not tree:  # once it has refused to make a repository, it is asked whether there is one
            self.answer({"error": "no"}, hub.refuses or 404)
            return
        files = hub.repositories[REPOSITORY][tree.group(1)]
        self.answer([{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in files])

    def do_POST(self) -> None:
        hub, content = self.server, self.body()
        path = self.path.partition("?")[0]
        if hub.refuses or self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.answer({"error": "no"}, hub.refuses or 401)
        elif path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked['organization']}/{asked['name']}"
            exists = name in hub.repositories
            hub.repositories.setdefault(name, {"main": {".gitattributes": b""}})
            hub.private.setdefault(name, asked.get("visibility") == "private")
            self.answer({"url": f"{hub.url}/{name}"}, 409 if exists else 200)
        elif path == "/api/validate-yaml":
            assert "pipeline_tag: text-generation" in json.loads(content)["content"]
            self.answer({"errors": [], "warnings": []})
        elif made := re.fullmatch(rf"/api/models/{REPOSITORY}/branch/([\w.-]+)", path):
            branches = hub.repositories[REPOSITORY]
            exists = made.group(1) in branches
            branches.setdefault(made.group(1), dict(branches["main"]))
            self.answer({}, 409 if exists else 200)
        elif re.fullmatch(rf"/api/models/{REPOSITORY}/preupload/[\w.-]+", path):
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(content)["files"]
            ]
            self.answer({"files": files})
        elif path == f"/{REPOSITORY}.git/info/lfs/objects/batch":
            objects = [
                {**one, "actions": {"upload": {"href": f"{hub.url}/large/{one['oid']}"}}}
                for one in json.loads(content)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif made := re.fullmatch(rf"/api/models/{REPOSITORY}/commit/([\w.-]+)", path):
            self.commit(made.group(1), [json.loads(line) for line in content.splitlines()])
        else:
            self.answer({"error": f"unknown to this hub: {path}"}, 404)

    def commit(self, branch: str, lines: list[dict]) -> None:
        hub = self.server
        files = hub.repositories[REPOSITORY][branch]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                hub.commits.append((branch, value["summary"]))
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.large[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        self.answer({"commitUrl": f"{hub.url}/{REPOSITORY}/commit/{'0' * 40}", "commitOid": "0" * 40})


@pytest.fixture
def open_hub(monkeypatch):
    """`open_hub(refuses=None)`: a hub in place of huggingface_hub's, and a token for it in the environment."""
    hubs = []

    def start(refuses=None):
        hubs.append(Hub(refuses))
        Thread(target=hubs[-1].serve_forever, daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hubs[-1].url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        return hubs[-1]

    yield start
    for hub in hubs:
        hub.shutdown()
        hub.server_close()


@pytest.fixture
def checkpoints(make_checkpoint, tmp_path):
    """Those of TrRa and InRa's, as the catalog gives them to the pipeline."""

    def make(name):
        folder = make_checkpoint(tmp_path / name)
        (folder / "curves").mkdir()
        (folder / "curves" / "metrics.json").write_text("{}")
        write_model_card(folder, title=name, introduction="x", tags=["trra"], metadata={"parameters": {}})
        return folder

    return {"0.5/trra-0.5": make("trra-0.5"), "2.0/trra-2": make("trra-2")}, make("inra")


def content(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_each_checkpoint_arrives_whole_in_a_branch_of_its_own(open_hub, checkpoints):
    hub, (students, inra) = open_hub(), checkpoints
    push_checkpoints(Push(to_hub=REPOSITORY, only=None), TRRA, students, inra)
    branches = hub.repositories[REPOSITORY]
    assert branches.keys() == {"main", "trra-0.5", "trra-2", "inra"} and hub.private == {REPOSITORY: True}
    for folder in (*students.values(), inra):
        arrived = content(folder)
        assert branches[folder.name] == {".gitattributes": b"", **arrived}
        assert {"README.md", "realignment.json", "model.safetensors", "curves/metrics.json"} <= arrived.keys()
    assert hub.large  # weights came by the protocol for large files
    assert [branch for branch, _ in hub.commits] == ["trra-0.5", "trra-2", "inra"]


def test_students_go_without_inra_and_those_of_former_parameters_stay(open_hub, checkpoints, tmp_path, caplog):
    hub, (students, _) = open_hub(), checkpoints
    fewer = TRRA.model_copy(update={"alphas": [2.0, 3.0]})
    push_checkpoints(Push(to_hub=REPOSITORY, only=None), fewer, students, tmp_path / "no_inra")
    assert hub.repositories[REPOSITORY].keys() == {"main", "trra-2"}
    assert "not uploaded, as the parameters of trra do not name them: 0.5/trra-0.5" in caplog.text
    for name in ("trra-0.5", "inra"):
        with pytest.raises(InputError, match=rf"push\.only is {name}, but the checkpoints are trra-2"):
            push_checkpoints(Push(to_hub=REPOSITORY, only=name), fewer, students, tmp_path / "no_inra")
    with pytest.raises(InputError, match="there is no checkpoint to upload"):
        push_checkpoints(Push(to_hub=REPOSITORY, only=None), TRRA, {}, tmp_path / "no_inra")


def test_another_push_replaces_the_branch_and_leaves_the_others(open_hub, checkpoints):
    hub, (students, inra) = open_hub(), checkpoints
    push_checkpoints(Push(to_hub=REPOSITORY, only=None), TRRA, students, inra)
    before = {name: dict(files) for name, files in hub.repositories[REPOSITORY].items()}
    (inra / "curves" / "metrics.json").unlink()
    (inra / "new.txt").write_text("new")
    push_checkpoints(Push(to_hub=REPOSITORY, only="inra"), TRRA, students, inra)
    assert hub.repositories[REPOSITORY] == {**before, "inra": {".gitattributes": b"", **content(inra)}}


@pytest.mark.parametrize(
    ("status", "said"), [(401, "does not accept the token"), (403, "may not write there"), (500, "the hub answered: ")]
)
def test_a_refusal_says_why_and_how_to_push_again(status, said, open_hub, checkpoints):
    open_hub(refuses=status)
    students, inra = checkpoints
    before = content(inra)
    with pytest.raises(PushError, match=said) as error:
        push_checkpoints(Push(to_hub=REPOSITORY, only="inra"), TRRA, students, inra)
    again = "kedro run --pipelines push --params push.to_hub=org/name,push.only=inra"
    assert str(error.value).startswith("inra was not uploaded to org/name: ")
    assert f"The checkpoint is still in {inra}; to try again: {again}" in str(error.value)
    assert content(inra) == before


def test_no_token_a_hub_that_is_gone_and_offline_mode_are_said(open_hub, checkpoints, monkeypatch):
    hub, (students, inra) = open_hub(), checkpoints
    push = Push(to_hub=REPOSITORY, only="inra")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(PushError, match=r"there is no token. Log in \(hf auth login\), or set HF_TOKEN"):
        push_checkpoints(push, TRRA, students, inra)
    assert hub.repositories == {}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.shutdown()
    hub.server_close()
    with pytest.raises(PushError, match="the hub cannot be reached"):
        push_checkpoints(push, TRRA, students, inra)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PushError, match=r"the hub cannot be reached: .*HF_HUB_OFFLINE"):
        push_checkpoints(push, TRRA, students, inra)


def test_without_a_repository_or_with_an_unknown_name_nothing_is_uploaded(open_hub, checkpoints):
    hub, (students, inra) = open_hub(), checkpoints
    with pytest.raises(ValueError, match=r"push\.to_hub does not say where"):
        push_checkpoints(Push(to_hub=None, only=None), TRRA, students, inra)
    with pytest.raises(ValueError, match=r"push\.only is trra-3, but the checkpoints are trra-0.5, trra-2, inra"):
        push_checkpoints(Push(to_hub=REPOSITORY, only="trra-3"), TRRA, students, inra)
    with pytest.raises(ValueError, match="pattern"):
        Push(to_hub="name", only=None)
    assert hub.repositories == {}
