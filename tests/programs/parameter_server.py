"""A line is fitted to noisy points by workers that send gradients to a parameter server, in step and out of step.

Prints:
in step: 3.0 x + -1.0
out of step: 3.0 x + -1.0
updates: 400
"""

import numpy as np
import ray

WORKERS, ROUNDS = 4, 100


@ray.remote
class ParameterServer:
    def __init__(self, rate):
        self.weights = np.zeros(2)
        self.rate = rate
        self.updates = 0

    def get_weights(self):
        return self.weights

    def apply(self, *gradients):
        self.weights = self.weights - self.rate * np.mean(gradients, axis=0)
        self.updates += len(gradients)
        return self.weights

    def get_updates(self):
        return self.updates


@ray.remote
class Worker:
    def __init__(self, number):
        rng = np.random.default_rng(number)
        x = rng.uniform(-1, 1, 500)
        self.inputs = np.stack([x, np.ones(500)], axis=1)
        self.targets = 3 * x - 1 + rng.normal(0, 0.01, 500)

    def gradient(self, weights):
        return 2 * self.inputs.T @ (self.inputs @ weights - self.targets) / len(self.targets)


def text(weights):
    return f"{weights[0]:.1f} x + {weights[1]:.1f}"


ray.init(num_cpus=4)
workers = [Worker.remote(number) for number in range(WORKERS)]

server = ParameterServer.remote(0.3)
weights = server.get_weights.remote()
for _ in range(ROUNDS):
    weights = server.apply.remote(*[worker.gradient.remote(weights) for worker in workers])
print("in step:", text(ray.get(weights)))

server = ParameterServer.remote(0.05)  # smaller: gradients are of older weights
weights = server.get_weights.remote()
pending = {worker.gradient.remote(weights): worker for worker in workers}
for _ in range(WORKERS * ROUNDS):
    [ready], _ = ray.wait(list(pending))
    worker = pending.pop(ready)
    weights = server.apply.remote(ready)
    pending[worker.gradient.remote(weights)] = worker
print("out of step:", text(ray.get(server.get_weights.remote())))
print("updates:", ray.get(server.get_updates.remote()))
