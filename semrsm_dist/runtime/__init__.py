"""Running tiles: what a unit of work is, the dispatch loop, its executors, the plan and the events."""
