"""Measurements of this machine: ``python -m study.benchmark [training|matching|sweep|gpu|all]``."""
