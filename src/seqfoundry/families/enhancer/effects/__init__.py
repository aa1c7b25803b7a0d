"""What bases do: variants, all single mutants, contributions of bases, and the network exported for other tools."""
