"""Figures and the HTML report: what a person sees of a run."""
