"""Checks and measurements of one GPU: ``python -m study.benchmark gpu``. They need neither ray nor mlflow."""
