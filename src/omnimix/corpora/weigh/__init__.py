"""Solve for domain weights."""
