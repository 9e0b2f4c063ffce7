"""A user's own network: a module named by its import path, with weights from safetensors.

The code that is run is what the user names, from the user's own Python path; nothing of a checkpoint is ever run.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from semrsm_dist.extraction.checkpoint import did_you_mean, first_sentence, sha256_of
from semrsm_dist.extraction.pretrained import WITHOUT_EFFECT
from storage_schemas.errors import InvalidInputError, StoreNotFoundError
from storage_schemas.location import storage_errors

_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class OwnNetwork:
    """A user's module with everything that it returns as ``output``."""

    def __init__(self, name: str, module: torch.nn.Module) -> None:
        self._name = name
        self.module = module.eval().requires_grad_(False)

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """Every module by its dotted name."""
        return dict(self.module.named_modules())

    def outputs(self, pixels: torch.Tensor) -> dict[str, Any]:
        """What one forward pass returns: ``output``, and by their names the outputs in a mapping."""
        try:
            output = self.module(pixels)
        except torch.OutOfMemoryError:  # smaller batches mend that
            raise
        except Exception as error:  # whatever the user's code raises
            raise InvalidInputError(
                f"{self._name} fails on a batch of images of {pixels.shape[-1]} × {pixels.shape[-2]} pixels "
                f"({type(error).__name__}: {first_sentence(error)}); mend it, or choose another image size."
            ) from error
        named = {str(key): value for key, value in output.items()} if isinstance(output, Mapping) else {}
        return {**named, "output": output}


def is_import_path(model: str) -> bool:
    """Whether a model is written like ``package.module:Class``.

    >>> is_import_path("networks.small:build"), is_import_path("openai/clip-vit-base-patch32"), is_import_path("./resnet")
    (True, False, False)
    """
    return _IMPORT_PATH.fullmatch(model) is not None and not os.path.exists(model)


def load_own_network(path: str, weights: str | os.PathLike[str] | None = None) -> tuple[OwnNetwork, dict[str, str]]:
    """Make a user's module and load its weights.

    Parameters
    ----------
    path
        ``package.module:Class``, or ``package.module:function`` that returns a module; called without arguments. Packages
        are looked for in the working directory first.
    weights
        A safetensors file with every tensor of the module. Without one, the module must bring its weights itself: it is made
        twice, and both must be equal.

    Returns
    -------
    network : OwnNetwork
        In evaluation mode, on the CPU, in float32.
    hashes : dict
        SHA-256 of the source file that the import path leads to (``code``) and of the weights: of their file
        (``weights``), or of the tensors that the module brought itself (``parameters``).

    Raises
    ------
    StoreNotFoundError
        When there is no such package or file of weights.
    InvalidInputError
        When the import path leads to no module, the code fails, or weights are missing or do not fit.
    """
    with _working_directory_importable():
        factory = _find(path)
        module = _make(path, factory)
        hashes = _code_hash(factory)
        if weights is not None:
            file = Path(os.path.abspath(os.path.expanduser(weights)))
            _load_weights(path, module, file)
            hashes["weights"] = sha256_of(file)
        else:
            hashes["parameters"] = _state_hash(module)
            if hashes["parameters"] != _state_hash(_make(path, factory)):
                raise InvalidInputError(
                    f"{path} has other weights each time it is made: they are random; give trained ones as a safetensors file."
                )
    return OwnNetwork(path, module), hashes


def _find(path: str) -> Callable[[], object]:
    """The class or function of an import path."""
    package, _, attribute = path.partition(":")
    found: Any
    try:
        found = importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is not None and (package == error.name or package.startswith(f"{error.name}.")):
            raise StoreNotFoundError(
                f"There is no Python module {error.name} for the model {path}; start in the folder that holds it."
            ) from error
        raise InvalidInputError(f"{package} needs a package that is not installed ({error.name}); install it.") from error
    except Exception as error:  # whatever the user's code raises
        raise InvalidInputError(
            f"Importing {package} for the model {path} fails ({type(error).__name__}: {first_sentence(error)}); mend it."
        ) from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            near = difflib.get_close_matches(name, [each for each in dir(found) if not each.startswith("_")], n=3)
            hint = did_you_mean(near) or "check the import path."
            raise InvalidInputError(f"{package} has no {name} for the model {path}; {hint}")
        found = getattr(found, name)
    if not callable(found) or isinstance(found, torch.nn.Module):
        raise InvalidInputError(f"{path} is neither a class nor a function; name one that returns a module when it is called.")
    return found  # type: ignore[no-any-return]


def _make(path: str, factory: Callable[[], object]) -> torch.nn.Module:
    """The module that a class or function makes, in float32."""
    try:
        module = factory()
    except Exception as error:  # whatever the user's code raises
        raise InvalidInputError(
            f"Calling {path} without arguments fails ({type(error).__name__}: {first_sentence(error)}); "
            "name a class or function that needs none."
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise InvalidInputError(f"{path} makes a {type(module).__name__}; expected a torch.nn.Module.")
    return module.float()


def _load_weights(path: str, module: torch.nn.Module, file: Path) -> None:
    """Fill a module with the tensors of a file, which must have them all."""
    if not file.is_file():
        raise StoreNotFoundError(f"There is no file of weights {file}; check the path.")
    try:
        with storage_errors(str(file)):
            missing, _ = safetensors.torch.load_model(module, file, strict=False)
    except SafetensorError as error:
        raise InvalidInputError(
            f"{file} is no whole safetensors file ({first_sentence(error)}); save the weights again."
        ) from error
    except (RuntimeError, ValueError, TypeError) as error:
        raise InvalidInputError(
            f"The weights in {file} do not fit {path} ({first_sentence(error)}); choose its own."
        ) from error
    lacking = sorted(name for name in missing if not WITHOUT_EFFECT.search(name))
    if lacking:
        raise InvalidInputError(
            f"{file} lacks {len(lacking)} of the tensors of {path} ({lacking[0]} first), which would be random; save them all."
        )


def _code_hash(factory: Callable[[], object]) -> dict[str, str]:
    """The hash of the file that a class or function is written in, where there is one."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(factory))
    except TypeError:
        return {}
    return {"code": sha256_of(Path(file))} if file is not None and Path(file).is_file() else {}


def _state_hash(module: torch.nn.Module) -> str:
    """The hash of every tensor of a module with its name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(values.shape)} {values.dtype} ".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes() if values.numel() else b"")
    return digest.hexdigest()


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """Look for packages in the working directory first, as Python itself does for its own scripts."""
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
