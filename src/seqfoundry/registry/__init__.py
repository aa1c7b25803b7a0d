"""Packages trained models, finds them by name and alias, and decides which one is the champion."""
