"""Samples and annotations of image datasets. Imports neither Ray nor PyTorch."""
