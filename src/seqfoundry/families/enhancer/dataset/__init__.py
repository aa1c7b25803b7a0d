"""The rows that a panel is made of.

Read from a user's tables, and stored encoded as arrays that are mapped.
"""
