"""A trained detector at work: in Python, on files and films, behind a page."""
