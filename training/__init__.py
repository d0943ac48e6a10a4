"""Batches -> checkpoints, an MLflow run and a top-1/top-5 report."""
