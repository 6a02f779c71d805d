"""A certificate authority for tests, made with the `openssl` command, and what it signs."""

from __future__ import annotations

import subprocess
from pathlib import Path

from noded.wire.tls import TlsFiles


class Authority:
    """Files below `directory`; keys are of the kind that is made quickest."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.cert = directory / f"{name}.pem"
        self._key = directory / f"{name}.key"
        self._make(self.cert, self._key, name, "basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign")

    def node(self, name: str = "node", days: int = 30) -> TlsFiles:
        """A certificate for a node, good for both sides of a connection."""
        cert, key = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        signed = ("-CA", str(self.cert), "-CAkey", str(self._key))
        names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
        self._make(cert, key, name, "extendedKeyUsage=serverAuth,clientAuth", names, more=signed, days=days)
        return TlsFiles(cert, key, self.cert)

    def _make(
        self, cert: Path, key: Path, name: str, *extensions: str, more: tuple[str, ...] = (), days: int = 30
    ) -> None:
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256".split()
        command += ["-subj", f"/CN={name}", "-days", str(days), "-keyout", str(key), "-out", str(cert), *more]
        for extension in extensions:
            command += ["-addext", extension]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
