"""noded as a container's first process, and `--supervise`: it reaps, keeps the daemon running, and ends in order."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from harness.cluster import REPOSITORY, noded_command
from harness.container import Container, available
from harness.drivers import Driver
from harness.processes import all_processes, mentioning
from harness.wait import wait_for

in_a_container = pytest.mark.skipif(bool(available()), reason=available())

# A task leaves an orphan, which ends when it is told to; an actor counts.
SOURCE = """
@noded.remote
class Counter:
    def __init__(self): self.count = 0
    def add(self):
        self.count += 1
        return self.count, os.getpid()

@noded.remote
def leave_an_orphan(gate):
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        grandchild = os.fork()
        if grandchild == 0:
            os.close(write_end)
            with open(gate) as file:
                file.read()
            os._exit(0)
        os.write(write_end, str(grandchild).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(read_end, 16))

counter = Counter.remote()
say("actor", *noded.get(counter.add.remote()))
os.mkfifo(sys.argv[1])
orphan = noded.get(leave_an_orphan.remote(sys.argv[1]))
say("parent", open(f"/proc/{orphan}/stat").read().rpartition(")")[2].split()[1])
open(sys.argv[1], "w").close()
deadline = time.monotonic() + 20
while os.path.exists(f"/proc/{orphan}"):  # a zombie has an entry, too
    assert time.monotonic() < deadline, "nobody has reaped the orphan"
    time.sleep(0.01)
say("reaped")
while hear():
    say("actor", *noded.get(counter.add.remote(), timeout=30))
"""


@pytest.fixture
def places(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    base = tmp_path_factory.mktemp("p")
    return {"NODED_HOME": f"{base}/home", "NODED_RUN_DIR": f"{base}/run", "NODED_NUM_CPUS": "2", "NODED_PORT": "0"}


@pytest.fixture
def head(places: Mapping[str, str]) -> Iterator[Container]:
    with Container([*noded_command(), "--head"], places, cwd=REPOSITORY) as container:
        wait_for(lambda: "connect: " in container.output(), lambda: f"no head: {container.output()}", 20)
        yield container


def daemon_of(container: Container) -> int:
    """Its pid out here: the one whose command is not the spawner's or a template's."""
    found = [each for each in container.processes() if "--supervised" in each.command.split()]
    assert len(found) == 1, found
    return found[0].pid


def nothing_of(places: Mapping[str, str]) -> None:
    left = mentioning(all_processes().values(), [places["NODED_RUN_DIR"]])
    assert not left, left


@in_a_container
def test_it_reaps_keeps_the_daemon_running_and_ends_in_order(
    head: Container, places: Mapping[str, str], tmp_path: Path
) -> None:
    assert "noded/spawner" in Path(f"/proc/{head.first}/cmdline").read_text(), "it has not taken the role by itself"
    with Driver("default", SOURCE, str(tmp_path / "gate"), env=places, inside=head.enter()) as driver:
        count, actor = driver.expect("actor").split()
        assert driver.expect("parent") == "1"
        driver.expect("reaped")
        for round_ in (1, 2):
            before = daemon_of(head)
            os.kill(before, signal.SIGKILL)
            wait_for(
                lambda: head.output().count("connect: ") == round_ + 1,  # noqa: B023 - it is called in this round
                lambda: f"the daemon was not started again: {head.output()}",
                20,
            )
            assert daemon_of(head) != before
            driver.tell("again")
            assert driver.expect("actor").split() == [str(int(count) + round_), actor]
        assert "ended with signal 9; starting it again in 0.1 s" in head.output()
        assert "ended with signal 9; starting it again in 0.2 s" in head.output(), "it does not back off"
        head.signal(signal.SIGTERM)
        assert head.wait(10) == 0, head.output()  # containers get 10 s
    nothing_of(places)
    assert not Path(places["NODED_RUN_DIR"], "default").exists()


@in_a_container
def test_a_second_sigterm_forces(head: Container, places: Mapping[str, str]) -> None:
    os.kill(daemon_of(head), signal.SIGSTOP)
    head.signal(signal.SIGTERM)
    # The second is a signal of its own only once the first one was seen.
    wait_for(lambda: not _pending(head.first), "SIGTERM does not arrive")
    head.signal(signal.SIGTERM)
    assert head.wait(6) == 128 + signal.SIGKILL  # it would have waited 8 s
    nothing_of(places)


def _pending(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    pending = int(status.partition("ShdPnd:")[2].split()[0], 16)
    return bool(pending >> (signal.SIGTERM - 1) & 1)


@in_a_container
def test_sigkill_of_the_first_process_ends_all(head: Container, places: Mapping[str, str]) -> None:
    wait_for(lambda: len(head.processes()) >= 3, "it has no daemon and no template")
    head.signal(signal.SIGKILL)
    head.wait(10)
    nothing_of(places)


@pytest.mark.parametrize("fault", ["option", "token", "port"])
def test_a_daemon_that_cannot_start_is_an_exit_code_and_a_reason(places: Mapping[str, str], fault: str) -> None:
    flags, expected, words = [], 1, ""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        if fault == "option":
            flags, expected, words = ["--port", "99999"], 2, "--port cannot be '99999'"
        elif fault == "token":
            flags, words = [], "holds no token"
        else:
            flags, words = ["--port", str(taken.getsockname()[1])], f"is in use by pid {os.getpid()}"
        done = subprocess.run(
            [*noded_command(), "--head", "--supervise", *flags],
            env={**os.environ, **places, **({"NODED_TOKEN": "short"} if fault == "token" else {})},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert (done.returncode, words in done.stderr) == (expected, True), done.stderr
    assert "Traceback" not in done.stderr and "starting it again" not in done.stderr
    nothing_of(places)


@pytest.mark.parametrize("end", ["Ctrl-C", "noded stop", "SIGKILL"])
def test_without_a_container(places: Mapping[str, str], end: str) -> None:
    """By hand, in the foreground: a supervisor that is killed takes the node with it."""
    env = {**os.environ, **places, "NODED_SUPERVISE": "true"}
    with subprocess.Popen(
        [*noded_command(), "--head"], env=env, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert process.stdout is not None
            while b"connect: " not in (line := process.stdout.readline()):
                assert line, "the head ended"
            told = json.loads(Path(places["NODED_RUN_DIR"], "default", "head", "node.json").read_text())
            assert told["pid"] != process.pid
            if end == "noded stop":
                subprocess.run([*noded_command(), "stop"], env=env, cwd=REPOSITORY, check=True, capture_output=True)
            else:
                process.send_signal(signal.SIGINT if end == "Ctrl-C" else signal.SIGKILL)
            assert process.wait(20) == (-signal.SIGKILL if end == "SIGKILL" else 0)
            wait_for(lambda: not mentioning(all_processes().values(), [places["NODED_RUN_DIR"]]), "it goes on")
        finally:
            process.kill()


def test_start_in_the_background_does_not_supervise(places: Mapping[str, str]) -> None:
    done = subprocess.run(
        [*noded_command(), "start", "--head", "--supervise"],
        env={**os.environ, **places},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "use `noded --head --supervise`, or `noded start` without it" in done.stderr
