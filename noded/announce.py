"""That a node is ready: in the file by which others find it, and to who has started it."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from noded.config import NodeInfo
from noded.node.control import start_time
from noded.parts import Parts
from noded.service import notify_systemd
from noded.version import __version__

log = logging.getLogger("noded.daemon")


def report_ready(parts: Parts) -> None:
    config, address = parts.config, parts.address
    host, _, port = address.rpartition(":")
    NodeInfo(
        cluster=config.cluster,
        node=config.node_name,
        pid=os.getpid(),
        port=int(port),
        host=host,
        node_id=parts.node_id,
        version=__version__,
        private=config.private,
        started=start_time(os.getpid()),
        head=address if config.head else parts.head_address,
        dir=Path(parts.run_dir),
    ).write()
    if config.ready_fd is not None:
        try:
            os.write(
                config.ready_fd,
                json.dumps({"address": address, "pid": os.getpid(), "dir": parts.run_dir}).encode() + b"\n",
            )
            os.close(config.ready_fd)
        except OSError:  # nobody waits for it any more
            pass
    cluster = config.cluster
    role = "head" if config.head else f"node {config.node_name}"
    notify_systemd(f"READY=1\nSTATUS={role} of cluster {cluster} at {address}")
    if config.private or config.ready_fd is not None:
        log.info("noded %s is ready at %s (cluster %s, epoch %s)", __version__, address, cluster, parts.epoch)
    else:
        name, flag = ("", "") if cluster == "default" else (repr(cluster), f" --cluster {cluster}")
        print(f"noded {__version__}: {role} of cluster {cluster} at {address}, pid {os.getpid()}")
        print(f"connect: noded.init({name})   look: noded status{flag}   stop: noded stop{flag}", flush=True)
    if not config.private and not host.startswith(("127.", "[::1]", "localhost")) and not config.tls:
        log.warning(
            "%s can be reached from other hosts: who connects must prove the token, but nothing is encrypted; "
            "--tls-cert, --tls-key and --tls-ca encrypt everything",
            address,
        )
