"""A folder of shards -> batches on the device, decoded and augmented by DALI."""
