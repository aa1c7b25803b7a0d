"""From scores of bases to labels, segments and architecture: the label chain, and reads parsed by valid structures."""
