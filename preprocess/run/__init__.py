"""Tasks on worker processes or on a Ray cluster, with progress."""
