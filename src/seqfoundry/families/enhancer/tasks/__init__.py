"""What `score enhancer` does, a module for each task."""
