"""A search for the best of many settings: as many trials as there are CPUs at a time, hopeless ones are stopped.

Prints:
best: rate 0.1, momentum 0.5
trials: 12
the endless one was cancelled: True
an impossible one was refused: True
"""

import itertools
import time

import ray
from ray.exceptions import GetTimeoutError, TaskCancelledError, WorkerCrashedError


def loss(rate, momentum):
    """Steps that gradient descent needs on a long valley, at most 500."""
    x = y = 1.0
    vx = vy = 0.0
    for step in range(500):
        if max(abs(x), abs(y)) < 1e-3:
            return step
        vx, vy = momentum * vx - rate * x, momentum * vy - rate * 20 * y
        x, y = x + vx, y + vy
        if abs(y) > 1e6:
            return 500
    return 500


@ray.remote
def trial(settings):
    rate, momentum = settings
    if rate <= 0:
        raise ValueError("the rate must be above 0")
    return settings, loss(rate, momentum)


@ray.remote
def endless():
    while True:
        time.sleep(0.01)


ray.init(num_cpus=2)
left = list(itertools.product([0.001, 0.01, 0.1, 0.3], [0.0, 0.5, 0.9]))
running, results = [], []
while left or running:
    while left and len(running) < 2:
        running.append(trial.remote(left.pop()))
    done, running = ray.wait(running, num_returns=1)
    results += ray.get(done)
(rate, momentum), _ = min(results, key=lambda result: result[1])
print(f"best: rate {rate}, momentum {momentum}")
print("trials:", len(results))

hopeless = endless.remote()
try:
    ray.get(hopeless, timeout=0.5)
except GetTimeoutError:
    ray.cancel(hopeless)
try:
    ray.get(hopeless)
except (TaskCancelledError, WorkerCrashedError):
    print("the endless one was cancelled: True")

try:
    ray.get(trial.options(max_retries=0).remote((0, 0.5)))
except ValueError as error:
    print("an impossible one was refused:", "above 0" in str(error))
