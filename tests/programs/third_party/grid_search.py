"""scikit-learn's grid search, once here and once over the joblib backend: the same scores, computed by workers.

Prints:
the same scores: True
fits: 27
fits here: 0
"""

import os

import joblib
import numpy as np
import ray
from ray.util.joblib import register_ray
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

inputs, labels = load_digits(return_X_y=True)
inputs, labels = inputs[:600], labels[:600]
grid = {"C": [0.1, 1, 10], "gamma": [1e-4, 1e-3, 1e-2]}


class Noted(SVC):
    """Says in which process it was fitted."""

    def fit(self, X, y):
        self.fitted_by = os.getpid()
        return super().fit(X, y)


def score(estimator, X, y):
    pids.append.remote(estimator.fitted_by)
    return estimator.score(X, y)


@ray.remote(num_cpus=0)
class Pids:
    def __init__(self):
        self.pids = []

    def append(self, pid):
        self.pids.append(pid)

    def get(self):
        return self.pids


here = GridSearchCV(SVC(), grid, cv=3, refit=False).fit(inputs, labels)
ray.init(num_cpus=2)
pids = Pids.remote()
register_ray()
with joblib.parallel_backend("ray"):
    there = GridSearchCV(Noted(), grid, cv=3, refit=False, scoring=score).fit(inputs, labels)
print("the same scores:", np.allclose(here.cv_results_["mean_test_score"], there.cv_results_["mean_test_score"]))
fitted_by = ray.get(pids.get.remote())
print("fits:", len(fitted_by))
print("fits here:", fitted_by.count(os.getpid()))
