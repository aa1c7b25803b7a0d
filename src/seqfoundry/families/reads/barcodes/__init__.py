"""Barcodes: lists of cells, and the search for the nearest one."""
