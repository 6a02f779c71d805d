"""What a driver is shown: repeated lines, the pace, offsets that survive a daemon, levels of components."""

from __future__ import annotations

import io
import logging
import math
import re
import sys
from pathlib import Path

import pytest
from harness.wait import wait_for

from noded.client import output
from noded.client.output import Printer
from noded.client.repeats import WINDOW, Line, Repeats
from noded.logs.daemon import ALL, component_levels, set_level, setup_logging
from noded.node.log_offsets import Offsets
from noded.node.log_pace import Pace, too_far
from noded.wire import messages as m


def line(pid: int, text: str = "the same", ip: str = "") -> Line:
    return Line("f", (ip, pid), False, text)


def test_the_first_is_never_held_back_and_the_others_are_counted() -> None:
    repeats = Repeats()
    assert [repeats.is_repeated(*line(pid), now=10.0) for pid in (1, 2, 3)] == [False, True, True]
    assert repeats.next_end() == 10.0 + WINDOW
    assert repeats.over(10.0 + WINDOW / 2) == []
    assert repeats.over(10.0 + WINDOW) == [(line(3), 2)]
    assert not repeats.is_repeated(*line(2), now=20.0), "a new window begins with a line that is shown"


def test_what_one_worker_repeats_is_shown() -> None:
    repeats = Repeats()
    assert not any(repeats.is_repeated(*line(1), now=10.0) for _ in range(5))
    assert not repeats.is_repeated(*line(1, "another"), now=10.0)
    assert repeats.is_repeated(*line(1, ip="10.0.0.2"), now=10.0), "the same pid on another node is another worker"
    assert repeats.over(math.inf) == [(line(1, ip="10.0.0.2"), 1)]


def test_pace_allows_a_burst_then_the_rate_then_skips() -> None:
    pace = Pace(1000, 2000)
    assert pace.left(10.0) == 2000
    pace.take(2000)
    assert pace.left(10.0) == 0
    assert pace.left(10.5) == 500
    assert too_far(1 << 20, 0) == too_far(4 << 20, 1 << 20) == 0
    assert all(0 < behind - too_far(behind, may) < 1 << 20 for behind, may in ((4 << 20, 0), (64 << 20, 1 << 20)))


def test_offsets_are_there_again_after_a_restart(tmp_path: Path) -> None:
    path = str(tmp_path / "followed")
    names = [f"worker-{number:016x}.{kind}" for number in range(3000) for kind in ("out", "err")]
    first = Offsets(path)
    for at, name in enumerate(names):
        first.put(name, at + 1)
    first.drop(names[0])
    first.close()

    again = Offsets(path)
    kept = [again.get(name) for name in names]
    again.close()
    assert kept[0] == 0 and kept[1:4096] == list(range(2, 4097))
    assert set(kept[4096:]) == {0}, "what found no room is read from its start"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(printer: Printer, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], list[str]]:
    printer.finish()
    out, err = capsys.readouterr()
    return out.splitlines(), err.splitlines()


def test_lines_have_a_prefix_and_those_of_other_nodes_an_address(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer()
    printer.home = "10.0.0.1"
    printer.show(m.LogLines([("f", 7, False, ["one", "two"])], "10.0.0.1", ["w1"]))
    printer.show(m.LogLines([("", 8, True, ["three"])], "10.0.0.2", ["w2"]))
    out, err = printed(printer, capsys)
    assert out == ["(f pid=7) one", "(f pid=7) two"]
    assert err == ["(pid=8, ip=10.0.0.2) three"]


def test_only_a_terminal_has_colours_and_not_with_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    for no_color, coloured in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", no_color)
        monkeypatch.setattr(sys, "stdout", terminal := Terminal())
        printer = Printer()
        printer.show(m.LogLines([("f", 7, False, ["one"])]))
        printer.finish()
        assert terminal.getvalue().endswith(" one\n")
        assert terminal.getvalue().startswith("\x1b[") is coloured


def test_repetitions_come_with_their_count_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = [m.LogLines([("f", pid, False, ["the same"])]) for pid in range(1, 9)]
    for dedup, expected in (("1", 2), ("0", 8)):
        monkeypatch.setenv("NODED_DEDUP_LOGS", dedup)
        printer = Printer()
        for each in message:
            printer.show(each)
        out, _ = printed(printer, capsys)
        assert len(out) == expected
        assert ("[repeated 7x across cluster]" in out[-1]) is (dedup == "1")


def test_too_many_lines_are_counted_with_how_to_read_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "BURST", 100)
    monkeypatch.setattr(output, "LINES_PER_SECOND", 0)
    printer = Printer()
    printer.flag = " --cluster c"
    printer.show(m.LogLines([("f", 7, False, [f"line {number}" for number in range(150)])], "", ["0000aa"]))
    printer.show(m.LogLines([], "", [], [m.Skipped("0000aa", "f", 7, 5000, 50)]))
    out, err = printed(printer, capsys)
    assert out == [f"(f pid=7) line {number}" for number in range(100)]
    lost = " ".join(err)  # told at once or in two parts, as the printing thread comes to it
    assert sum(map(int, re.findall(r"about (\d+) lines", lost))) == 100
    assert "noded logs --worker 0000aa --cluster c" in lost


def test_a_stuck_terminal_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    free = threading.Event()
    lines: list[str] = []

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            free.wait(20)
            lines.extend(text.splitlines())
            return len(text)

    monkeypatch.setattr(sys, "stdout", Stuck())
    monkeypatch.setattr(output, "BURST", 100)
    printer = Printer()
    for number in range(400):
        printer.show(m.LogLines([("f", 7, False, [f"line {number}"])], "", ["w"]))
    assert not lines and printer._queued <= 101, "what waits is bounded"
    free.set()
    printer.finish()
    wait_for(lambda: len(lines) >= 100, lambda: f"only {len(lines)} lines came")
    assert lines[0].endswith("line 0")


def test_levels_of_components(tmp_path: Path) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers = []
    try:
        setup_logging(str(tmp_path / "daemon.log"), "info", "json", stderr=False)
        component = logging.getLogger("noded.test-component")
        component.debug("not yet")
        set_level("test-component", "debug")
        component.debug("now")
        assert component_levels()["noded.test-component"] == "debug" and component_levels()[ALL] == "info"
        set_level("noded.test-component", "default")
        set_level("", "error")
        component.warning("no more")
        text = (tmp_path / "daemon.log").read_text()
        assert '"message":"now"' in text and "not yet" not in text and "no more" not in text
        for wrong in (("nothing", "debug"), ("test-component", "loud"), ("", "default")):
            with pytest.raises(ValueError, match=r"there is no component|is no level"):
                set_level(*wrong)
        setup_logging(str(tmp_path / "daemon.log"), "info", "text", stderr=False)
        assert len(root.handlers) == 1, "a second daemon in this process would say all twice"
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers = before
        root.setLevel(level)
