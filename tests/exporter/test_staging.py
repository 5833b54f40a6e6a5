"""Placement of an artifact: killed at any moment, its folder holds the old one or the new one, whole."""

import errno
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from clada.contract.artifact import PENDING_NAME, artifact_files, open_artifact
from clada.errors import CladaError
from clada.exporter import staging
from clada.exporter.folder_lock import LOCK_NAME, locked
from clada.exporter.staging import staged
from clada.runtime import Session
from tests.support.manifests import edit_manifest, vouch_for

NEW_POLICY = "another"


@pytest.fixture(scope="module")
def generations(tiny_artifact, tmp_path_factory) -> tuple[Path, Path]:
    """Folders of two artifacts of one name that differ in every file but the weights, the old one with more files."""
    old, new = (tmp_path_factory.mktemp("generations") / name for name in ("old", "new"))
    for folder in (old, new):
        shutil.copytree(tiny_artifact.parent, folder)
    (old / "chat_template.jinja").write_text("{{ messages[0].content }}")
    vouch_for(old / "chat_template.jinja")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        (new / name).write_text(json.dumps(json.loads((new / name).read_text()) | {"generation": 2}))
        vouch_for(new / name)
    edit_manifest(new, lambda content: content["policy"].update(name=NEW_POLICY))
    return old, new


def put(source: Path, target: Path, *, overwrite: bool = True) -> None:
    """Stage copies of an artifact's files as an export does."""
    with staged(target / "model.onnx", overwrite) as folder:
        for path in source.iterdir():
            shutil.copy(path, folder)


def policy_of(folder: Path) -> str:
    """Which of the artifacts a folder holds, all of it checked; interrupted placements are noted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        artifact = open_artifact(folder / "model.onnx")
        assert artifact.content("config.json") is not None
        has_template = artifact.content("chat_template.jinja") is not None
    assert has_template == (artifact.manifest.policy.name != NEW_POLICY)
    return artifact.manifest.policy.name


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


STEPS = ("rename", "replace", "unlink", "link", "rmdir", "mkdir")


def killed_at(step: int, source: Path, target: Path) -> bool:
    """Put an artifact in place in a process that is killed before the step-th change of a name; whether it was."""
    child = os.fork()
    if child == 0:
        staging._sync = lambda _path: None  # for a loss of power; a killed process loses nothing that it wrote
        left = [step]
        for name in STEPS:
            original = getattr(os, name)

            def counted(*args, original=original, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **kwargs)

            setattr(os, name, counted)
        try:
            put(source, target)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def moments(source: Path, before: Path | None, folder: Path) -> Iterator[int]:
    """A folder as a process leaves it that is killed at each moment, one after the other."""
    for step in range(1000):
        shutil.rmtree(folder, ignore_errors=True)
        if before is not None:
            shutil.copytree(before, folder)
        if not killed_at(step, source, folder):
            return
        yield step


@pytest.mark.fault(
    "files", "killed at every change of a name while an artifact takes its place", now="the old or the new one, whole"
)
def test_killed_at_any_moment_the_old_or_the_new_is_there(generations, tmp_path, record_property):
    old, new = generations
    folder, seen = tmp_path / "out", []
    for _ in moments(new, old, folder):
        seen.append(policy_of(folder))
        # The next export finishes or clears what was left, whatever it is itself refused for.
        with pytest.raises(CladaError, match="exists; pass --overwrite"):
            put(old, folder, overwrite=False)
        assert content(folder) == content(new if seen[-1] == NEW_POLICY else old)
    record_property("cases", len(seen))
    turn = seen.index(NEW_POLICY)
    assert turn > 1
    assert len(seen) - turn > 10
    assert set(seen[:turn]) == {"clada"}
    assert set(seen[turn:]) == {NEW_POLICY}
    assert policy_of(folder) == NEW_POLICY
    assert content(folder) == content(new)


@pytest.mark.fault("files", "killed at every moment of a first export", now="nothing or all of it, and a rerun clears")
def test_killed_first_export_leaves_nothing_or_all(generations, tmp_path, record_property):
    _, new = generations
    folder, whole = tmp_path / "deep" / "out", 0
    for step in moments(new, None, folder):
        try:
            policy_of(folder)
            whole += 1
        except CladaError as error:
            assert not whole, error
            put(new, folder, overwrite=False)
            assert content(folder) == content(new)
        record_property("cases", step + 1)
    assert whole > 5


def test_without_hard_links_files_are_copied(generations, tmp_path, monkeypatch):
    old, new = generations

    def refuse(*_args, **_kwargs):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    shutil.copytree(old, tmp_path / "out")
    put(new, tmp_path / "out")
    assert content(tmp_path / "out") == content(new)


EXPORT = """
import shutil, sys, time
from pathlib import Path
from clada.exporter.staging import staged
from clada.command_line import exit_code

def run():
    with staged(Path(sys.argv[2]) / "model.onnx", True) as folder:
        (folder / "big").write_bytes(bytes(1 << 20))
        print("staged", flush=True)
        time.sleep(float(sys.argv[3]))
        (folder / "big").unlink()
        for path in Path(sys.argv[1]).iterdir():
            shutil.copy(path, folder)

sys.exit(exit_code(run))
"""


def start(source: Path, target: Path, seconds: float) -> "subprocess.Popen[str]":
    """An export in a real process, which has begun to write and takes so long to go on."""
    command = [sys.executable, "-c", EXPORT, source, target, str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "staged\n"
    return process


@pytest.mark.fault(
    "files", "kill -9 of a real export, at random moments", now="old or new, whole, and a rerun clears up"
)
def test_really_killed(generations, tmp_path, record_property):
    old, new = generations
    folder = tmp_path / "out"
    shutil.copytree(old, folder)
    for delay in (0, 0.001, 0.003, 0.01):
        process = start(new, folder, 0)
        time.sleep(delay)
        process.kill()
        process.communicate()
        assert policy_of(folder) in ("clada", NEW_POLICY)
    record_property("cases", 4)
    put(new, folder)
    assert content(folder) == content(new)


@pytest.mark.fault("files", "SIGTERM, SIGHUP and Ctrl-C during an export", now="nothing is left, the old one is whole")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_cleans_up(generations, tmp_path, number):
    old, new = generations
    folder = tmp_path / "out"
    shutil.copytree(old, folder)
    process = start(new, folder, 60)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert content(folder) == content(old)
    assert {path.name for path in folder.iterdir()} == {path.name for path in old.iterdir()}


def test_a_signal_that_is_ignored_stays_ignored(generations, tmp_path):
    """As under nohup: the terminal may close."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with staged(tmp_path / "model.onnx", True) as folder:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            for path in generations[1].iterdir():
                shutil.copy(path, folder)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.fault("files", "two exports to one folder at once", now="the second is refused in one line")
def test_of_two_exports_one_is_refused(generations, tmp_path):
    old, new = generations
    folder = tmp_path / "out"
    process = start(new, folder, 1)
    with pytest.raises(CladaError, match=r"another export is writing to .*out: wait until it is done"):
        put(old, folder)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert content(folder) == content(new)
    # Within a process too, and afterwards the folder is free.
    with locked(folder), pytest.raises(CladaError, match="another export"), locked(folder):
        pass
    put(old, folder)
    assert not (folder / LOCK_NAME).exists()


def test_what_a_live_export_holds_is_not_cleared(generations, tmp_path):
    _, new = generations
    process = start(new, tmp_path, 1)
    held = [path for path in tmp_path.iterdir() if path.is_dir()]
    with pytest.raises(CladaError, match="another export"):
        put(new, tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == held
    assert process.wait(timeout=60) == 0


@pytest.mark.fault("files", "folders that killed exports left", now="the next export to the folder removes them")
def test_leftovers_are_cleared(generations, tmp_path):
    _, new = generations
    keep = [tmp_path / ".clada-photos", tmp_path / ".clada-export-2024", tmp_path / "export"]
    gone = [tmp_path / ".clada-export-0123abcd", tmp_path / ".clada-x_1y2z3w"]
    for path in (*keep, *gone):
        (path / "tokenizer").mkdir(parents=True)
        (path / "tokenizer" / "file").write_text("x")
    outside = tmp_path.with_name(f"{tmp_path.name}-outside")
    outside.mkdir()
    (outside / "file").write_text("x")
    (tmp_path / ".clada-export-aaaaaaaa").symlink_to(outside)
    put(new, tmp_path, overwrite=False)
    assert not any(path.exists() for path in gone)
    assert all((path / "tokenizer" / "file").exists() for path in keep)
    assert (outside / "file").exists()


STRANGERS = {
    "a file of the user's": ["thesis.txt"],
    "an ONNX file of the user's": ["other.onnx", "other.onnx.data"],
    "files above": ["../thesis.txt", "..", "/etc/passwd"],
    "a subfolder": ["sub", "sub/file"],
    "names that are none": ["", ".", "x" * 5000],
}


@pytest.mark.fault("files", "--overwrite where a stranger's manifest lists other files", now="only ours are removed")
@pytest.mark.parametrize("kind", STRANGERS)
@pytest.mark.parametrize("consistent", [False, True], ids=["hashes that do not fit", "hashes that fit"])
def test_overwrite_removes_only_files_of_ours(generations, tmp_path, kind, consistent):
    old, new = generations
    folder = tmp_path / "out"
    shutil.copytree(old, folder)
    for path in (folder / "thesis.txt", folder / "other.onnx", folder / "other.onnx.data", tmp_path / "thesis.txt"):
        path.write_text("mine")
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_text("mine")
    listed = STRANGERS[kind]
    right = hashlib.sha256(b"mine").hexdigest()
    edit_manifest(folder, lambda c: c["files"].update(dict.fromkeys(listed, right if consistent else "0" * 64)))
    put(new, folder)
    mine = {name: value for name, value in content(folder).items() if value == b"mine"}
    names = {"thesis.txt", "other.onnx", "other.onnx.data", "sub/file"}
    if consistent and kind == "an ONNX file of the user's":  # then it is an artifact's, by all that can be known
        names -= {"other.onnx", "other.onnx.data"}
    assert set(mine) == names
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert {name: value for name, value in content(folder).items() if value != b"mine"} == content(new)


def test_overwrite_removes_an_artifact_of_another_name(generations, tmp_path):
    """A folder has one manifest, so one artifact; of the old one only files changed since then stay."""
    old, new = generations
    shutil.copytree(old, tmp_path / "out")
    put(new, tmp_path / "second")
    for name in ("model.onnx", "model.onnx.data", "model.onnxruntime.onnx"):
        (tmp_path / "out" / name).rename(tmp_path / "out" / name.replace("model", "first"))
    edit_manifest(
        tmp_path / "out",
        lambda c: c.update(files={name.replace("model", "first"): digest for name, digest in c["files"].items()}),
    )
    (tmp_path / "out" / "chat_template.jinja").write_text("changed by hand")
    put(new, tmp_path / "out")
    assert content(tmp_path / "out") == content(new) | {"chat_template.jinja": b"changed by hand"}


@pytest.mark.fault("files", "an output name that is a folder", now="refused before anything is changed")
@pytest.mark.parametrize("name", artifact_files(Path("model.onnx")))
def test_a_target_that_is_a_folder_is_refused(generations, tmp_path, name):
    old, new = generations
    folder = tmp_path / "out"
    shutil.copytree(old, folder)
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    before = content(folder)
    with pytest.raises(CladaError, match=f"{name}: it is a folder; remove it"):
        put(new, folder)
    assert content(folder) == before
    assert {path.name for path in folder.iterdir()} == {path.name for path in old.iterdir()} | {name}


def test_a_pending_folder_that_is_damaged_is_replaced_when_asked(generations, tmp_path):
    old, new = generations
    folder = tmp_path / "out"
    shutil.copytree(old, folder)
    shutil.copytree(new, folder / PENDING_NAME)
    (folder / PENDING_NAME / "config.json").write_text("{}")
    with pytest.raises(CladaError, match=r"config\.json does not match its hash"):
        open_artifact(folder / "model.onnx")
    with pytest.raises(CladaError, match="exists; pass --overwrite"):
        put(new, folder, overwrite=False)
    assert (folder / PENDING_NAME).exists()
    put(new, folder)
    assert content(folder) == content(new)


@pytest.mark.fault("files", "an artifact replaced while it is read", now="a reader gets the old or the new one, whole")
def test_readers_never_see_a_half_replaced_folder(generations, tmp_path, monkeypatch):
    """A reader before every change of a name, and one that began before it and goes on after."""
    old, new = generations
    folder = tmp_path / "out"
    shutil.copytree(old, folder)
    seen: list[str] = []
    sessions: list[Session] = []
    for name in ("rename", "replace", "unlink"):
        original = getattr(os, name)

        def watched(*args, original=original, **kwargs):
            if (folder / "model.onnx").exists() and len(seen) < 100:
                seen.append("")
                seen[-1] = policy_of(folder)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    sessions.append(Session(folder / "model.onnx", threads=1))
            return original(*args, **kwargs)

        monkeypatch.setattr(os, name, watched)
    put(new, folder)
    monkeypatch.undo()
    assert set(seen) == {"clada", NEW_POLICY}
    assert seen == sorted(seen, key=lambda policy: policy == NEW_POLICY)
    # A graph is loaded when it is first needed: sessions of the new one go on, those of the old one say what happened.
    newest = next(s for s in sessions if s.manifest.policy.name == NEW_POLICY)
    assert newest.generate("x")[0].tokens
    oldest = sessions[0]
    assert oldest.manifest.policy.name == "clada"


@pytest.mark.fault("files", "modes of an artifact's files", now="as the umask says")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_mode_of_the_umask(generations, tmp_path, umask):
    _, new = generations
    before = os.umask(umask)
    try:
        with staged(tmp_path / "out" / "model.onnx", False) as folder:
            for path in new.iterdir():
                shutil.copy(path, folder)
                (folder / path.name).chmod(0o600)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert modes == {0o666 & ~umask}
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~umask


def test_leftover_names_are_those_that_are_made(generations, tmp_path):
    with staged(tmp_path / "model.onnx", False) as folder:
        assert staging._LEFTOVER.fullmatch(folder.name)
        for path in generations[1].iterdir():
            shutil.copy(path, folder)
