"""`ray job submit -- python -m jobs.rsm …`: `semrsm rsm …` as a Ray job, on the cluster that runs the job."""

from __future__ import annotations

import sys

from semrsm_dist.cli import main

if __name__ == "__main__":
    main(["rsm", *sys.argv[1:]])
