"""A trained network for other programs: an MLflow model, and files for other runtimes."""
