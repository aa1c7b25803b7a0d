"""Apply a served model to a user's data: rows in, rows with more columns out, and what that needs but is no model.

Reading and writing reads, matching barcodes against a list of cells and naming demultiplexed reads live here. Nothing
in this package knows a framework or a room: a model is met only through the columns it returns.
"""
