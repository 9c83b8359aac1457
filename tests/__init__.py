"""Tests mirror the package: one file per module, under the same path."""
