"""Three stages, side by side in a placement group, hand work on through queues.

Prints:
bundles: 3
squares: [0, 1, 4, 9, 16, 25, 36, 49, 64, 81]
stages: ['read', 'square', 'write']
the group is gone: True
"""

import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

END = None


@ray.remote(num_cpus=1)
class Stage:
    def __init__(self, name):
        self.name = name

    def read(self, out, numbers):
        for number in numbers:
            out.put(number)
        out.put(END)
        return self.name

    def square(self, source, out):
        while (number := source.get(timeout=20)) is not END:
            out.put(number**2)
        out.put(END)
        return self.name

    def write(self, source, results):
        while (number := source.get(timeout=20)) is not END:
            results.put(number)
        return self.name


ray.init(num_cpus=3)
group = placement_group([{"CPU": 1}] * 3, strategy="PACK")
ray.get(group.ready(), timeout=30)
print("bundles:", group.bundle_count)

stages = [
    Stage.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=at)).remote(
        name
    )
    for at, name in enumerate(["read", "square", "write"])
]
queues = [Queue(maxsize=3, actor_options={"num_cpus": 0}) for _ in range(2)]
results = Queue(actor_options={"num_cpus": 0})
done = [
    stages[0].read.remote(queues[0], list(range(10))),
    stages[1].square.remote(queues[0], queues[1]),
    stages[2].write.remote(queues[1], results),
]
names = ray.get(done, timeout=30)
print("squares:", results.get_nowait_batch(10))
print("stages:", names)
try:
    results.get(block=False)
except Empty:
    pass
else:
    raise SystemExit("the queue is not empty")
remove_placement_group(group)
print("the group is gone:", placement_group_table(group)["state"] == "REMOVED")
