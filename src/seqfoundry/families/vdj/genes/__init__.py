"""The genes of a locus: sequences and where they come from, ends, and all ways to trim and join two of them."""
