"""What oracles, designs and edits are worth: correlation, agreement, distance; arithmetic without a network."""
