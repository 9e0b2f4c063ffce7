"""`ray job submit -- python -m jobs.extract …`: `semrsm extract …` as a Ray job, on the cluster that runs the job."""

from __future__ import annotations

import sys

from semrsm_dist.cli import main

if __name__ == "__main__":
    main(["extract", *sys.argv[1:]])
