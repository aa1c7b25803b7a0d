"""What `annotate reads` writes: tables of molecules, and reads sorted by cell."""
