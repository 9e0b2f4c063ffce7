"""`ray job submit -- python -m jobs.verify …`: `semrsm verify …` as a Ray job, on the cluster that runs the job."""

from __future__ import annotations

import sys

from semrsm_dist.cli import main

if __name__ == "__main__":
    main(["verify", *sys.argv[1:]])
