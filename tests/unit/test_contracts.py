"""The three contracts that outlive a version, byte by byte: what is recorded in tests/data is what version N writes.

A change of layout without a new number fails here. With a new number, `python tests/unit/test_contracts.py` records
the new version (it never changes a recorded one); commit that, and take out what is older than the version before.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from noded.node.capacity import KeptGroup
from noded.node.control import ClientRecord
from noded.node.gpu_finder import Found
from noded.node.ledger import LAYOUT_VERSION, OLDEST_LAYOUT, Ledger
from noded.node.space import _REGION
from noded.node.workers import WorkerRecord
from noded.shm import arena
from noded.spawner import core, protocol
from noded.wire import messages as m

DATA = Path(__file__).resolve().parents[1] / "data"
CONTROL = {"to_daemon": m.ToDaemon, "to_client": m.ToClient}
DATA_LINK = {"to_worker": m.ToWorker, "from_worker": m.FromWorker}


def sample(kind: Any, seed: int = 1) -> Any:
    """A value of this type in which every field is set, to something else than its default."""
    info = msgspec.inspect
    if isinstance(kind, info.StructType):
        values = {f.name: sample(f.type, seed + at) for at, f in enumerate(kind.fields)}
        return kind.cls(**values)
    if isinstance(kind, info.IntType):
        return 100 + seed
    if isinstance(kind, info.FloatType):
        return seed + 0.5
    if isinstance(kind, info.BoolType):
        return True
    if isinstance(kind, info.StrType):
        return f"text {seed}"
    if isinstance(kind, info.BytesType):
        return b"bytes %d" % seed
    if isinstance(kind, info.ListType):
        return [sample(kind.item_type, seed)]
    if isinstance(kind, info.DictType):
        return {sample(kind.key_type, seed): sample(kind.value_type, seed + 1)}
    if isinstance(kind, info.TupleType):
        return tuple(sample(each, seed + at) for at, each in enumerate(kind.item_types))
    if isinstance(kind, info.UnionType):
        return sample(next(each for each in kind.types if not isinstance(each, info.NoneType)), seed)
    raise AssertionError(f"a sample of {kind} is to be told here")


def sample_of(cls: type) -> Any:
    return sample(msgspec.inspect.type_info(cls))


def messages(unions: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{direction}/{cls.__name__}": sample_of(cls) for direction, union in unions.items() for cls in union.__args__
    }


def control_bytes() -> dict[str, str]:
    return {name: m.encode(message).hex() for name, message in messages(CONTROL).items()}


def data_bytes() -> dict[str, str]:
    return {name: m.encode(message).hex() for name, message in messages(DATA_LINK).items()}


def spawner_packets() -> dict[str, str]:
    """As the contract's own text has them: who says what, with which fields."""
    found, who = {}, ""
    for line in (protocol.__doc__ or "").splitlines():
        if speaks := re.match(r"(spawner|daemon) -> \w+$", line):
            who = speaks[0]
        elif who and (packet := re.match(r"  (\w+)  ?(.*)$", line)):
            found[f"{who}: {packet[1]}"] = " ".join(packet[2].split())
    return found


def ledger_bytes() -> dict[str, str]:
    """The header, and the first slot of each table with a record of its kind."""
    ledger = Ledger.create(incarnation=bytes(range(16)))
    try:
        ledger.epoch = 7
        client, worker, group, gpus = (
            msgspec.msgpack.encode(sample_of(cls)) for cls in (ClientRecord, WorkerRecord, KeptGroup, Found)
        )
        ledger.clients.put(b"prefix7", client)
        ledger.workers.put(b"0123456789abcdef", worker)
        ledger.regions.put(65536, _REGION.pack(2, b"prefix7", True))
        ledger.node.put(b"gpus", gpus)
        ledger.bundles.put(b"group 16 bytes..", group)
        found, offset = {"header": os.pread(ledger.fd, 40, 0).hex()}, 4096
        for table in ledger._tables:
            found[table.name] = f"{table._slots}: " + os.pread(ledger.fd, table.slot_size, offset).rstrip(b"\0").hex()
            offset += table._slots * table.slot_size
    finally:
        ledger.close()
    fd = arena.create(arena.BLOCK)
    store = arena.Arena(fd, arena.BLOCK)
    try:
        store.begin(0, b"id of 16 bytes..", 5, arena.BLOCK)
        store.seal(0)
        found["object"] = os.pread(fd, 256, 0).rstrip(b"\0").hex()
    finally:
        store.close(unmap=True)
    return found


CONTRACTS: dict[str, tuple[int, int, Any]] = {
    "control": (m.PROTOCOL_VERSION, m.OLDEST_PROTOCOL, control_bytes),
    "data": (m.DATA_VERSION, m.DATA_VERSION, data_bytes),
    "spawner": (protocol.PROTOCOL, protocol.OLDEST, spawner_packets),
    "ledger": (LAYOUT_VERSION, OLDEST_LAYOUT, ledger_bytes),
}


def recorded(contract: str, version: int) -> dict[str, str]:
    path = DATA / f"{contract}-{version}.json"
    assert path.exists(), f"{path} is missing: see above how to record a new version"
    found: dict[str, str] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("contract", CONTRACTS)
def test_what_is_written_is_what_was_recorded(contract: str) -> None:
    version, oldest, written = CONTRACTS[contract]
    assert version - oldest in (0, 1), "a version and the one before: that is what is tested"
    assert written() == recorded(contract, version), f"the {contract} contract has changed: it needs a new number"


def test_a_client_of_the_version_before_is_understood() -> None:
    for name, text in recorded("control", m.OLDEST_PROTOCOL).items():
        if name.startswith("to_daemon/"):
            message = m.decode_to_daemon(bytes.fromhex(text))
            assert type(message).__name__ == name.partition("/")[2]


def test_a_client_of_the_version_before_is_sent_what_it_knows() -> None:
    before = recorded("control", m.OLDEST_PROTOCOL)
    for name, message in messages({"to_client": m.ToClient}).items():
        told = m.for_oldest(m.encode(message)).hex()
        assert told == before.get(name, ""), (
            f"{name} is not what version {m.OLDEST_PROTOCOL} knows: see KNOWN_TO_OLDEST"
        )


def test_the_two_that_never_change() -> None:
    now, before = recorded("control", m.PROTOCOL_VERSION), recorded("control", m.OLDEST_PROTOCOL)
    for name in ("to_daemon/Attach", "to_client/Refused"):
        assert now[name] == before[name]


def test_records_of_the_version_before_are_read() -> None:
    before = recorded("ledger", OLDEST_LAYOUT)
    for table, cls in (("clients", ClientRecord), ("workers", WorkerRecord), ("bundles", KeptGroup), ("node", Found)):
        slot = bytes.fromhex(before[table].partition(": ")[2])
        key_length, length = slot[17], int.from_bytes(slot[18:20], "little")
        payload = slot[20 + key_length : 20 + key_length + length]
        assert isinstance(msgspec.msgpack.decode(payload, type=cls), cls)
    assert {name: text for name, text in before.items() if name in ("regions", "object")} == {
        name: text for name, text in recorded("ledger", LAYOUT_VERSION).items() if name in ("regions", "object")
    }


def test_the_spawner_understands_what_its_contract_says() -> None:
    documented = {name.partition(": ")[2] for name in spawner_packets() if name.startswith("daemon ->")}
    handled = set(re.findall(r'^            "(\w+)": self\._on_', Path(core.__file__).read_text(), re.MULTILINE))
    assert documented == handled | {"hello", "keep"}
    before = recorded("spawner", protocol.OLDEST)
    assert {name: before[name] for name in before if name.startswith("daemon ->")}.keys() <= {
        name for name in spawner_packets() if name.startswith("daemon ->")
    }, "a packet of the version before is gone"


def record() -> None:
    for contract, (version, _, written) in CONTRACTS.items():
        path = DATA / f"{contract}-{version}.json"
        if path.exists():
            print(f"{path} is recorded already")
        else:
            path.write_text(json.dumps(written(), indent=1) + "\n")
            print(f"recorded {path}")


if __name__ == "__main__":
    sys.exit(record())
