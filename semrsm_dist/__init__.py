"""Semantic RSMs: how similar images are to a vision network, independent of where things are in them.

Wald et al., "Decoupling Semantic Similarity from Spatial Alignment for Neural Networks", NeurIPS 2024.
"""

from semrsm_dist.rsm import RSM, cka, semantic_rsm

__all__ = ["RSM", "cka", "semantic_rsm"]
