"""Raw images -> a folder of WebDataset tars that describes itself (`manifest.json`)."""
