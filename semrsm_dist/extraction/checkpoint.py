"""Model checkpoints: in a local folder or on the Hugging Face hub, as safetensors, and never with code of their own."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from semrsm_dist.extraction.registry import close_names, find_model
from storage_schemas.errors import InvalidInputError, SemrsmError, StoreNotFoundError
from storage_schemas.location import storage_errors

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""Files that tell how images are prepared; one of them is enough."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a model's files are."""

    source: str
    """Path of a local folder, or a hub id."""
    name: str
    """The folder's name or the hub id: the same on every machine."""
    folder: Path | None
    """The local folder, or None for the hub."""
    revision: str | None
    """Commit on the hub; None for a local folder."""
    config: Any
    """The model's transformers configuration."""

    @property
    def options(self) -> dict[str, Any]:
        """Arguments that every ``from_pretrained`` of this checkpoint is called with."""
        return {
            "revision": self.revision or "main",
            "local_files_only": self.folder is not None,
            "trust_remote_code": False,
        }

    def file_hashes(self) -> dict[str, str] | None:
        """SHA-256 of the weights and the configuration of a local folder; on the hub, the commit stands for them."""
        if self.folder is None:
            return None
        paths = [self.folder / "config.json", *sorted(self.folder.glob("model*.safetensors"))]
        with storage_errors(str(self.folder)):
            return {path.name: sha256_of(path) for path in paths}


def find_checkpoint(model: str | os.PathLike[str], revision: str | None = None) -> Checkpoint:
    """Find a model in a local folder or on the hub, and read its configuration.

    Parameters
    ----------
    model
        A folder with ``config.json``, ``preprocessor_config.json`` and ``model.safetensors``, a name of the registry, or a
        hub id. What exists, or is written like a path, is a folder.
    revision
        Branch, tag or commit on the hub; that of the registry, or the default branch, when None.

    Raises
    ------
    StoreNotFoundError
        When the folder is not there, or the hub has no such model or cannot be reached.
    InvalidInputError
        When the folder lacks a file, or the configuration is not one that transformers reads without foreign code.
    """
    source = os.fspath(model)
    folder = _local_folder(source)
    if folder is not None and revision is not None:
        raise InvalidInputError(f"{folder} is a local folder and has no revision {revision}; leave the revision out.")
    if folder is None:
        registered = find_model(source)
        if registered is not None:
            source, revision = registered.hub_id, revision or registered.revision
        elif "/" not in source and close_names(source):  # no need to ask the hub, whose ids of vision models have a slash
            raise StoreNotFoundError(f"There is no registered model or folder {source}; {did_you_mean(close_names(source))}")
        checkpoint = Checkpoint(source, source, None, revision, None)
        with checkpoint_errors(checkpoint):  # from here on, every file is read from the commit that this one is of
            snapshot = Path(hf_hub_download(source, "config.json", revision=revision)).parent
        checkpoint = replace(checkpoint, revision=snapshot.name)
    else:
        checkpoint = Checkpoint(str(folder), folder.name, folder, None, None)
    with checkpoint_errors(checkpoint):
        return replace(checkpoint, config=AutoConfig.from_pretrained(checkpoint.source, **checkpoint.options))


@contextmanager
def checkpoint_errors(checkpoint: Checkpoint) -> Iterator[None]:
    """Turn what goes wrong while loading a checkpoint into one sentence, and keep transformers quiet meanwhile."""
    where = checkpoint.source
    try:
        with _quiet():
            yield
    except SemrsmError:
        raise
    except ImportError as error:
        raise InvalidInputError(
            f"{where} needs a package that is not installed ({first_sentence(error)}); install it."
        ) from error
    except SafetensorError as error:
        raise InvalidInputError(
            f"The weights of {where} are damaged ({first_sentence(error)}); copy or download the model again."
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        if checkpoint.folder is None:
            _raise_hub_error(checkpoint, error)
        if "trust_remote_code" in str(error):
            raise InvalidInputError(
                f"{where} brings code of its own, which is never run; choose a model that transformers knows."
            ) from error
        raise InvalidInputError(
            f"transformers cannot load {where} ({first_sentence(error)}); choose a vision model that it can."
        ) from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_sentence(error: BaseException, limit: int = 160) -> str:
    """The first sentence of an error's message, on one line and without its full stop."""
    text = " ".join(str(error).split()).split(". ")[0].rstrip(".")
    text = text or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def did_you_mean(names: Sequence[str]) -> str:
    """The end of a sentence about a mistyped name; empty when there are no close ones.

    >>> did_you_mean(["resnet-50", "resnet-18", "resnet-101"])
    'did you mean resnet-50, resnet-18 or resnet-101?'
    """
    *others, last = names or [""]
    return f"did you mean {', '.join(others)}{' or ' if others else ''}{last}?" if last else ""


def _local_folder(source: str) -> Path | None:
    """The absolute path of a local model folder with everything in it, or None for a hub id."""
    path = Path(os.path.abspath(os.path.expanduser(source)))
    like_a_path = source.startswith((".", "~", os.sep)) or source.count("/") > 1 or os.path.isabs(source)
    if not path.exists():
        if like_a_path:
            raise StoreNotFoundError(f"There is no model folder {path}; check the path.")
        return None
    if not path.is_dir():
        raise InvalidInputError(f"{path} is a file; give the folder that holds config.json and model.safetensors.")
    if not (path / "config.json").is_file():
        raise InvalidInputError(f"{path} has no config.json; give a folder that save_pretrained of transformers wrote.")
    if not any((path / name).is_file() for name in PROCESSOR_FILES):
        raise InvalidInputError(
            f"{path} has no preprocessor_config.json, so how to prepare images for the model is unknown; "
            "save the model's image processor there."
        )
    if not any((path / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        raise InvalidInputError(
            f"{path} has no model.safetensors, and weights of other formats are not read; save the model with save_pretrained."
        )
    return path


def _raise_hub_error(checkpoint: Checkpoint, error: BaseException) -> None:
    """Raise the sentence for an error that has to do with the hub; return when it has not."""
    where = checkpoint.source
    meant = "" if find_model(where) else did_you_mean(close_names(where))
    causes = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        raise StoreNotFoundError(
            f"{where} has no revision {checkpoint.revision} on the Hugging Face hub; check its name."
        ) from error
    if "does not appear to have a file named model.safetensors" in str(error):
        raise InvalidInputError(
            f"{where} has no model.safetensors at revision {checkpoint.revision}, and weights of other formats are not read; "
            "give a revision that has one, such as the refs/pr/N of the hub's conversion, or a folder with converted weights."
        ) from error
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        raise StoreNotFoundError(
            f"{where} is a gated model of the Hugging Face hub; ask for access there, then run hf auth login."
        ) from error
    if any(isinstance(cause, (RepositoryNotFoundError, HFValidationError)) for cause in causes):
        raise StoreNotFoundError(
            f"{where} is neither a local folder nor a model of the Hugging Face hub; {meant or 'check the path or the id.'}"
        ) from error
    if any(isinstance(cause, (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)) for cause in causes):
        raise StoreNotFoundError(
            f"{where} was not found locally and the Hugging Face hub cannot be reached; "
            f"{meant or 'give the path of a model folder, or connect to the network.'}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars, reports and warnings of transformers and the hub: what matters in them is raised."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub_verbosity = hub_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
