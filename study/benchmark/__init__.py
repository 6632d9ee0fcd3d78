"""Measurements of this machine: ``python -m study.benchmark [training|matching|sweep|data|all|gpu|fastest|table]``."""
