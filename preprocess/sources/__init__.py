"""Sources of raw images: one module for each layout, all read as the same catalogue."""
