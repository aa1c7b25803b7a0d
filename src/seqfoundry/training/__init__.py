"""What the training loops of one framework share."""
