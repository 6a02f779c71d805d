"""Supervisors with workers of their own; one worker dies and is there again, a supervisor is ended, another one begun.

Prints:
sums: [10, 35, 60]
after a crash: 35
restarted: True
found by name: 60
after its end: RayActorError
one of a name: True
"""

import os

import ray
from ray.exceptions import RayActorError


@ray.remote(num_cpus=0, max_restarts=1, max_task_retries=2)
class Worker:
    def __init__(self, numbers):
        self.numbers = numbers

    def total(self):
        return sum(self.numbers)

    def restarted(self):
        return ray.get_runtime_context().was_current_actor_reconstructed

    def crash(self, marker):
        # Only the first time: the call is repeated by the actor that takes its place.
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return "again"
        os._exit(1)


@ray.remote(num_cpus=0)
class Supervisor:
    def __init__(self, first):
        self.workers = [Worker.remote(range(first + at, first + at + 1)) for at in range(5)]

    def total(self):
        return sum(ray.get([worker.total.remote() for worker in self.workers]))

    def worker(self, at):
        return self.workers[at]


ray.init(num_cpus=2)
supervisors = [Supervisor.options(name=f"supervisor {at}").remote(5 * at) for at in range(3)]
print("sums:", ray.get([supervisor.total.remote() for supervisor in supervisors]))

worker = ray.get(supervisors[1].worker.remote(0))
marker = f"/tmp/actor-tree-{os.getpid()}"
try:
    assert ray.get(worker.crash.remote(marker), timeout=60) == "again"
finally:
    os.unlink(marker)
print("after a crash:", ray.get(supervisors[1].total.remote()))
print("restarted:", ray.get(worker.restarted.remote()))
print("found by name:", ray.get(ray.get_actor("supervisor 2").total.remote()))

ray.kill(supervisors[2])
try:
    ray.get(supervisors[2].total.remote(), timeout=60)
except RayActorError:
    print("after its end: RayActorError")
new = Supervisor.options(name="supervisor 3", get_if_exists=True).remote(100)
same = Supervisor.options(name="supervisor 3", get_if_exists=True).remote(200)
print("one of a name:", ray.get(new.total.remote()) == ray.get(same.total.remote()) == 510)
