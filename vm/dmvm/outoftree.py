"""Builds modules that a distribution's kernel leaves out."""
