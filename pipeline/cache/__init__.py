"""Decoded images kept in memory, and the batches made from them."""
