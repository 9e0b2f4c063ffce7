"""`ray job submit -- python -m jobs.run …`: `semrsm run …` as a Ray job, on the cluster that runs the job."""

from __future__ import annotations

import sys

from semrsm_dist.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
