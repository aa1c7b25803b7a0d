"""Reports: metrics, plots and HTML."""
