"""Options that name a set of images, the same for every verb that reads one."""

from __future__ import annotations

from typing import Any

import click
from pydantic import TypeAdapter, ValidationError

from semrsm_dist.datasets.sources import SOURCES, ImageSource
from storage_schemas.errors import InvalidInputError

_SELECT = ("seed", "skip", "take")


def source_options(command: Any) -> Any:
    """Add the options; the command takes them as keywords and gives them to :func:`source_of`."""
    for option in reversed(
        (
            click.option(
                "--dataset", type=click.Choice(list(SOURCES)), default="folder", show_default=True, help="Kind of data set."
            ),
            click.option("--images", help="Folder of images."),
            click.option(
                "--annotations", help="COCO-format file, or .csv or .parquet table of labels: take its images, in its order."
            ),
            click.option("--root", help="Folder that the data set was unpacked to; every kind but folder and coco has one."),
            click.option("--split", help="train, val, test or eval, as the kind of data set has them."),
            click.option("--subset", help="egoobjects: val or test, of the eval split."),
            click.option("--any-shape", is_flag=True, default=None, help="egoobjects: take more than the images of 16:9."),
            click.option("--classes", help="cityscapes: eval19, non-void or all34. cifar100: fine or coarse."),
            click.option("--unpack-to", help="cifar100: folder to unpack the images to, once."),
            click.option("--seed", type=click.IntRange(min=0), help="Draw images, in the order of this seed."),
            click.option("--skip", type=click.IntRange(min=0), help="Images to leave out at the beginning of the order drawn."),
            click.option("--take", type=click.IntRange(min=1), help="Images to take after them.  [default: all the others]"),
        )
    ):
        command = option(command)
    return command


def source_of(options: dict[str, Any]) -> ImageSource:
    """The source that options ask for; raises `InvalidInputError` when they do not fit the kind of data set."""
    given = {name: value for name, value in options.items() if value is not None}
    kind = given["dataset"]
    select = {name: given.pop(name) for name in _SELECT if name in given}
    fields = SOURCES[kind].model_fields
    for name in given:
        if name not in fields:
            known = [_flag(field) for field in fields if field not in ("dataset", "select")]
            raise InvalidInputError(f"--dataset {kind} takes no {_flag(name)}; it takes {', '.join(known)}.")
    for name, field in fields.items():
        if field.is_required() and name not in given:
            meaning = str(field.description).splitlines()[0].replace("``", "").rstrip(".")
            raise InvalidInputError(f"--dataset {kind} needs {_flag(name)}: {meaning}.")
    try:
        source: ImageSource = TypeAdapter(ImageSource).validate_python({**given, **({"select": select} if select else {})})
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise InvalidInputError(f"{_flag(str(first['loc'][-1]))} is {first['input']!r:.60}: {message}.") from error
    return source


def _flag(name: str) -> str:
    """An option as it is typed."""
    return f"--{name.replace('_', '-')}"
