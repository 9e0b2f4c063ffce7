"""Entry points for `ray job submit -- python -m jobs.NAME`: thin, no logic."""
