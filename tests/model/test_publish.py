"""A checkpoint on the hub: what the hub's client sends, to a server on this machine that answers as the hub does."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_cli import ALIGNED, refuse, succeed

import safecircuits as sc


class Hub:
    """What was asked of the server, and whether it takes commits."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []
        self.commits: list[tuple[str, str, dict[str, bytes]]] = []
        self.tokens: set[str | None] = set()
        self.takes = True

    def answer(self, path: str, body: bytes, token: str | None) -> tuple[int, Any]:
        self.tokens.add(token)
        if path == "/api/repos/create":
            self.made.append(json.loads(body))
            return 200, {"url": f"{self.url}/me/tuned"}
        if "/preupload/" in path:
            files = [{"path": one["path"], "uploadMode": "regular"} for one in json.loads(body)["files"]]
            return 200, {"files": [{**one, "shouldIgnore": False, "oid": None} for one in files]}
        if "/commit/" in path:
            if not self.takes:
                return 403, {"error": "this token may not write"}
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines if one["key"] == "file"
            }
            self.commits.append((path, lines[0]["value"]["summary"], files))
            return 200, {"commitUrl": f"{self.url}/me/tuned/commit/{'a' * 40}", "commitOid": "a" * 40}
        return 200, {"id": "me/tuned", "sha": "b" * 40, "siblings": [], "type": "model", "files": []}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, said = found.answer(self.path, body, self.headers.get("Authorization"))
            data = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", found.url)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", found.url)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_environment")
    yield found
    server.shutdown()
    server.server_close()


def test_all_that_was_written_is_one_commit(hub: Hub, make_tiny_model: Any, tmp_path: Path) -> None:
    card = "---\ntags: [safety]\n---\n<!-- written by safecircuits -->\n# tuned\n"
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "private_notes.txt").write_text("mine")
    folder = sc.save_pretrained(
        make_tiny_model("bridge"),
        tmp_path / "tuned",
        card=card,
        push_to_hub=True,
        repo_id="me/tuned",
        private=True,
        token="hf_given",
        commit_message="with layers 3 to 5 frozen",
    )
    [(_, summary, files)] = hub.commits
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    del written["private_notes.txt"]
    assert files == written
    assert files["README.md"].decode() == card
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(files)
    assert summary == "with layers 3 to 5 frozen"
    assert [(one["name"], one.get("private"), one.get("visibility")) for one in hub.made] in (
        [("tuned", True, None)],
        [("tuned", None, "private")],
    )
    assert hub.tokens - {None} == {"Bearer hf_given"}


def test_what_the_hub_does_not_take_is_still_written(hub: Hub, make_tiny_model: Any, tmp_path: Path) -> None:
    hub.takes = False
    with pytest.raises(
        ValueError, match=r"'.*tuned' is written, but the hub did not take it as 'me/tuned': .*hf upload"
    ):
        sc.save_pretrained(make_tiny_model("hooked"), tmp_path / "tuned", push_to_hub=True, repo_id="me/tuned")
    assert (tmp_path / "tuned" / "model.safetensors").is_file()
    assert hub.tokens - {None} == {"Bearer hf_of_the_environment"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"push_to_hub": True}, "push_to_hub needs the id of a repository"),
        ({"push_to_hub": True, "repo_id": "no good/name"}, "repo_id is owner/name of a repository"),
        ({"push_to_hub": True, "repo_id": "me/tuned"}, "nobody is logged in to the hub; run `hf auth login`"),
        ({"repo_id": "me/tuned"}, "is where to push to: pass push_to_hub=True"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_anything_is_written(
    options: dict[str, Any], message: str, tiny_bridge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=message):
        sc.save_pretrained(tiny_bridge, tmp_path / "tuned", **options)
    assert not (tmp_path / "tuned").exists()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"switched off \(HF_HUB_OFFLINE\)"):
        sc.save_pretrained(tiny_bridge, tmp_path / "tuned", push_to_hub=True, repo_id="me/tuned")


def test_the_command_pushes_the_model_with_its_card(hub: Hub, tmp_path: Path) -> None:
    options = ["--data", "organism:new_task", "--n", "4", "--steps", "1", "--batch-size", "2"]
    said = succeed("finetune", *ALIGNED, *options, "--push-to-hub", "me/tuned", "--out", tmp_path / "run")
    [(_, _, files)] = hub.commits
    assert "uploaded to me/tuned" in said.stdout
    assert files["README.md"] == (tmp_path / "run" / "model" / "README.md").read_bytes()
    assert b"What fine-tuning did to safety" in files["README.md"]
    no_model = refuse(
        "finetune", *ALIGNED, *options, "--push-to-hub", "me/x", "--no-save-model", "--out", tmp_path / "b"
    )
    assert "which --no-save-model leaves out" in no_model
    prefix = refuse("finetune", *ALIGNED, *options, "--push-to-hub", "me/x", "--method", "prefix", "--out",
                    tmp_path / "c")  # fmt: skip
    assert "leaves an adapter" in prefix
