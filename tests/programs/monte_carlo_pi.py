"""Pi by throwing darts, with an actor that the driver asks how far the tasks have come.

Prints:
progress is between 0 and 1: True
4 of 4 tasks are done
pi is about 3.14
"""

import random
import time

import ray

TASKS, SAMPLES = 4, 250_000


@ray.remote
class Progress:
    def __init__(self, total):
        self.total = total
        self.done_by_task = {}

    def report(self, task, done):
        self.done_by_task[task] = done

    def fraction(self):
        return sum(self.done_by_task.values()) / self.total

    def finished(self):
        return sum(done == SAMPLES for done in self.done_by_task.values())


@ray.remote
def sample(task, progress):
    rng = random.Random(task)
    inside = 0
    for i in range(1, SAMPLES + 1):
        x, y = rng.random(), rng.random()
        inside += x * x + y * y <= 1
        if i % 50_000 == 0:
            progress.report.remote(task, i)
    # The last report has to be in before the task counts as done.
    ray.get(progress.report.remote(task, SAMPLES))
    return inside


ray.init(num_cpus=2)
progress = Progress.remote(TASKS * SAMPLES)
results = [sample.remote(task, progress) for task in range(TASKS)]
seen = []
while ray.wait(results, num_returns=TASKS, timeout=0)[1]:
    seen.append(ray.get(progress.fraction.remote()))
    time.sleep(0.05)
print("progress is between 0 and 1:", seen == sorted(seen) and all(0 <= part <= 1 for part in seen))
print(ray.get(progress.finished.remote()), "of", TASKS, "tasks are done")
print("pi is about", round(4 * sum(ray.get(results)) / (TASKS * SAMPLES), 2))
