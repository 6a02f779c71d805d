"""Who waits while another thread reads."""

from __future__ import annotations

import threading
import time

from noded.client.reader import Reader


class Counting(Reader):
    """How often somebody polled."""

    def __init__(self) -> None:
        super().__init__()
        self.polls = 0

    def poll(self, timeout: float | None) -> int:
        self.polls += 1
        return super().poll(timeout)


def test_several_threads_that_wait_sleep() -> None:
    reader = Counting()
    over: list[bool] = []
    threads = [threading.Thread(target=reader.wait, args=[lambda: over, None, lambda: None]) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(1)  # in which nothing happens
    over.append(True)
    reader.notify()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    reader.close()

    assert reader.polls < 100, f"nothing happened, and {reader.polls} times somebody looked"
