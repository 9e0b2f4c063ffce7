"""The verb that lists models whose representation is known."""

from __future__ import annotations

import click

from semrsm_dist.commands.output import json_option, print_json, print_table
from semrsm_dist.extraction.registry import MODELS


@click.command()
@json_option
def models(as_json: bool) -> None:
    """List the registered models: what --model and recipes take by name, and what comes out.

    S × C counts CLS token and padding, which --drop-cls and --drop-padding leave out. Any other vision model of transformers,
    and a module of your own, works as well: see docs/models.md.

    \b
    Example:   semrsm models
               semrsm extract --model resnet-50 --images photos --out activations/photos.zarr
    """
    if as_json:
        print_json([model.to_json() for model in MODELS])
        return
    header = ("name", "hub id", "S × C", "pixels", "CLS", "logits")
    rows = [
        [
            model.name,
            model.hub_id,
            f"{model.n_positions:,} × {model.n_channels:,}",
            f"{model.image_size}",
            "yes" if model.prefix_tokens else "",
            "yes" if model.has_logits else "",
        ]
        for model in MODELS
    ]
    print_table("Registered models", header, rows)
    for model in MODELS:
        click.echo(f"{model.name}: {model.representation}; {model.notes}.")
