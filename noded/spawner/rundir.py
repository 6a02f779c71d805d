"""What the spawner does in the run directory: its socket, and removing the node's files at the end.

The socket's inode is remembered: at the end nothing is removed when another spawner has taken the directory
over. Not here: the files' content, which is the daemon's.
"""

from __future__ import annotations

import errno
import os
import socket

BACKLOG = 64
OF_THE_DAEMON = ("control.sock", "node.json")
OURS = ("spawner.log", "start.lock")


class RunDirError(OSError):
    """The run directory cannot be used; the text says why and what to do."""


class RunDir:
    def __init__(self, path: str) -> None:
        self.path = path
        self._socket_path = os.path.join(path, "spawner.sock")
        self._socket_id: tuple[int, int] | None = None
        self._worker_sockets: set[str] = set()

    def listen(self, fd: int | None) -> socket.socket:
        """The listening socket: the given one, or a new one in place of a dead spawner's."""
        listener = socket.socket(fileno=fd) if fd is not None else self._bind()
        listener.set_inheritable(False)
        listener.setblocking(False)
        self._socket_id = self._current_id()
        return listener

    def _bind(self) -> socket.socket:
        self._remove_dead_socket()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        before = os.umask(0o077)
        try:
            listener.bind(self._socket_path)
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            raise RunDirError(
                f"cannot listen on {self._socket_path}: {error}; the run directory must exist, be writable, "
                "and its path be shorter than 90 characters"
            ) from None
        finally:
            os.umask(before)
        return listener

    def _remove_dead_socket(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self._socket_path)
            except OSError as error:
                if error.errno == errno.ECONNREFUSED:
                    os.unlink(self._socket_path)
                if error.errno != errno.EAGAIN:  # a full backlog is somebody alive
                    return
        raise RunDirError(f"another spawner answers on {self._socket_path}: connect to it, or stop that node first")

    def _current_id(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._socket_path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def close_entrance(self) -> bool:
        """Remove what leads clients here. False when the directory belongs to somebody else by now."""
        if self._socket_id is None or self._current_id() != self._socket_id:
            return False
        try:
            self._worker_sockets = {name for name in os.listdir(self._workers()) if name.endswith(".sock")}
        except OSError:
            self._worker_sockets = set()
        for name in ("spawner.sock", *OF_THE_DAEMON):
            _unlink(os.path.join(self.path, name))
        return True

    def remove_worker_sockets(self, wids: set[str]) -> None:
        """Remove the sockets that close_entrance saw and those of `wids`: their workers have ended."""
        for name in self._worker_sockets | {f"{wid}.sock" for wid in wids}:
            _unlink(os.path.join(self._workers(), name))

    def remove_rest(self, everything: bool) -> None:
        """Remove what is left of the directory: for a private node `everything`, else what is certainly ours."""
        if everything:
            for directory, directories, files in os.walk(self.path, topdown=False):
                for name in files:
                    _unlink(os.path.join(directory, name))
                for name in directories:
                    _rmdir(os.path.join(directory, name))
        for name in OURS:
            _unlink(os.path.join(self.path, name))
        for path in (self._workers(), self.path, os.path.dirname(self.path)):
            _rmdir(path)

    def _workers(self) -> str:
        return os.path.join(self.path, "w")


def _rmdir(path: str) -> None:
    """Only when it is empty."""
    try:
        os.rmdir(path)
    except OSError:
        return


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        return
