"""Exports to the Hugging Face Hub: the real client against a server of the same interface here."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from exchange_samples import assert_refused, contents

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")
DATA_SET = "/api/datasets/me/birds"


class Hub(ThreadingHTTPServer):
    """Answers what an upload asks, and keeps what was committed; only those in `data` are large."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] | None = None
        self.created: list[dict[str, Any]] = []
        self.large: dict[str, bytes] = {}
        self.is_full = False

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        if path.startswith(DATA_SET) and self.files is None:
            return 404, {"error": "RepoNotFound"}
        routes = {
            "/api/whoami-v2": lambda rest: (200, {"name": "me", "auth": {}}),
            "/api/repos/create": lambda rest: self.create(json.loads(body)),
            f"{DATA_SET}/tree/": lambda rest: self.tree(rest.partition("/")[2]),
            f"{DATA_SET}/preupload/": lambda rest: self.modes(json.loads(body)["files"]),
            f"{DATA_SET}/commit/": lambda rest: self.commit(body),
            DATA_SET: lambda rest: (200, {"id": "me/birds", "sha": "0" * 40, "siblings": []}),
            "/datasets/me/birds.git/info/lfs/objects/batch": lambda rest: self.batch(
                json.loads(body)["objects"]
            ),
            "/datasets/me/birds/resolve/": lambda rest: (200, self.files[rest.partition("/")[2]]),
            "/large/": lambda rest: (200, self.large.update({rest: body})),
        }
        for start, route in routes.items():
            if path.startswith(start):
                return route(path.removeprefix(start))
        return 200, {}

    def create(self, described: dict[str, Any]) -> tuple[int, Any]:
        self.files = {".gitattributes": b""}
        self.created.append(described)
        return 200, {"url": "http://127.0.0.1/datasets/me/birds"}

    def modes(self, offered: list[dict[str, Any]]) -> tuple[int, Any]:
        def mode(path: str) -> dict[str, Any]:
            kind = "lfs" if path.startswith("data/") else "regular"
            return {"path": path, "uploadMode": kind, "shouldIgnore": False}

        return 200, {"files": [mode(file["path"]) for file in offered]}

    def batch(self, objects: list[dict[str, Any]]) -> tuple[int, Any]:
        href = f"http://127.0.0.1:{self.server_port}/large/"
        parts = [{**o, "actions": {"upload": {"href": href + o["oid"]}}} for o in objects]
        return 200, {"transfer": "basic", "objects": parts}

    def tree(self, folder: str) -> tuple[int, Any]:
        names = [name for name in self.files if not folder or name.startswith(f"{folder}/")]
        if folder and not names:
            return 404, {"error": "EntryNotFound"}
        return 200, [
            {"path": name, "type": "file", "oid": "0" * 40, "size": len(self.files[name])}
            for name in names
        ]

    def commit(self, body: bytes) -> tuple[int, Any]:
        if self.is_full:
            return 403, {"error": "Storage limit reached"}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del self.files[value["path"]]
        where = f"http://127.0.0.1/datasets/me/birds/commit/{'0' * 40}"
        return 200, {"commitUrl": where, "commitOid": "0" * 40}


class Handler(BaseHTTPRequestHandler):
    """Hands requests to the `Hub`."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        status, answer = self.server.answer(self.path.partition("?")[0], body)
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", answer["error"])
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    files = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.HfFileSystem.clear_instance_cache()  # one of an earlier test asks its server
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("folder", ["", "/generated/sgd"])
def test_an_export_becomes_one_commit_to_a_new_private_data_set(folder, hub, birds, tmp_path, run):
    run("export", birds, tmp_path / "out")
    assert run("export", birds, f"hf://datasets/me/birds{folder}", "--json")[0] == 0
    (created,) = hub.created
    assert (created["type"], created["visibility"]) == ("dataset", "private")
    inside = f"{folder[1:]}/" if folder else ""
    for path in (tmp_path / "out").rglob("*.*"):
        name = inside + path.relative_to(tmp_path / "out").as_posix()
        assert hub.files.pop(name) == path.read_bytes()
    assert hub.files == {".gitattributes": b""}


def test_a_table_becomes_one_file(hub, birds, run):
    pytest.importorskip("pyarrow")
    url = "hf://datasets/me/birds/x.parquet"
    assert run("export", birds, url, "--format", "parquet", "--json")[0] == 0
    assert hub.files["x.parquet"][:4] == b"PAR1"


def test_an_earlier_export_is_replaced_by_force_and_a_card_is_kept(hub, birds, run):
    url = "hf://datasets/me/birds"
    run("export", birds, url)
    hub.files["README.md"] = b"mine"
    assert_refused(run("export", birds, url), "target must not exist, got hf://datasets/me/birds")
    assert run("export", birds, url, "--force", "--format", "webdataset")[0] == 0
    names = {"shard-000000.tar", "classes.txt", "export.json", "README.md", ".gitattributes"}
    assert hub.files.keys() == names
    assert hub.files["README.md"] == b"mine"


def test_other_files_are_never_replaced(hub, birds, run):
    hub.files = {"weights.bin": b"mine"}
    result = run("export", birds, "hf://datasets/me/birds", "--force")
    assert_refused(result, "target must be new, empty or an earlier export")
    assert hub.files == {"weights.bin": b"mine"}


def test_a_commit_that_is_refused_leaves_no_file(hub, birds, run):
    hub.files, hub.is_full = {}, True
    status, out, err = run("export", birds, "hf://datasets/me/birds", "--json")
    assert (status, out) == (2, "")
    assert "target must be writable with room for all, got hf://datasets/me/birds: " in err
    assert hub.files == {}


def test_without_a_login_nothing_is_asked_for(birds, run, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", refuse_login)
    result = run("export", birds, "hf://datasets/me/birds")
    assert_refused(result, "needs a login that may write: run hf auth login, or set HF_TOKEN")


def refuse_login(self):
    raise huggingface_hub.errors.LocalTokenNotFoundError("no token")


@pytest.mark.parametrize("url", ["hf://me/model", "hf://datasets/birds", "hf://datasets/a/b/../c"])
def test_only_data_sets_are_targets(url, birds, run, hub):
    message = "target must be hf://datasets/USER/NAME[/FOLDER], got hf://"
    assert_refused(run("export", birds, url), message)
    assert hub.created == []


def test_an_exported_folder_is_pushed_by_the_datasets_library(
    hub, birds, tmp_path, run, monkeypatch
):
    datasets = pytest.importorskip("datasets")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", constants.ENDPOINT)
    run("export", birds, tmp_path / "out")
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "hf")
    )
    loaded.push_to_hub("me/birds", private=True)
    (tmp_path / "x.parquet").write_bytes(hub.files["data/train-00000-of-00001.parquet"])
    rows = parquet.read_table(tmp_path / "x.parquet").to_pylist()
    assert len(rows) == 24
    for row in rows:
        (path,) = (tmp_path / "out").rglob(f"{row['key']}.*")
        assert row["image"]["bytes"] == path.read_bytes()


def test_an_export_on_the_hub_is_imported(hub, birds, tmp_path, run):
    run("export", birds, "hf://datasets/me/birds")
    assert run("import", tmp_path / "back", "hf://datasets/me/birds", "--json")[0] == 0
    assert contents(tmp_path / "back") == contents(birds)
