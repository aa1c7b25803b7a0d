"""The built-in families, a package each."""
