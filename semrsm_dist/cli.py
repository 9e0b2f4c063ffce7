"""The command line: one verb for each step of a run. Exit status 0 on success, 2 on a user's mistake, 1 otherwise."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from semrsm_dist.commands.analysis import cka, retrieve
from semrsm_dist.commands.extraction import extract
from semrsm_dist.commands.models import models
from semrsm_dist.commands.recipes import demo, plan, report, run, schema
from semrsm_dist.commands.status import status, timeline
from semrsm_dist.commands.stores import import_, rsm
from semrsm_dist.commands.verification import finalise, verify
from storage_schemas.errors import ClusterLostError, SemrsmError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="semrsm-dist")
def semrsm() -> None:
    """Semantic RSMs: how similar images are to a vision network, wherever things are in them.

    A recipe describes a run from images to a report; `semrsm run RECIPE` does all of it and, run again, goes on where it
    stopped. The other verbs do one step each.

    \b
    Start with:   semrsm demo
    """


steps = (models, extract, import_, rsm, finalise, retrieve, cka)
for command in (demo, run, plan, status, timeline, verify, report, schema, *steps):
    semrsm.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; turns errors into one sentence and an exit status."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        status = semrsm.main(args=None if arguments is None else list(arguments), prog_name="semrsm", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except SemrsmError as error:
        click.echo(f"semrsm: {error}", err=True)
        if isinstance(error, ClusterLostError):
            sys.stdout.flush()
            os._exit(2)  # what Ray does at the end of a process would wait for the head
        sys.exit(error.exit_status)
    except (KeyboardInterrupt, click.Abort):
        click.echo("\nsemrsm: Interrupted; what is finished is kept, and the same command goes on from there.", err=True)
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
