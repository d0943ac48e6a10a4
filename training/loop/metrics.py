"""Names of the metrics by which a training is judged and shown."""

TOP1 = "val/top1"
"""Top-1 accuracy over the val split, 0 to 1: the best checkpoint has the highest."""
EPOCH = "epoch"
"""Number of completed epochs, in the place of the metrics of validation where the data set has no val samples."""
