"""Conversion of raw images to a self-describing folder of WebDataset tars (`manifest.json`)."""
