"""The names that recipes, stores and the command line share."""

from __future__ import annotations

from typing import Literal

Invariance = Literal["none", "permutation", "translation", "pooled"]
Method = Literal["optimal", "batch_optimal", "greedy", "topk_greedy"]
SolverName = Literal["auction", "ortools", "scipy", "lapjv"]
AffinityType = Literal["float32", "bfloat16"]
Centring = Literal["position", "channel", "none"]
SigmaRule = Literal["median_sq", "median", "fixed", "tile"]
Estimator = Literal["biased", "unbiased"]
KernelName = Literal["cosine", "linear", "rbf"]
