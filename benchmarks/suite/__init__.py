"""What ``benchmarks/matching.py`` is made of: maps, methods, probes in fresh processes, claims, and what is drawn of them."""
