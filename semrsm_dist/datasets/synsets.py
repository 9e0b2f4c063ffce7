"""WordNet synsets, by which ImageNet and Tiny-ImageNet name their classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from semrsm_dist.datasets.instances import count_instances
from semrsm_dist.datasets.samples import Dataset, Sample, first_few
from storage_schemas.errors import InvalidInputError, StoreNotFoundError
from storage_schemas.location import storage_errors

_SYNSET = re.compile(r"n\d{8}")


def is_synset(name: str) -> bool:
    """Whether a name is that of a noun's synset, e.g. ``n01440764``."""
    return _SYNSET.fullmatch(name) is not None


def read_synset_names(path: Path) -> dict[str, str]:
    """Names of synsets from lines of a synset, a blank or a tab, and its words: ``words.txt``, ``LOC_synset_mapping.txt``."""
    fields = (line.split(maxsplit=1) for line in read_lines(path))
    return {found[0]: found[1].strip() for found in fields if len(found) == 2}


def read_lines(path: Path) -> list[str]:
    """Lines of a text file that are not blank; raises `StoreNotFoundError` and `InvalidInputError`."""
    with storage_errors(str(path)):
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise StoreNotFoundError(f"There is no file {path}; it comes with the data set, so unpack it again.") from error
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"{path} is not text in UTF-8 ({error}); unpack it again.") from error
    return [line for line in text.splitlines() if line.strip()]


def classified_dataset(images: Mapping[str, Path], synsets: Sequence[str], names: Mapping[str, str], where: object) -> Dataset:
    """Images of one class each.

    Parameters
    ----------
    images
        Sample id to image, in the order of the samples.
    synsets
        The class of each, e.g. ``n01440764``.
    names
        Words of each synset.
    where
        What the classes are from, for the sentence.

    Returns
    -------
    Dataset
        With the count 1 of its class for each sample. The class id is the number of the synset, so that it does not
        depend on which classes are there.

    Raises
    ------
    InvalidInputError
        When a synset has no name.
    """
    nameless = sorted({synset for synset in synsets if synset not in names})
    if nameless:
        raise InvalidInputError(f"{where} has classes without a name: {first_few(nameless)}; add them to the file of names.")
    class_names = {_number(synset): names[synset] for synset in set(synsets)}
    class_ids = [_number(synset) for synset in synsets]
    annotations = count_instances(list(images), range(len(images)), class_ids, class_names, where)
    return Dataset(tuple(Sample(sample_id, path, path.as_uri()) for sample_id, path in images.items()), annotations)


def _number(synset: str) -> int:
    """The offset of a synset in WordNet."""
    return int(synset[1:])
