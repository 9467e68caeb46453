"""The trained detector as files for other runtimes."""
