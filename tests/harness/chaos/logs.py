"""What actors and tasks have noted of themselves, against what their callers were answered. Read at the end of a run.

Pure functions of the files' lines (load.py describes the files); each gives a text for whatever breaks a promise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

Answer = tuple[str, int, int]
"""k, pid, n"""


def check_calls(actor: str, calls: Iterable[str], answers: Iterable[Answer], *, may_repeat: bool) -> list[str]:
    """`may_repeat`: whether a call may be made again by the next instance; by the same one it never may."""
    order: list[int] = []
    done: dict[int, list[str]] = {}
    found = []
    for line in calls:
        pid_text, k = line.split()
        pid = int(pid_text)
        if pid not in done:
            order.append(pid)
        elif order[-1] != pid:
            found.append(f"{actor}: instance {pid} ran call {k} after instance {order[-1]} had begun")
        done.setdefault(pid, []).append(k)
    for pid, of_one in done.items():
        found += [f"{actor}: instance {pid} ran call {k} twice" for k in _repeated(of_one)]
    if not may_repeat:
        found += [f"{actor}: call {k} ran twice" for k in _repeated([k for of_one in done.values() for k in of_one])]
    for k, pid, n in answers:
        ran = done.get(pid, [])
        if not 0 < n <= len(ran) or ran[n - 1] != k:
            what = ran[n - 1] if 0 < n <= len(ran) else "nothing"
            found.append(f"{actor}: call {k} was answered with {n} by instance {pid}, whose {n}th call was {what}")
    return list(dict.fromkeys(found))


def check_once(begun: Iterable[str], answered: Iterable[str]) -> list[str]:
    """Of at-most-once work: nothing began twice, and what was answered began."""
    ids = [line.split()[0] for line in begun]
    known = set(ids)
    return [f"at-most-once task {id_} ran twice" for id_ in _repeated(ids)] + [
        f"at-most-once task {id_} was answered and never ran" for id_ in answered if id_ not in known
    ]


def _repeated(ids: Sequence[str]) -> list[str]:
    return [id_ for id_, count in Counter(ids).items() if count > 1]
