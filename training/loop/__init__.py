"""The training loop of one worker, without Ray and MLflow."""
