"""What oracles, designs and edits are worth: correlation, agreement, distance.

Arithmetic without a network.
"""
