"""Measurements of this machine: ``python -m study.benchmark [training|matching|sweep|all]``."""
