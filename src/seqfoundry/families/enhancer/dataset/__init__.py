"""The rows that a panel is made of: read from a user's tables, and stored encoded as arrays that are mapped."""
