"""Flower trains one line on the points of four clients, each in an actor of its simulation engine, which is Ray Core.

Prints:
after 3 rounds: 3.00 x + -1.00
clients ran in other processes: True
with noded: True
"""

import os
import tempfile

import numpy as np
import ray
from flwr.client import ClientApp, NumPyClient
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation

CLIENTS, ROUNDS = 4, 3
NOTES = tempfile.mkdtemp(prefix="federated-")
weights = []


class Client(NumPyClient):
    def __init__(self, number):
        rng = np.random.default_rng(number)
        self.x = rng.uniform(-1, 1, 200)
        self.y = 3 * self.x - 1

    def fit(self, parameters, config):
        open(f"{NOTES}/{os.getpid()}-{ray.__name__}", "w").close()
        a, b = parameters
        for _ in range(50):
            error = a * self.x + b - self.y
            a, b = a - 0.6 * np.mean(error * self.x), b - 0.6 * np.mean(error)
        return [np.asarray(a), np.asarray(b)], len(self.x), {}


class Strategy(FedAvg):
    def aggregate_fit(self, server_round, results, failures):
        assert len(results) == CLIENTS and not failures, failures
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        weights[:] = parameters_to_ndarrays(parameters)
        return parameters, metrics


def server(context):
    strategy = Strategy(
        fraction_evaluate=0,
        min_fit_clients=CLIENTS,
        min_available_clients=CLIENTS,
        initial_parameters=ndarrays_to_parameters([np.zeros(()), np.zeros(())]),
    )
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=ROUNDS))


def client(context):
    return Client(context.node_config["partition-id"]).to_client()


run_simulation(
    server_app=ServerApp(server_fn=server),
    client_app=ClientApp(client_fn=client),
    num_supernodes=CLIENTS,
    backend_name="ray",
    backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}},
)
notes = [name.split("-") for name in os.listdir(NOTES)]
for name in os.listdir(NOTES):
    os.unlink(f"{NOTES}/{name}")
os.rmdir(NOTES)
print(f"after {ROUNDS} rounds: {weights[0]:.2f} x + {weights[1]:.2f}")
print("clients ran in other processes:", len(notes) > 0 and str(os.getpid()) not in {pid for pid, _ in notes})
print("with noded:", {name for _, name in notes} == {"noded.compat.ray"})
