"""Files: atomic writes, digests, arrays, tables, and readers of rows."""
