"""What semrsm-dist keeps on disk: activation stores, RSM stores, Arrow tables and fingerprints.

This package imports neither Ray nor PyTorch nor ``semrsm_dist``, so that any program can read the stores.
"""

from storage_schemas.activations import ActivationStore
from storage_schemas.errors import (
    ClusterLostError,
    DamagedChunkError,
    FingerprintMismatchError,
    IncompleteStoreError,
    InvalidInputError,
    LeaseLostError,
    NonFiniteError,
    SchemaVersionError,
    SemrsmError,
    StorageUnavailableError,
    StoreInUseError,
    StoreNotFoundError,
    UnfinishedError,
    UnreadableImageError,
)
from storage_schemas.rsm import RsmStore

__all__ = [
    "ActivationStore",
    "ClusterLostError",
    "DamagedChunkError",
    "FingerprintMismatchError",
    "IncompleteStoreError",
    "InvalidInputError",
    "LeaseLostError",
    "NonFiniteError",
    "RsmStore",
    "SchemaVersionError",
    "SemrsmError",
    "StorageUnavailableError",
    "StoreInUseError",
    "StoreNotFoundError",
    "UnfinishedError",
    "UnreadableImageError",
]
