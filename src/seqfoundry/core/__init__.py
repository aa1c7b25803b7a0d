"""What every family needs and no family owns: settings, data digests, tracking, plots.

Imports no family.
"""
