"""Loading and running an artifact reads its files, and does nothing else to a machine: by Python's own audit events."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clada.plugins.onnxruntime import library_path
from tests.support.manifests import vouch_for

# Runs an artifact where everything that Python is asked to do is told; prints what was, of the kinds that matter.
PROGRAM = """
import json, os, sys
from pathlib import Path
import clada.runtime.cli, clada.runtime.session, clada.runtime.chat.template
from clada import GenerationConfig, Session

FILES, CODE = ("os.", "shutil.", "tempfile."), ("ctypes.dlopen", "pickle.", "marshal.load")
OTHERS = ("socket.", "subprocess.", "urllib.")
told = []

def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if isinstance(path, (str, bytes)):
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            told.append(("write" if writes else "read", os.path.realpath(os.fsdecode(path))))
    elif event == "import":
        told.append((event, str(arguments[1] or "")))
    elif event.startswith(FILES + CODE + OTHERS):
        told.append((event, str(arguments[0]) if arguments else ""))

sys.addaudithook(watch)
with Session(sys.argv[1], threads=1) as session:
    ids = session.encode_chat([{"role": "user", "content": "def"}])
    session.generate(ids, GenerationConfig(max_new_tokens=4))
    session.generate(["one", "another"], GenerationConfig(max_new_tokens=4))
    kernels = session.kernels
done = list(told)
# What would be told, were it done.
import socket, subprocess
open(os.devnull, "w").close()
socket.socket().close()
subprocess.run([sys.executable, "-c", ""], check=True)
print(json.dumps([kernels, done, told[len(done) :]]))
"""
HARMLESS = ("os.listdir", "os.scandir", "os.putenv", "os.unsetenv", "os.fork", "os.walk")


@pytest.fixture(scope="module")
def told(tiny_artifact, tmp_path_factory) -> tuple[Path, str, list[list[str]]]:
    """A folder with more in it than an artifact has, the kernels used, and what was done when it was loaded and run."""
    folder = tmp_path_factory.mktemp("loaded") / "artifact"
    shutil.copytree(tiny_artifact.parent, folder)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")
    vouch_for(folder / "chat_template.jinja")
    shutil.copy(library_path(), folder / library_path().name)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(print))
    for name in ("modeling_llama.py", "sitecustomize.py", "custom_ops.py"):
        (folder / name).write_text("raise SystemExit('code of the artifact was run')\n")
    # Isolated: Python itself would import what lies in the folder that it is started in.
    call = [sys.executable, "-I", "-c", PROGRAM, str(folder / tiny_artifact.name)]
    result = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    kernels, events, seen = json.loads(result.stdout.splitlines()[-1])
    assert {"write", "socket.__new__", "subprocess.Popen"} <= {event for event, _ in seen}
    return folder, kernels, events


def test_it_is_loaded_and_run(told):
    folder, kernels, events = told
    assert kernels.startswith("native kernels")
    assert ["read", str(folder / "clada.json")] in events


def test_nothing_is_written_sent_or_started(told):
    _, _, events = told
    harmful = ("write", "socket.", "subprocess.", "urllib.", "tempfile.", "shutil.", "os.")
    assert not [event for event in events if event[0].startswith(harmful) and event[0] not in HARMLESS]


def test_nothing_of_it_is_run_as_code(told):
    folder, _, events = told
    assert not [event for event in events if event[0].startswith("pickle")]
    for event, name in events:
        if event in ("import", "ctypes.dlopen", "marshal.load"):
            assert not name.startswith(str(folder)), (event, name)


def test_of_its_folder_only_what_the_manifest_lists_is_read(told):
    folder, _, events = told
    listed = {*json.loads((folder / "clada.json").read_text())["files"], "clada.json"}
    read = {Path(name).name for event, name in events if event == "read" and Path(name).parent == folder}
    assert "tokenizer.json" in read
    assert read <= listed
