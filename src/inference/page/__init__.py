"""The page to try a detector in a browser."""
