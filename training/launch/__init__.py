"""A training as a Ray Train job with one MLflow run: admission, workers, progress and artifacts."""
