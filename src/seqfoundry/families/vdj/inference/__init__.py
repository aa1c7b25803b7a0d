"""Coefficients from observations: fits, on several devices too, how sure they are, and what they make probable."""
