"""The errors a caller can act on. Each message is one sentence to a person: what, where, what to do."""

from __future__ import annotations


class SemrsmError(Exception):
    """Base of every error that is a user's to mend; the command line prints it and exits with :attr:`exit_status`."""

    exit_status = 2


class InvalidInputError(SemrsmError, ValueError):
    """An argument, a file or an array that the system cannot work with."""


class UnreadableImageError(InvalidInputError):
    """An image that cannot be decoded."""


class StoreNotFoundError(SemrsmError, FileNotFoundError):
    """A store or file that should be there is not."""


class SchemaVersionError(SemrsmError):
    """A store of another kind, or of a version that this release does not read."""


class FingerprintMismatchError(SemrsmError):
    """A store that was computed from something else than what is asked for now."""


class NonFiniteError(SemrsmError, ValueError):
    """NaN or infinity where numbers are expected."""


class IncompleteStoreError(SemrsmError):
    """A store whose computation has not finished."""


class DamagedChunkError(SemrsmError):
    """A chunk whose bytes do not match their checksum."""


class StorageUnavailableError(SemrsmError, OSError):
    """The disk or object store refuses: full, read-only, no permission, or out of reach."""


class StoreInUseError(SemrsmError):
    """A store that another run is writing."""


class LeaseLostError(SemrsmError):
    """A store that this run was writing and that is another's now."""


class ClusterLostError(SemrsmError):
    """A Ray cluster that does not answer any more."""


class UnfinishedError(SemrsmError):
    """Parts of a store that came to nothing although they were tried again; the others are kept."""

    exit_status = 1
