"""Shards -> decoded samples: file access, read-ahead and the DALI stream."""
