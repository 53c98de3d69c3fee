"""Uploading: a written submission handed to the platform's own client, whose words are read since its exit code lies."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from toolkit.errors import UploadError

TIMEOUT = 1800  # seconds; the client itself gives up much earlier unless it hangs

_SUCCESS = re.compile(r"^Successfully submitted\b.*", re.MULTILINE)
_PROGRESS = re.compile(r"\s*\d+%\||\s*$")
_INSTALL = "Install it where the PATH finds it: uv sync --extra kaggle, or pip install kaggle six."

# what the client may say → what it means, what to do; the first that is found counts
_REASONS: tuple[tuple[str, str, str], ...] = (
    (
        r"kaggle auth login|\b401\b|Unauthorized",
        "Kaggle does not know who you are: no credentials on this machine, or refused ones",
        "Run `kaggle auth login`, or put a token from kaggle.com/settings/api into KAGGLE_API_TOKEN or ~/.kaggle/access_token.",
    ),
    (
        r"(?i)allowance|submission limit|limit (?:was |is )?(?:reached|exceeded)|quota|\b429\b",
        "your submissions for today are used up",
        "The count starts anew at midnight UTC; the file stays where it is until then.",
    ),
    (
        r"(?i)\brules\b|competitions\.participate",
        "you have not joined the competition or not accepted its rules",
        "Accept them at https://www.kaggle.com/competitions/{slug}/rules and run the same command again.",
    ),
    (
        r"\b404\b|Could not find competition",
        "Kaggle has no competition {slug!r} that takes submissions",
        "The name is the last part of the competition's address: kaggle.com/competitions/NAME.",
    ),
    (
        r"Max retries exceeded|Failed to (?:resolve|establish)|timed out|Connection(?: |Error|Reset|Aborted)|Disconnected",
        "Kaggle cannot be reached from here",
        "Check the network and the proxy settings, then run the same command again.",
    ),
    (
        r"Could not submit to competition",
        "the file did not reach Kaggle's storage, and the client does not say why",
        "Run the same command again; if it happens twice, check the file's size and what your network lets through.",
    ),
    (r"\b5\d\d Server Error", "Kaggle is not working right now", "Wait a few minutes and run the same command again."),
    (
        r"\b40[03] Client Error",
        "Kaggle refused without a reason: often rules not accepted, submissions used up, or a competition that is over",
        "See https://www.kaggle.com/competitions/{slug}/submissions, which says more than the client.",
    ),
    (
        r"ModuleNotFoundError|ImportError",
        "the kaggle client is installed but broken",
        "Install what it misses (often: pip install six), or make it a fresh environment.",
    ),
)


def address(asked: str, configured: str) -> str:
    """Where to upload, as `platform:target`: what was asked for, completed by what competition.toml says.

    Raises:
        UploadError: no such platform, or neither of the two says which competition or command.
    """
    platform, _, target = asked.partition(":")
    if platform not in PLATFORMS:
        raise UploadError(f"unknown platform {platform!r}", hint=f"Use one of: {', '.join(PLATFORMS)}.")
    if not target:
        kept, _, target = configured.partition(":")
        if platform == "command" and kept == platform:
            raise UploadError(
                "competition.toml names a command, and commands run only where you type them: the file may be another's",
                hint=f"Type it: {_EXAMPLES[platform]}.",
                code="upload-where",
            )
        if kept != platform or not target:
            example = _EXAMPLES[platform]
            raise UploadError(
                f"{platform} does not say where to",
                hint=f"Write {example}." + (f' Or upload = "{example}" in competition.toml.' if platform == "kaggle" else ""),
                code="upload-where",
            )
    return f"{platform}:{target}"


def recorded(words: Sequence[str]) -> list[str]:
    """A command line fit to be kept: without the user's own upload command, which may hold a token."""
    return [re.sub(r"^(--upload=)?command:.*", r"\1command", word, flags=re.DOTALL) for word in words]


def send(where: str, path: Path, message: str) -> str:
    """Send a file to `platform:target` with a description; what the platform answered, in its own words.

    Raises:
        UploadError: it did not arrive, or nobody confirms that it did; says why and what to do.
    """
    platform, _, target = where.partition(":")
    if platform not in PLATFORMS or not target:
        raise UploadError(f"cannot upload to {where!r}", hint=f"Write it as {' or '.join(_EXAMPLES.values())}.")
    return PLATFORMS[platform](target, path, message)


def kaggle(slug: str, path: Path, message: str) -> str:
    """Submit to a Kaggle competition through its official client, which is run and never imported: that would end the process.

    Raises:
        UploadError: the client is missing, or did not say that the submission was taken.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", slug):
        raise UploadError(
            f"{slug!r} is no name of a Kaggle competition", hint="It is the last part of its address, as in titanic."
        )
    client = shutil.which("kaggle") or shutil.which("kaggle", path=str(Path(sys.executable).parent))
    if client is None:
        raise UploadError("the kaggle client is not installed", hint=_INSTALL)
    done = _run([client, "competitions", "submit", slug, "-f", str(path), f"--message={message}"], path)
    if done.returncode == 0 and _SUCCESS.search(done.stdout):
        return _shown(done.stdout)
    output = f"{done.stdout}\n{done.stderr}"
    why, hint = "the client did not confirm the upload", "Look at your submissions on the site before trying again."
    for pattern, sentence, cure in _REASONS:
        if re.search(pattern, output):
            why, hint = sentence.format(slug=slug), cure.format(slug=slug)
            break
    words = _shown(output).splitlines()[-1:]
    quoted = f" (the client: {words[0][:300]})" if words and "~/.kaggle" not in words[0] else ""
    raise UploadError(f"{path} was not uploaded: {why}{quoted}", hint=hint)


def command(line: str, path: Path, message: str) -> str:
    """Run a command of the user's, without a shell, with {file} and {message} filled in; exit code 0 means that it arrived.

    Raises:
        UploadError: no {file} in it, it cannot be run, or it failed.
    """
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UploadError(
            f"the upload command {line!r} cannot be split into words: {error}", hint="Close its quotes."
        ) from error
    if not any("{file}" in word for word in words[1:]):
        raise UploadError(f"the upload command {line!r} does not say {{file}}", hint=f"For example {_EXAMPLES['command']}")
    filled = [re.sub(r"\{(file|message)\}", lambda field: {"file": str(path), "message": message}[field[1]], w) for w in words]
    done = _run(filled, path)
    if done.returncode:
        last = _shown(f"{done.stdout}\n{done.stderr}").splitlines()[-1:]
        quoted = f" ({last[0][:300]})" if last else ""
        raise UploadError(
            f"{path} was not uploaded: {words[0]} ended with exit code {done.returncode}{quoted}",
            hint="Run the command by hand to see more.",
        )
    return _shown(done.stdout)


def _run(words: Sequence[str], path: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603 - the user's own client, words and no shell
            words,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT,
            check=False,
            env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        )
    except subprocess.TimeoutExpired as error:
        raise UploadError(
            f"{path}: {Path(words[0]).name} gave no answer within {TIMEOUT // 60} minutes",
            hint="It may have arrived all the same: look at your submissions on the site before trying again.",
        ) from error
    except OSError as error:
        raise UploadError(
            f"{words[0]} cannot be run: {error.strerror or error}", hint="Check that it is installed and on the PATH."
        ) from error


def _shown(text: str) -> str:
    """The lines that a person should see: without progress bars and empty lines."""
    return "\n".join(line.strip() for line in text.splitlines() if not _PROGRESS.match(line))


PLATFORMS: dict[str, Callable[[str, Path, str], str]] = {"kaggle": kaggle, "command": command}
_EXAMPLES = {"kaggle": "kaggle:titanic", "command": "command:'send {file} --note {message}'"}
