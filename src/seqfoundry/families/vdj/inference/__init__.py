"""Coefficients from observations.

Fits, on several devices too, how sure they are, and what they make probable.
"""
