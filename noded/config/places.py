"""Directories, and the cluster's token.

Durable things are below `home`, what belongs to a running node below `run_base`/<cluster>/<node>. Both follow
from the environment alone, so that a client finds them without the daemon's other settings. The token is a
secret: it is never part of `Config`, an error, or a log line.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from zlib import crc32

from noded.config.errors import ConfigError

MAX_SOCKET_PATH = 107
# The longest name below a node's directory: control.sock is shorter than a worker's socket.
LONGEST_SOCKET = "w/0123456789abcdef.sock"
_TOKEN = re.compile(rb"[!-~]{16,512}")


def home(env: Mapping[str, str]) -> Path:
    """Where durable things are."""
    return Path(env.get("NODED_HOME") or Path(env.get("HOME") or "~").expanduser() / ".noded").absolute()


def run_base(env: Mapping[str, str], cluster: str = "default", node: str = "head") -> Path:
    """The directory above <cluster>/<node>; one in /tmp when a socket's path would be too long."""
    short = Path(f"/tmp/noded-{os.getuid()}")
    if chosen := env.get("NODED_RUN_DIR"):
        base = Path(chosen).absolute()
    elif runtime := env.get("XDG_RUNTIME_DIR"):
        base = Path(runtime).absolute() / "noded"
    else:
        return short
    if has_room(base / cluster / node):
        return base
    # One for each long directory, so that different ones stay apart. No cluster's name has a dot.
    return short / f".{crc32(os.fsencode(base)):08x}"


def has_room(directory: Path) -> bool:
    """Whether the path of a socket in a node's directory is short enough for the kernel."""
    return len(os.fsencode(directory / LONGEST_SOCKET)) <= MAX_SOCKET_PATH


def node_tag(run_dir: str) -> str:
    """What marks the processes of the node with this directory: 16 hexadecimal digits."""
    return blake2b(os.fsencode(run_dir), digest_size=8).hexdigest()


def make_dir(path: Path) -> Path:
    """Make a directory that is ours, with those above it; refuse one that others own or can write to."""
    try:
        for attempt in range(10):
            try:
                for missing in [each for each in (*reversed(path.parents), path) if not each.exists()]:
                    missing.mkdir(mode=0o700, exist_ok=True)
                found = path.stat()
                break
            except FileNotFoundError:  # a node that ends removes the empty directories above its own
                if attempt == 9:
                    raise
    except OSError as error:
        raise ConfigError(
            f"cannot make the directory {path}: {error.strerror}; set NODED_HOME and NODED_RUN_DIR to writable places"
        ) from None
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"{path} belongs to user {found.st_uid}, this is user {os.geteuid()}: "
            "set NODED_HOME and NODED_RUN_DIR to directories of your own"
        )
    if found.st_mode & 0o022:
        raise ConfigError(f"other users can write to {path}: run `chmod go-w {path}`")
    return path


def remove_node_dir(path: Path) -> None:
    """Remove the directory of a node that has ended, with those above it that were made for it and are empty."""
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.parent.rmdir()
        path.parent.parent.rmdir()


def read_token(home: Path, env: Mapping[str, str]) -> bytes | None:
    """NODED_TOKEN, else the file NODED_TOKEN_FILE, else <home>/token; None when there is none of them."""
    if value := env.get("NODED_TOKEN"):
        return _checked(os.fsencode(value), "NODED_TOKEN")
    named = env.get("NODED_TOKEN_FILE")
    path = Path(named) if named else home / "token"
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(4096)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not named:
            return None
        raise ConfigError(f"the token file {path} cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigError(f"the token file {path} is open to other users: run `chmod 600 {path}`")
    return _checked(content, str(path))


def without_secrets(env: Mapping[str, str]) -> dict[str, str]:
    """What a process may inherit that has nothing to do with the token and the head's storage."""
    return {name: value for name, value in env.items() if name != "NODED_TOKEN" and not name.startswith("NODED_REDIS")}


def load_or_create_token(home: Path, env: Mapping[str, str] = os.environ) -> bytes:
    """`read_token`, or a new one: 64 hexadecimal digits in a file that only its owner can read."""
    if found := read_token(home, env):
        return found
    path = home / "token"
    draft = home / f"token.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_private(draft, secrets.token_hex(32).encode() + b"\n")
        try:
            # With all of its content or not at all; when somebody else was faster, theirs counts.
            with suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink()
    except OSError as error:
        raise ConfigError(f"cannot write the token file {path}: {error.strerror}; set NODED_HOME") from None
    return load_or_create_token(home, env)


def _write_private(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)


def _checked(content: bytes, source: str) -> bytes:
    token = content.strip()
    if _TOKEN.fullmatch(token) is None:
        raise ConfigError(
            f"{source} holds no token: one has 16 to 512 visible ASCII characters and no spaces; "
            "`openssl rand -hex 32` makes a good one"
        )
    return token
