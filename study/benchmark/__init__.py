"""What this machine does: ``python -m study.benchmark [training|matching|sweep|all]``."""
