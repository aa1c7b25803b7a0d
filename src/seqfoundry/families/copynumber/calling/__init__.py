"""From ratios of depth to copy numbers: states of bins, runs, segments, genes of the chromosome and of plasmids."""
