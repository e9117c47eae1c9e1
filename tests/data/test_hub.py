"""What is taken for a path, and the hub asked once: by a server that answers and by a port where none does."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from transformers import AutoConfig

from pathmoe.data.hub import go_offline_without_hub, looks_like_path
from pathmoe.data.sources import Source, read_documents


@pytest.mark.parametrize(
    ("name", "is_path"),
    [
        ("./x", True),
        ("../x", True),
        ("/x", True),
        ("~/x", True),
        ("~", True),
        ("runs/path_b4", True),
        ("a/b/c", True),
        ("here/x", True),
        ("here", False),
        ("file/x", False),
        ("allenai/OLMoE-1B-7B-0924", False),
        ("gpt2", False),
        ("runs", False),
    ],
)
def test_paths_are_told_from_names(name: str, is_path: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "file").touch()
    assert looks_like_path(name) == is_path


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (huggingface_hub.constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)


@pytest.fixture
def no_hub(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")


@pytest.fixture
def empty_hub(online: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that answers everything by an error."""
    answers = {"do_HEAD": lambda self: self.send_error(404), "log_message": lambda *_: None}
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (BaseHTTPRequestHandler,), answers)) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()


def test_a_hub_that_answers_is_left_to_be_asked(empty_hub: None) -> None:
    assert go_offline_without_hub()
    assert not huggingface_hub.constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


def test_without_a_hub_its_libraries_do_not_wait_for_it(no_hub: None) -> None:
    started = time.monotonic()
    assert not go_offline_without_hub()
    with pytest.raises(OSError, match="couldn't find them in the cached files"):
        AutoConfig.from_pretrained("nobody/nothing")
    with pytest.raises(ConnectionError):
        datasets.load_dataset("nobody/nothing")
    assert not go_offline_without_hub()
    assert time.monotonic() - started < 10  # retries would take half a minute each


def test_a_data_set_is_neither_there_nor_on_a_hub(no_hub: None) -> None:
    line = r"^data\.source \(nobody/nothing\) must be a file or folder .*, which can't be reached"
    with pytest.raises(ValueError, match=line):
        next(read_documents(Source(source="nobody/nothing")))


def test_a_mistyped_path_of_data_is_no_data_set(no_hub: None) -> None:
    with pytest.raises(ValueError, match=r"^data\.source \(runs/texts\) names no file that is there"):
        next(read_documents(Source(source="runs/texts")))
    assert not huggingface_hub.constants.HF_HUB_OFFLINE  # nobody asked
