"""The commit of a folder: git's own answer, and nothing run that the repository names."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from toolkit.base.provenance import git_commit

WHO = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *WHO, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    (root / "a.txt").write_text("1")
    git(root, "add", "a.txt")
    git(root, "commit", "-qm", "a")
    return root


PLANTED = {
    "fsmonitor": "[core]\nfsmonitor = {script}\n",
    "fsmonitor version 2": "[core]\nfsmonitor = {script}\nfsmonitorHookVersion = 2\n",
    "clean filter": '[filter "x"]\nclean = {script}\nsmudge = {script}\nrequired = true\n',
    "process filter": '[filter "x"]\nprocess = {script}\n',
    "external diff": "[diff]\nexternal = {script}\n",
    "diff driver": '[diff "x"]\ncommand = {script}\ntextconv = {script}\ncachetextconv = true\n',
    "merge driver": '[merge "x"]\ndriver = {script} %O %A %B\n',
    "pager": "[core]\npager = {script}\n[pager]\ndescribe = {script}\ndiff-index = {script}\n[core]\neditor = {script}\n",
    "alias": "[alias]\ndescribe = !{script}\ndiff-index = !{script}\nupdate-index = !{script}\nstatus = !{script}\n",
    "credential helper": "[credential]\nhelper = !{script}\n[core]\naskPass = {script}\nsshCommand = {script}\n",
    "hooks path": "[core]\nhooksPath = {folder}\n",
    "include": "[include]\npath = {included}\n",
    "include by condition": '[includeIf "gitdir:**"]\npath = {included}\n',
    "promisor": '[remote "o"]\nurl = ext::{script}\npromisor = true\n[extensions]\npartialClone = o\n[protocol "ext"]\nallow = always\n',
    "gpg": "[gpg]\nprogram = {script}\n[log]\nshowSignature = true\n",
    "work tree elsewhere": "[core]\nworktree = {folder}\n",
}


@pytest.mark.parametrize("what", PLANTED)
def test_nothing_runs_that_a_repository_names(repository, tmp_path, what, monkeypatch):
    marker, folder = tmp_path / "marker", tmp_path / "planted"
    folder.mkdir()
    script = folder / "run.sh"
    script.write_text(f'#!/bin/sh\necho "$0" >> {marker}\ncat\n')
    included = folder / "more"
    included.write_text(f'[core]\nfsmonitor = {script}\n[filter "x"]\nclean = {script}\n')
    hooks = repository / ".git" / "hooks"
    for name in ("post-index-change", "fsmonitor-watchman", "pre-commit", "post-checkout", "reference-transaction"):
        for place in (hooks, folder):
            (place / name).write_text(script.read_text())
            (place / name).chmod(0o755)
    script.chmod(0o755)
    (repository / ".gitattributes").write_text("*.txt filter=x diff=x merge=x\n")
    with (repository / ".git" / "config").open("a") as file:
        file.write(PLANTED[what].format(script=script, folder=folder, included=included))
    (repository / "a.txt").write_text("2")
    commit = (repository / ".git" / "refs" / "heads" / "main").read_text().strip()
    assert git_commit(repository) == f"{commit}-dirty"
    (repository / "a.txt").write_text("1")
    os.utime(repository / "a.txt", (1, 1))
    assert git_commit(repository) == commit
    assert not marker.exists(), marker.read_text()


def test_a_change_in_the_second_of_the_index_is_one(repository):
    """git compares whole seconds; the same size in the same second is told by the content alone."""
    path, index = repository / "a.txt", repository / ".git" / "index"
    commit = git_commit(repository)
    for _ in range(5):  # git compares ctime as well, which nobody can set: the second must not end in between
        os.utime(path, (1_000_000_000, 1_000_000_000))
        git(repository, "update-index", "--refresh")
        path.write_text("2")
        os.utime(path, (1_000_000_000, 1_000_000_000))
        os.utime(index, (1_000_000_000, 1_000_000_000))
        assert git_commit(repository) == f"{commit}-dirty"
        path.write_text("1")


def test_a_git_that_lies_in_the_folder_is_not_run(repository, tmp_path, monkeypatch):
    own = repository / "git"
    own.write_text(f"#!/bin/sh\ntouch {tmp_path / 'marker'}\n")
    own.chmod(0o755)
    monkeypatch.chdir(repository)
    commit = git(repository, "rev-parse", "HEAD")
    monkeypatch.setenv("PATH", f".{os.pathsep}{os.environ['PATH']}")
    assert git_commit(repository) == commit
    assert not (tmp_path / "marker").exists()


def test_the_callers_environment_leads_nowhere_else(repository, tmp_path, monkeypatch):
    commit = git(repository, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", f"touch {tmp_path / 'marker'}")
    assert git_commit(repository) == commit
    assert not (tmp_path / "marker").exists()


def test_it_agrees_with_git_in_every_kind_of_repository(repository, tmp_path):
    commit = git(repository, "rev-parse", "HEAD")
    (repository / "new").write_text("untracked files do not count")
    (repository / "sub").mkdir()
    assert git_commit(repository / "sub") == commit
    git(repository, "pack-refs", "--all")
    git(repository, "gc", "-q")
    assert git_commit(repository) == commit
    git(repository, "worktree", "add", "-q", "-b", "feature/x", str(tmp_path / "tree"))
    assert git_commit(tmp_path / "tree") == commit
    (tmp_path / "tree" / "a.txt").write_text("other")
    assert (
        git_commit(tmp_path / "tree")
        == f"{commit}-dirty"
        == git(tmp_path / "tree", "describe", "--always", "--dirty", "--abbrev=40")
    )
    git(repository, "checkout", "-q", "--detach")
    assert git_commit(repository) == commit
    git(repository, "rm", "-q", "--cached", "a.txt")
    assert git_commit(repository) == f"{commit}-dirty"
    hashes = tmp_path / "sha256"
    hashes.mkdir()
    git(hashes, "init", "-q", "--object-format=sha256")
    assert git_commit(hashes) is None  # no commit yet
    git(hashes, "commit", "-qm", "empty", "--allow-empty")
    (hashes / "b").write_text("1")
    git(hashes, "add", "b")
    git(hashes, "commit", "-qm", "b")
    assert git_commit(hashes) == git(hashes, "rev-parse", "HEAD")


@pytest.mark.parametrize(
    "head", ["ref: ../../../etc/passwd", "ref: refs/../../secret", "ref: HEAD", "x" * 100, "ref: refs/heads/a\0b", ""]
)
def test_a_head_that_leads_out_is_no_commit(repository, head):
    (repository / ".git" / "HEAD").write_text(head)
    assert git_commit(repository) is None


def test_pipes_and_folders_in_place_of_gits_files_end_at_once(repository):
    (repository / ".git" / "HEAD").unlink()
    os.mkfifo(repository / ".git" / "HEAD")
    assert git_commit(repository) is None
    (repository / ".git" / "HEAD").unlink()
    (repository / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (repository / ".git" / "index").unlink()
    os.mkfifo(repository / ".git" / "index")
    assert (git_commit(repository) or "").endswith("-unchecked")
    (repository / "pipe").mkdir()
    os.mkfifo(repository / "pipe" / ".git")
    assert git_commit(repository / "pipe") is None
